"""Attacks on runs of two processes: killed, stopped, signalled at random moments, missing, wrongly described.

Whatever happens to one process, the other says in one line what, and how to go on, and ends; nothing of them is left,
and `--resume` goes on.
"""

import contextlib
import os
import random
import signal
import socket
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
from attacks import Hang, Outcome, command, ended, start

ROOT = Path(__file__).parents[2]
FRONTS = {"trainer": ["-m", "hf_orthossl", "pretrain"], "loop": ["scripts/pretrain.py"]}
ACCELERATE = ["-m", "accelerate.commands.launch", "--config_file", "scripts/accelerate_configs/two_cpu_processes.yaml"]
# Seconds for which a process waits for a silent one, and after which the end of a run counts as a hang: importing torch
# takes two minutes on a busy machine.
LIMIT, PATIENCE = 20, 300
RUN = (
    "--use_cpu --backbone_config channels=[8,8,16,16] --per_device_train_batch_size 8 --max_steps 100000 "
    f"--save_steps 5 --knn_images 0 --logging_steps 5 --disable_tqdm true --ddp_timeout {LIMIT}"
)


class Pair:
    """A run of two processes, started by hand or by a launcher."""

    def __init__(self, front, how, folder, *options):
        self.front, self.folder, self.mark = front, folder / "run", uuid.uuid4().hex
        argv = [*RUN.split(), "--output_dir", self.folder, *options]
        if how == "accelerate":
            program = [*ACCELERATE, *FRONTS[front]]
            self.started = {"launcher": start(*argv, program=program, MARK=self.mark)}
        else:
            port = free_port()
            self.started = {
                rank: start(*argv, program=FRONTS[front], MARK=self.mark, **environment(rank, port)) for rank in (0, 1)
            }

    def until_trained(self):
        """Waits for the first checkpoint."""
        until = time.monotonic() + 400
        while not any(self.folder.glob("checkpoint-*/manifest.json")):
            assert time.monotonic() < until, "no checkpoint"
            assert all(process.poll() is None for process in self.started.values()), "ended before"
            time.sleep(0.05)

    def pid(self, who):
        """The number of a process: a rank, or "launcher"."""
        if who in self.started:
            return self.started[who].pid
        for child in psutil.Process(self.started["launcher"].pid).children():
            with contextlib.suppress(psutil.Error):
                if child.environ().get("RANK") == str(who):
                    return child.pid
        raise AssertionError(f"no rank {who}")

    def send(self, number, *targets):
        for pid in [self.pid(who) for who in targets]:
            os.kill(pid, number)

    def ended(self) -> dict:
        """How each started process ended; all that is left of them is ended, and fails the attack."""
        try:
            return {who: ended(process, PATIENCE) for who, process in self.started.items()}
        finally:
            self.sweep()

    def sweep(self):
        left, until = self.alive(), time.monotonic() + 12
        while left and time.monotonic() < until:
            time.sleep(0.2)
            left = self.alive()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for process in self.started.values():
            process.poll() is None and process.kill()
        if left and sys.exc_info()[0] is None:
            raise Hang(f"{len(left)} processes are left")

    def alive(self):
        return [process for process in psutil.process_iter() if marked(process, self.mark)]

    def resumes(self):
        """A run that was stopped goes on, in one process."""
        steps = [int(path.parent.name.split("-")[1]) for path in self.folder.glob("checkpoint-*/manifest.json")]
        settings = ["--max_steps", max(steps) + 2, "--save_steps", 1000, "--per_device_train_batch_size", 16]
        argv = ["--resume", "--output_dir", self.folder, *settings]
        if self.front == "trainer":
            command("pretrain", *argv, seconds=PATIENCE).worked("encoder")
        else:
            ended(start(*argv, program=FRONTS["loop"]), PATIENCE).worked("encoder")


def environment(rank, port, **changes):
    values = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
    values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | changes
    return {name: str(value) for name, value in values.items()}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def clean(outcome: Outcome, *words):
    """No traceback of ours, and a line with the words."""
    said = outcome.out + outcome.err
    own = said.split("torch.distributed.elastic")[0].split("Traceback")
    ours = said if "elastic" not in said else own[0]
    assert "Traceback" not in ours, said[-1500:]
    assert any(all(word in line for word in words) for line in said.splitlines()), f"no {words}: {said[-1500:]}"


@pytest.mark.parametrize("how", ["by hand", "accelerate"])
@pytest.mark.parametrize("front", FRONTS)
def test_one_process_is_killed_or_stopped(front, how, tmp_path, attacks):
    generator = random.Random(f"{front} {how}")
    for number in (signal.SIGKILL, signal.SIGSTOP):
        victim = generator.randrange(2)
        with attacks.attempt(f"{number.name} of rank {victim}, {front}, {how}"):
            pair = Pair(front, how, tmp_path / number.name, "--dataloader_num_workers", generator.randrange(2))
            try:
                pair.until_trained()
                time.sleep(generator.uniform(0, 1))
                pair.send(number, victim)
                if how == "by hand":
                    survivor = ended(pair.started[1 - victim], PATIENCE)
                    survivor.refused(f"process {victim} of 2", "--resume")
                    pair.send(signal.SIGKILL, victim)
                    pair.ended()
                else:
                    clean(pair.ended()["launcher"], ": error: ", f"process {victim} of 2", "--resume")
            finally:
                pair.sweep()
            pair.resumes()


@pytest.mark.parametrize("how", ["by hand", "accelerate"])
@pytest.mark.parametrize("front", FRONTS)
def test_signals_end_all_processes_with_a_checkpoint(front, how, tmp_path, attacks):
    generator = random.Random(f"{front} {how}")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        targets = generator.choice([(0,), (1,), (0, 1)] if how == "by hand" else [(0,), (1,), ("launcher",)])
        with attacks.attempt(f"{number.name} to {targets}, {front}, {how}"):
            pair = Pair(front, how, tmp_path / number.name, "--dataloader_num_workers", generator.randrange(2))
            try:
                pair.until_trained()
                time.sleep(generator.uniform(0, 1))
                pair.send(number, *targets)
                outcomes = pair.ended()
            finally:
                pair.sweep()
            for who, outcome in outcomes.items():
                assert who == "launcher" or outcome.code == 128 + number, f"rank {who}: {outcome.code} {outcome.tail}"
            clean(outcomes.get(0) or outcomes["launcher"], f"stopped by {number.name}", "--resume")
            pair.resumes()


@pytest.mark.parametrize("front", FRONTS)
def test_a_second_signal_ends_a_process_that_waits_in_a_collective(front, tmp_path, attacks):
    for number in (signal.SIGTERM, signal.SIGINT):
        with attacks.attempt(f"{number.name} twice beside a stopped process, {front}"):
            pair = Pair(front, "by hand", tmp_path / number.name, "--ddp_timeout", "1000")
            try:
                pair.until_trained()
                pair.send(signal.SIGSTOP, 1)
                time.sleep(2)
                pair.send(number, 0)
                time.sleep(1)
                pair.send(number, 0)
                outcome = ended(pair.started[0], 30)
                assert outcome.code == 128 + number
                clean(outcome, f"ended by {number.name}", "--resume")
                pair.send(signal.SIGKILL, 1)
            finally:
                pair.sweep()
            pair.resumes()


def test_the_launcher_is_killed(tmp_path, attacks):
    with attacks.attempt("SIGKILL of the launcher"):
        pair = Pair("trainer", "accelerate", tmp_path)
        try:
            pair.until_trained()
            pair.send(signal.SIGKILL, "launcher")
            clean(pair.ended()["launcher"], "stopped by SIGTERM", "--resume")
        finally:
            pair.sweep()
        pair.resumes()


@pytest.mark.parametrize("front", FRONTS)
def test_signals_before_the_first_step_end_at_once(front, tmp_path, attacks):
    generator = random.Random(front)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        moment = generator.uniform(2, 12)
        with attacks.attempt(f"{number.name} after {moment:.1f} s, {front}"):
            pair = Pair(front, "by hand", tmp_path / number.name)
            time.sleep(moment)
            pair.send(number, 0, 1)
            for who, outcome in pair.ended().items():
                assert outcome.code in (128 + number, 2), f"rank {who}: {outcome.code} {outcome.tail}"
                assert "Traceback" not in outcome.err, outcome.tail
                assert outcome.err.count("ended by") + outcome.err.count("process") <= 1, outcome.tail


WRONG = {
    "RANK 0 alone": ({}, "rank 1", "did not come"),
    "RANK 1 alone": ({"RANK": 1}, "rank 0", "did not come"),
    "RANK beyond": ({"RANK": 2}, "RANK is 2"),
    "RANK no number": ({"RANK": "one"}, "RANK is 'one'"),
    "WORLD_SIZE no number": ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
    "WORLD_SIZE negative": ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
    "MASTER_ADDR unknown": ({"MASTER_ADDR": "no-such-machine.invalid"}, "MASTER_ADDR is 'no-such-machine.invalid'"),
    "MASTER_PORT no number": ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    "MASTER_PORT too large": ({"MASTER_PORT": 70000}, "MASTER_PORT is '70000'"),
    "MASTER_PORT taken": ({}, "MASTER_PORT is"),
    "MASTER_PORT of a stranger": ({"RANK": 1}, "did not come"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_environment_is_refused_in_one_line(wrong, tmp_path, attacks):
    changes, *words = WRONG[wrong]
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = free_port() if "of a stranger" not in wrong and "taken" not in wrong else stranger.getsockname()[1]
        variables = environment(0, port, **changes)
        with attacks.attempt(wrong):
            argv = [*RUN.split(), "--output_dir", tmp_path]
            process = start(*argv, program=FRONTS["trainer"], **variables)
            ended(process, PATIENCE).refused(*words)


def test_processes_that_disagree_are_refused(tmp_path, attacks):
    for name, changes in {"WORLD_SIZE": {"WORLD_SIZE": 3}, "RANK": {"RANK": 0, "LOCAL_RANK": 0}}.items():
        port = free_port()
        with attacks.attempt(f"{name} differs"):
            argv = [*RUN.split(), "--output_dir", tmp_path]
            one, other = (
                start(*argv, program=FRONTS["trainer"], **environment(rank, port, **(changes if rank else {})))
                for rank in (0, 1)
            )
            codes = [ended(one, PATIENCE), ended(other, PATIENCE)]
            for outcome in codes:
                outcome.refused()
            assert any(f"{name} is" in outcome.err or "MASTER_PORT is" in outcome.err for outcome in codes)


COMMANDS = {
    "evaluate": "evaluate resnet18 --untrained --image_size 32 --num_workers 1 --cache none --epochs 500",
    "spectra": "spectra resnet18 --untrained --image_size 32 --dataset digits --num_workers 1 --views cifar-asym",
    "forecast": "forecast --dataset digits",
    "pretrain": "pretrain --use_cpu --max_steps 100000 --dataloader_num_workers 1 --disable_tqdm true",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_signals_to_a_command_and_its_group_end_it_in_one_line(name, tmp_path, attacks):
    generator = random.Random(name)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        moment, group = generator.uniform(2, 25), generator.random() < 0.5
        with attacks.attempt(f"{number.name} to {name} after {moment:.1f} s"):
            mark = uuid.uuid4().hex
            where = tmp_path / number.name
            process = start(*COMMANDS[name].split(), "--output_dir", where, MARK=mark)
            time.sleep(moment)
            early = process.poll()
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(process.pid, number)
            outcome = ended(process, PATIENCE)
            assert outcome.code == (128 + number if early is None else 0), f"{outcome.code}: {outcome.tail}"
            assert "Traceback" not in outcome.err, outcome.tail
            if early is None:
                clean(outcome, f"by {number.name}")
            deadline = time.monotonic() + 10
            while left := [p for p in psutil.process_iter() if marked(p, mark)]:
                assert time.monotonic() < deadline, left
                time.sleep(0.2)


def marked(process, mark):
    try:
        return process.environ().get("MARK") == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
