"""Runs that are killed at random moments, and other commands that try to use their folder all the while."""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from attacks import Attacks, Outcome
from survival_runs import Life

FRONTS = ("pretrain", "scripts/pretrain.py")
# A queue of negatives, a target network, prototypes with a centre, prototypes with codes, a queue of neighbours.
METHODS = {
    "mocov2plus": "queue_size=64 hidden_dim=32 output_dim=8",
    "byol": "hidden_dim=32 output_dim=8",
    "dino": "prototypes=32 hidden_dim=32 bottleneck_dim=8",
    "swav": "prototypes=32 hidden_dim=32 output_dim=8",
    "nnclr": "queue_size=64 hidden_dim=32 predictor_dim=32 output_dim=8",
}
SMALL = "--backbone resnet10t --backbone_config channels=[8,8,16,16] drop_path_rate=0.2 --image_size 32 --use_cpu"
SHORT = "--per_device_train_batch_size 16 --knn_images 0 --spectra_steps 0 --logging_steps 7 --disable_tqdm"
# Each is refused whether the folder is in use or holds a run that was killed.
INTRUDERS = (
    "",
    "--resume --seed 5",
    "--overwrite_output --dataset /no/such/folder",
    "--overwrite_output --per_device_train_batch_size 5000",
)


def _run(front, arguments, said):
    """Runs a command in a forked process, which writes what it says into two files."""
    from hf_orthossl.cli import main, perform, run

    torch.set_num_threads(1)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if front == "pretrain":
        main(["pretrain", *arguments])
    else:
        run(front, lambda argv: perform("pretrain", argv, prog=front, front="loop"), arguments)


class Run:
    """A command in a process of its own."""

    def __init__(self, front: str, arguments: str, said: Path):
        said.mkdir(exist_ok=True)
        self.said = said
        self.life = Life(_run, front, arguments.split(), said)

    @property
    def is_alive(self) -> bool:
        return self.life.process.is_alive()

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.life.process.pid, number)

    def end(self) -> Outcome:
        self.life.process.join(1200)
        code = self.life.process.exitcode
        out, err = ((self.said / name).read_text() if (self.said / name).exists() else "" for name in ("out", "err"))
        return Outcome(1 if code is None else code, out, err, 0)


def left(folder: Path) -> tuple:
    """What a run came to: the bytes of its encoder's weights, and the entries of its steps."""
    entries = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return (folder / "encoder" / "model.safetensors").read_bytes(), [e for e in entries if "learning_rate" in e]


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in paths}


def newest(folder: Path) -> float:
    times = [0.0]
    for path in folder.glob("checkpoint-*"):
        # The run may remove the oldest meanwhile.
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_ctime)
    return max(times)


def whole_run(front: str, method: str, steps: int, place: Path) -> Path:
    """Trains without a kill, and returns the folder."""
    Run(front, options(method, place / "whole", steps), place / "said").end().worked()
    return place / "whole"


def options(method: str, folder: Path, steps: int) -> str:
    saving = f"--max_steps {steps} --save_steps 1 --save_total_limit 2"
    return f"--output_dir {folder} --method {method} --method_config {METHODS[method]} {SMALL} {SHORT} {saving}"


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("method", METHODS)
def test_kills_at_random_moments_beside_an_intruder(method, front, attacks: Attacks, tmp_path):
    """Five kills at least, during start, steps and saves; then the run is that without a kill, to the last bit."""
    generator, kills, folder = random.Random(f"{method} {front}"), 0, tmp_path / "run"
    expected = left(whole_run(front, method, 60, tmp_path))
    for life in range(40):
        resume = " --resume" if any(folder.glob("checkpoint-*")) else ""
        began = time.time()
        run = Run(front, options(method, folder, 60) + resume, tmp_path / f"said{life}")
        if kills >= 6:
            outcome = run.end()
        else:
            if generator.random() < 0.7:
                while run.is_alive and newest(folder) < began:
                    time.sleep(0.005)
                time.sleep(generator.uniform(0, 0.4))
            else:
                time.sleep(generator.uniform(0, 2))
            if resume:
                with attacks.attempt(f"{method} {front}: an intruder before kill {kills + 1}"):
                    flags = generator.choice(INTRUDERS)
                    intruder = Run(generator.choice(FRONTS), options(method, folder, 60) + " " + flags, tmp_path / "i")
                    if generator.random() < 0.5:
                        intruder.end().refused()
                        run.send(signal.SIGKILL)
                    else:
                        time.sleep(generator.uniform(0, 0.3))
                        run.send(signal.SIGKILL)
                        intruder.end().refused()
            run.send(signal.SIGKILL)
            outcome = run.end()
            kills += outcome.code == -signal.SIGKILL
        if outcome.code == 0:
            break
        if outcome.code != -signal.SIGKILL:
            # An intruder may hold the lock for the moment in which it is refused.
            with attacks.attempt(f"{method} {front}: start {life}"):
                outcome.refused("in use by process")
    assert kills >= 5
    with attacks.attempt(f"{method} {front}: {kills} kills"):
        assert left(folder) == expected


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("front", FRONTS)
def test_a_second_command_in_the_folder_of_a_live_run(front, attacks: Attacks, tmp_path):
    """Every order of two commands: the first is stopped at a random moment, and goes on afterwards."""
    generator, folder = random.Random(front), tmp_path / "run"
    expected = left(whole_run(front, "byol", 40, tmp_path))
    first = Run(front, options("byol", folder, 40), tmp_path / "said")
    seconds = ("", "--resume", "--resume --learning_rate 0.3", "--overwrite_output", "--overwrite_output --seed 9")
    while first.is_alive and not (folder / "history.jsonl").exists():
        time.sleep(0.005)
    for moment in range(4):
        time.sleep(generator.uniform(0, 0.6))
        first.send(signal.SIGSTOP)
        if not first.is_alive:
            break
        before = contents(folder)
        for second in seconds:
            other = generator.choice(FRONTS)
            with attacks.attempt(f"{other} {second} beside {front}, stopped {moment + 1} times"):
                Run(other, options("byol", folder, 40) + " " + second, tmp_path / "second").end().refused("in use by")
                assert contents(folder) == before
        first.send(signal.SIGCONT)
    with attacks.attempt(f"{front} goes on"):
        first.end().worked()
        assert left(folder) == expected


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("front", FRONTS)
def test_checkpoints_that_are_not_what_they_seem(front, attacks: Attacks, tmp_path):
    """Of another run, another step, with one byte changed, cut off or without a file: resumed exactly, or refused."""
    generator = random.Random(front)
    whole, other = tmp_path / "whole", tmp_path / "other"
    Run(front, options("byol", whole, 6).replace("_limit 2", "_limit 9"), tmp_path / "said").end().worked()
    Run(front, options("byol", other, 4).replace("_limit 2", "_limit 9"), tmp_path / "said").end().worked()
    expected = left(whole)

    def attack(name, change, *words):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        for path in ("encoder", "checkpoint-5", "checkpoint-6"):
            shutil.rmtree(folder / path)
        with attacks.attempt(f"{front}: {name}"):
            change(folder)
            arguments = options("byol", folder, 6).replace("_limit 2", "_limit 9") + " --resume"
            outcome = Run(front, arguments, tmp_path / "said").end()
            if words:
                outcome.refused(*words)
            elif outcome.code == 0:
                assert left(folder) == expected
            else:
                outcome.refused()

    def foreign(step, name):
        return lambda folder: (
            shutil.rmtree(folder / name, ignore_errors=True),
            shutil.copytree(other / f"checkpoint-{step}", folder / name),
        )

    attack("the newest of another run", foreign(4, "checkpoint-4"), "belongs to run")
    attack("an older one of another run", foreign(2, "checkpoint-2"), "belongs to run")
    attack("of another run under another name", foreign(3, "checkpoint-5"), "step 3")
    attack("renamed", lambda folder: (folder / "checkpoint-3").rename(folder / "checkpoint-9"), "step 3")
    attack("copied", lambda folder: shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-5"), "step 2")
    for number in range(16):

        def damage(folder):
            files = sorted(path for path in (folder / "checkpoint-4").rglob("*") if path.is_file())
            path = generator.choice(files)
            data = bytearray(path.read_bytes())
            place = generator.randrange(len(data))
            kind = generator.choice(("flip", "cut", "remove", "empty", "pipe"))
            if kind == "flip":
                data[place] ^= 1 << generator.randrange(8)
                path.write_bytes(data)
            elif kind == "cut":
                path.write_bytes(data[:place])
            elif kind == "empty":
                path.write_bytes(b"")
            else:
                path.unlink()
                if kind == "pipe":
                    os.mkfifo(path)

        attack(f"damage {number}", damage)
