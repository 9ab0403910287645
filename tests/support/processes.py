"""Processes that talk over gloo, kept from test to test: starting one costs the seconds that torch takes to import."""

import datetime
import multiprocessing
import multiprocessing.connection
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

# A process whose peer has failed waits no longer than this for it.
PATIENCE = datetime.timedelta(seconds=120)


class ProcessGroup:
    """`count` processes of one gloo group, with one thread each.

    Args:
        count (`int`): How many.
    """

    def __init__(self, count: int):
        self.count = count
        self.processes: list[multiprocessing.Process] = []
        self.pipes = []

    def run(self, function: Callable, *args) -> list[Any]:
        """Calls a function of a module's top level in every process and returns what each gave, in rank order.

        Raises:
            AssertionError: with the traceback of the first process that failed.
        """
        self._start()
        for pipe in self.pipes:
            pipe.send((function, args))
        answers = {}
        while len(answers) < self.count:
            for pipe in multiprocessing.connection.wait([pipe for pipe in self.pipes if pipe not in answers]):
                succeeded, answers[pipe] = pipe.recv()
                if not succeeded:
                    # Its peers may wait for it in a collective: the group is of no more use.
                    rank, error = self.pipes.index(pipe), answers[pipe]
                    self.close()
                    raise AssertionError(f"process {rank} of {self.count} failed:\n{error}")
        return [answers[pipe] for pipe in self.pipes]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.pipes = [], []

    def _start(self) -> None:
        if self.processes:
            return
        context = multiprocessing.get_context("spawn")
        rendezvous = tempfile.mktemp(prefix="gloo-")
        for rank in range(self.count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, rank, self.count, rendezvous), daemon=True)
            process.start()
            self.processes.append(process)
            self.pipes.append(here)


def _serve(pipe, rank: int, count: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", timeout=PATIENCE, rank=rank, world_size=count)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
