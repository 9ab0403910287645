"""Extrapolate the time of a training step to many GPUs from terms measured on few, with the assumptions stated."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """Machines of equal GPUs.

    Args:
        gpus_per_node (`int`): g.
        link (`float`): Bytes per second that a GPU sends to others of its machine.
        nic (`float`): Bytes per second that a GPU sends to other machines, all GPUs of a machine at once.
        efficiency (`float`): Share of `link` and `nic` that collectives reach, in (0, 1].
        latency (`float`): Seconds that a collective takes however small it is.
        overlap (`float`): Share of the gradients' all-reduce that the backward pass hides, in [0, 1].
    """

    gpus_per_node: int
    link: float
    nic: float
    efficiency: float
    latency: float
    overlap: float


def step_time(
    cluster: Cluster, nodes: int, *, compute: float, penalty: float, share: float, traffic: Mapping[str, float]
) -> dict[str, float]:
    """Seconds of one optimizer step by what they go to; their sum is the step.

    With N machines of g GPUs, P = N·g processes, and, of the method, gradients of G bytes, b bytes that a process gives
    to gathers (of batches and of batch norm's statistics) or gets from their backward pass, r bytes that are summed
    over processes, and c such collectives:

        compute     t
        penalty     s·p                                s: the dearest process's share of the matrices, 1/P at best
        gradients   (1 − overlap)·R(G)
        gathers     b·[(P−1)/link + (N−1)/nic] + R(r)
        latency     (c + 1)·latency
        R(n)        2(g−1)/g · n/link + 2(N−1)/N · (n/g)/nic

    R: rings reduce within a machine, all-reduce between machines with each GPU carrying 1/g, and spread within a
    machine again. Gathers: every process gets what the P − 1 others have; what g GPUs of another machine sent crosses g
    network cards. On one process nothing is sent.

    Args:
        cluster ([`Cluster`]): The machines.
        nodes (`int`): N.
        compute (`float`): Seconds of a step without penalty on one GPU, at the batch of one GPU.
        penalty (`float`): Seconds of the whole penalty, value and gradient, on one GPU.
        share (`float`): s, in [1/P, 1].
        traffic (mapping): `gradient_bytes` G, `gathered_bytes` b, `reduced_bytes` r and `collectives` c of the method.
    """
    g, P = cluster.gpus_per_node, nodes * cluster.gpus_per_node
    link, nic = cluster.link * cluster.efficiency, cluster.nic * cluster.efficiency

    def ring(size: float) -> float:
        return 2 * (g - 1) / g * size / link + 2 * (nodes - 1) / nodes * size / g / nic

    gathers = traffic["gathered_bytes"] * ((P - 1) / link + (nodes - 1) / nic)
    return {
        "compute": compute,
        "penalty": share * penalty,
        "gradients": (1 - cluster.overlap) * ring(traffic["gradient_bytes"]),
        "gathers": gathers + ring(traffic["reduced_bytes"]),
        "latency": (traffic["collectives"] + 1) * cluster.latency if P > 1 else 0.0,
    }
