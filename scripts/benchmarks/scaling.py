"""A training step on 1 and 2 processes, the penalty's share of it, bytes on the wire per method, and what follows."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from hf_orthossl.methods import METHODS
from hf_orthossl.regularization.batching import shares

from .extrapolation import Cluster, step_time

WORKER = Path(__file__).with_name("scaling_worker.py")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--backbone", default="resnet18", help="timm name of the encoder")
    parser.add_argument("--image_size", type=int, default=32, help="side of the views in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images per process and step")
    parser.add_argument("--method", default="byol", help="method whose step is timed")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods whose bytes are counted")
    parser.add_argument("--regularizers", nargs="+", default=["so", "srip"], help="penalties that are timed")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="how many train together")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    cluster = parser.add_argument_group("extrapolation", "assumptions about the machines; nothing here is measured")
    cluster.add_argument("--nodes", nargs="+", type=int, default=[1, 2, 4, 8], help="machines")
    cluster.add_argument("--gpus_per_node", type=int, default=8, help="GPUs of a machine")
    cluster.add_argument(
        "--link_gb", type=float, default=450.0, help="GB/s of a GPU to others of its machine (NVLink 4)"
    )
    cluster.add_argument("--nic_gb", type=float, default=50.0, help="GB/s of a GPU to other machines (400 Gb/s each)")
    cluster.add_argument("--efficiency", type=float, default=0.7, help="share of both that collectives reach")
    cluster.add_argument("--latency_us", type=float, default=30.0, help="microseconds that a collective takes at least")
    cluster.add_argument("--overlap", type=float, default=0.0, help="share of the gradient traffic hidden by compute")
    cluster.add_argument(
        "--compute_ms", type=float, help="a step without penalty on such a GPU (default: as timed here)"
    )
    cluster.add_argument("--penalty_ms", type=float, help="a whole penalty on such a GPU (default: as timed here)")


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of three tables, `table` saying which: "step", "traffic", "extrapolation"; prints each as it is known."""
    if unknown := [name for name in [args.method, *args.methods] if name not in METHODS]:
        raise ValueError(f"--methods: {unknown[0]!r} is none of {', '.join(METHODS)}")
    if args.device == "cuda" and max(args.processes) > torch.cuda.device_count():
        raise ValueError(f"--processes {max(args.processes)}: there are {torch.cuda.device_count()} GPUs here")
    steps = []
    print(
        f"{'processes':<11}{'penalty':<9}{'on each':<10}{'step ms':>16}{'images/s':>10}{'penalty ms':>16}{'share':>8}"
    )
    for processes in args.processes:
        for row in _start(processes, "step", args):
            steps.append({"table": "step", **row})
            print(_step_line(row), flush=True)
    traffic = []
    columns = f"{'gradients MB':>14}{'gathered kB':>13}{'summed kB':>11}{'collectives':>13}{'of batch norm':>15}"
    print(f"\n{'method':<14}{columns}")
    for row in _start(2, "traffic", args):
        traffic.append({"table": "traffic", **row})
        print(
            f"{row['method']:<14}{row['gradient_bytes'] / 1e6:>14.2f}{row['gathered_bytes'] / 1e3:>13.1f}"
            f"{row['reduced_bytes'] / 1e3:>11.1f}{row['collectives']:>13}{row['batchnorm_collectives']:>15}",
            flush=True,
        )
    return [*steps, *traffic, *_extrapolate(steps, traffic, args)]


def _start(processes: int, work: str, args: argparse.Namespace) -> list[dict]:
    """Rows that the main one of so many worker processes found."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.json"
        settings = {name: value for name, value in vars(args).items() if isinstance(value, str | int | list)}
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        done = subprocess.run(
            [*launch, str(WORKER), work, json.dumps(settings), str(answer)],
            env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "Error: " in line]
            raise OSError(f"{processes} processes failed: {said[0] if said else done.stderr[-500:]}")
        return json.loads(answer.read_text(encoding="utf-8"))


def _extrapolate(steps: list[dict], traffic: list[dict], args: argparse.Namespace) -> list[dict]:
    cluster = Cluster(
        args.gpus_per_node, args.link_gb * 1e9, args.nic_gb * 1e9, args.efficiency, args.latency_us * 1e-6, args.overlap
    )
    bare = next(row for row in steps if row["penalty"] is None)
    compute = args.compute_ms or bare["step"]["median_ms"]
    kinds = {row["penalty"]: row for row in steps if row["sharing"] == "whole"}
    rows = []
    print(
        f"\n{args.batch} images a GPU; compute {compute:.1f} ms; links {args.link_gb:g} and {args.nic_gb:g} GB/s "
        f"at {args.efficiency:.0%}; {args.latency_us:g} µs a collective; {args.overlap:.0%} of the gradients hidden"
    )
    print(f"{'method':<14}{'nodes':>6}{'GPUs':>6}{'penalty':>9}{'step ms':>9}{'images/s':>11}{'efficiency':>12}")
    for found in traffic:
        for kind, timed in kinds.items():
            penalty, costs = args.penalty_ms or timed["penalty_alone"]["median_ms"], timed["matrix_costs"]
            for nodes in args.nodes:
                processes = nodes * args.gpus_per_node
                share = max(sum(costs[i] for i in items) for items in shares(costs, processes)) / sum(costs)
                seconds = {"compute": compute * 1e-3, "penalty": penalty * 1e-3}
                terms = step_time(cluster, nodes, **seconds, share=share, traffic=found)
                step = sum(terms.values())
                row = {
                    "table": "extrapolation",
                    "method": found["method"],
                    "penalty": kind,
                    "nodes": nodes,
                    "processes": processes,
                    "terms_ms": {name: 1e3 * value for name, value in terms.items()},
                    "penalty_share": share,
                    "images_per_second": processes * args.batch / step,
                    # Of images per second and GPU, against one GPU alone, which has the whole penalty to compute.
                    "efficiency": (compute + penalty) * 1e-3 / step,
                }
                rows.append(row)
                print(
                    f"{row['method']:<14}{nodes:>6}{processes:>6}{kind:>9}{1e3 * step:>9.2f}"
                    f"{row['images_per_second']:>11,.0f}{row['efficiency']:>12.2f}",
                    flush=True,
                )
    return rows


def _step_line(row: dict) -> str:
    def text(time: dict | None) -> str:
        return "–" if time is None else f"{time['median_ms']:.1f} ± {time['iqr_ms'] / 2:.1f}"

    share = "–" if row["penalty"] is None else f"{row['penalty_share']:.1%}"
    return (
        f"{row['processes']:<11}{row['penalty'] or '–':<9}{row['sharing'] or '–':<10}{text(row['step']):>16}"
        f"{row['images_per_second']:>10.1f}{text(row['penalty_alone']):>16}{share:>8}"
    )
