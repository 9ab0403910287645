"""Every command that writes is killed at moments of its own, and meets full disks: each file is the old or the new one.

A command is forked from this process, so that an attack costs no imports. It is killed before its n-th operation on the
folder that it writes to, or while it writes the n-th byte of any file.
"""

import io
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from attacks import Attacks, Hang, command
from PIL import Image
from safetensors.torch import load

PATIENCE = 240
OWNERS = "\n## My notes\n\n" + "".join(f"Line {number} of what I know about this encoder.\n" for number in range(250))
SMALL = [
    *("--backbone_config", "channels=[8,8,16,16]", "--per_device_train_batch_size", "32", "--use_cpu"),
    *("--knn_images", "50", "--logging_steps", "1", "--save_steps", "2", "--disable_tqdm", "true"),
]
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree")


class Ended:
    """How a forked command ended: its exit code, negative for a signal, and what it printed to stderr."""

    def __init__(self, code: int, err: str):
        self.code, self.err = code, err

    def refused(self) -> str:
        """Asserts one line of error that names a file that could not be written, and returns it."""
        assert self.code == 2, f"code {self.code}: {self.err[-1500:]}"
        lines = [line for line in self.err.splitlines() if ": error: " in line]
        assert len(lines) == 1, self.err[-1500:]
        assert "Traceback" not in self.err, self.err[-1500:]
        return lines[0]


def forked(argv: list[object], prepare=lambda: None) -> Ended:
    """Runs a command in a child of this process, which may be killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            os.dup2(write, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = io.TextIOWrapper(io.FileIO(1, "w")), io.TextIOWrapper(io.FileIO(2, "w"))
            from hf_orthossl.cli import main

            prepare()
            main([str(argument) for argument in argv])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    said, until = b"", time.monotonic() + PATIENCE
    while True:
        if not select.select([read], [], [], max(until - time.monotonic(), 0))[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(read)
            raise Hang(f"still running after {PATIENCE} s: {said[-500:]!r}")
        part = os.read(read, 2**16)
        if not part:
            break
        said += part
    os.close(read)
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode(errors="replace"))


def killed_at(number: int, folder: Path):
    """Kills the child before its n-th change in a folder; with 0 it only counts them, and says how many at its end."""

    def prepare():
        seen = 0

        def watch(event, args):
            nonlocal seen
            if event == "open":
                flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
                changes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            else:
                changes = event in CHANGES
            if changes and str(folder) in os.fsdecode(args[0] if isinstance(args[0], str | bytes) else str(args[0])):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                if not number:
                    os.write(2, b"\x01")

        sys.addaudithook(watch)

    return prepare


def killed_in_writing(size: int):
    """Kills the child while it writes byte number `size` of any file."""

    def prepare():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return prepare


def refused_beyond(size: int):
    """Refuses the child every byte beyond number `size` of any file, as a full disk does."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without what is hidden and not complete."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder): path for path in files}
    shown = {name: path for name, path in names.items() if not any(part.startswith(".") for part in name.parts)}
    return {str(name): path.read_bytes() for name, path in shown.items()}


def check_whole(folder: Path, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Asserts that each file is as before, as after, or at least whole, and that no owner's word is lost."""
    now = contents(folder)
    for name in before.keys() & after.keys():
        if not name.startswith(("checkpoint-", "cache/")):
            assert name in now, f"{name} is gone"
    for name, content in now.items():
        if content not in (before.get(name), after.get(name)):
            check_valid(name, content)
    for name, content in before.items():
        if name.endswith("README.md") and OWNERS.encode() in content:
            assert OWNERS.encode() in now[name], f"the owner's words in {name}"
    for card in (name for name in now if name.endswith("README.md") and name in before):
        place = card.removesuffix("README.md")
        weights = f"{place}model.safetensors"
        if before.get(weights) != after.get(weights):
            same = {now[name] == before[name] for name in (card, weights) if before[name] != after[name]}
            assert len(same) < 2, "a card beside weights of another time"
    for arrays in (name for name in now if name.endswith("spectra.safetensors")):
        from hf_orthossl import SpectralReport

        SpectralReport.load((folder / arrays).parent)


def check_valid(name: str, content: bytes) -> None:
    if name.endswith(".json"):
        json.loads(content)
    elif name.endswith(".jsonl"):
        for line in content.split(b"\n")[:-1]:
            json.loads(line)
    elif name.endswith(".safetensors"):
        load(content)
    elif name.endswith(".png"):
        Image.open(io.BytesIO(content)).load()
    elif name.endswith((".md", ".txt", ".yaml")):
        assert content.endswith(b"\n"), f"{name} is cut"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose encoder's card has words of its owner."""
    folder = tmp_path_factory.mktemp("run") / "run"
    torch.set_num_threads(1)
    # In this process, so that none of its children imports anything anew.
    command("pretrain", *SMALL, "--max_steps", "2", "--output_dir", folder, seconds=600).worked()
    card = folder / "encoder" / "README.md"
    card.write_text(card.read_text() + OWNERS)
    return folder


def commands(run: Path, place: Path) -> dict[str, tuple[list[object], list[object], Path]]:
    """Each command that makes a folder, the one that replaces it, and the folder."""
    encoder, out = run / "encoder", place / "out"
    copy = place / "run"
    images = ["--dataset", "digits", "--split"]
    spectra = ["spectra", encoder, *images[:2], "--output_dir", out, "--images"]
    evaluate = ["evaluate", encoder, "--dataset", "digits", "--task", "knn", "--output_dir", out, "--cache", out / "c"]
    forecast = ["forecast", "--output_dir", out, "--image_size", "8", "--images"]
    pretrain = ["pretrain", *SMALL, "--output_dir", copy]
    return {
        "spectra": ([*spectra, "40"], [*spectra, "60"], out),
        "evaluate": ([*evaluate, "--k", "3"], [*evaluate, "--k", "5", "--image_size", "16"], out),
        "forecast": ([*forecast, "40"], [*forecast, "60"], out),
        "pretrain": ([*pretrain, "--max_steps", "2"], [*pretrain, "--resume", "--max_steps", "4"], copy),
    }


@pytest.fixture(scope="module")
def prepared(run, tmp_path_factory):
    """Each command's folder before and after, and how many changes it makes there."""
    made = {}
    for name in ("spectra", "evaluate", "forecast", "pretrain"):
        place = tmp_path_factory.mktemp(name)
        first, second, folder = commands(run, place)[name]
        if name == "pretrain":
            shutil.copytree(run, folder)
        else:
            command(*first, seconds=600).worked()
        shutil.copytree(folder, place / "before")
        before = contents(folder)
        outcome = forked(second, killed_at(0, folder))
        assert outcome.code == 0, outcome.err
        made[name] = second, folder, place / "before", before, contents(folder), outcome.err.count("\x01")
    return made


def restored(folder: Path, copy: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)


@pytest.mark.parametrize("name", ["spectra", "evaluate", "forecast", "pretrain"])
def test_kills_at_any_operation(name, prepared, attacks: Attacks):
    argv, folder, copy, before, after, changes = prepared[name]
    assert changes > 3
    # The end of a run is where most is replaced.
    moments = random.Random(name).sample(range(1, changes + 1), min(6, changes))
    for number in sorted({*moments, changes, changes - 1, changes - 2}):
        restored(folder, copy)
        with attacks.attempt(f"{name} killed before change {number} of {changes}"):
            outcome = forked(argv, killed_at(number, folder))
            assert outcome.code in (0, -signal.SIGKILL), outcome.err[-1500:]
            check_whole(folder, before, after)
    with attacks.attempt(f"{name} once more after a kill"):
        outcome = forked(argv)
        assert outcome.code == 0, outcome.err[-1500:]
        check_whole(folder, before, after)
        left = [str(path) for path in folder.rglob("*") if path.name.endswith((".partial", ".tmp"))]
        assert not left, f"left behind: {left}"


@pytest.mark.parametrize("name", ["spectra", "evaluate", "forecast", "pretrain"])
@pytest.mark.parametrize("how", ["killed", "full"])
def test_kills_and_full_disks_within_a_file(name, how, prepared, attacks: Attacks):
    argv, folder, copy, before, after, _ = prepared[name]
    largest = max(map(len, after.values()))
    chosen = random.Random(f"{name} {how}")
    for size in sorted({0, 1, *(int(largest ** chosen.random()) for _ in range(4)), largest - 1}):
        restored(folder, copy)
        with attacks.attempt(f"{name} {how} at byte {size:,}"):
            outcome = forked(argv, killed_in_writing(size) if how == "killed" else refused_beyond(size))
            check_whole(folder, before, after)
            if how == "killed":
                assert outcome.code in (0, -signal.SIGXFSZ), outcome.err[-1500:]
            elif outcome.code:
                line = outcome.refused()
                assert any(words in line for words in ("cannot be written", "could not save")), line
                assert "[Errno" not in line, line


@pytest.mark.parametrize("name", ["spectra", "evaluate", "forecast", "pretrain"])
def test_full_disks(name, run, tmp_path, attacks: Attacks):
    """A disk of a few kilobytes, which holds the folder alone."""
    _, second, folder = commands(run, tmp_path)[name]
    first = commands(run, tmp_path)[name][0]
    folder.mkdir(parents=True)
    chosen = random.Random(name)
    for size in [4, 8, *(int(2 ** chosen.uniform(3, 11)) for _ in range(3))]:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip("needs the right to mount a small disk")
        try:
            with attacks.attempt(f"{name} on a disk of {size} kB"):
                outcome = forked(first if name != "pretrain" else [*second[:-3], "--max_steps", "2"])
                check_whole(folder, {}, {})
                if outcome.code:
                    line = outcome.refused()
                    assert any(words in line for words in ("cannot be written", "could not save", "free")), line
                    assert "[Errno" not in line, line
        finally:
            subprocess.run(["umount", folder], check=True)


def test_publishing_is_killed(run, hub_here, tmp_path, attacks: Attacks):
    """The folder stays as it is, and the repository has the old commit or the new one."""
    before = contents(run)
    argv = ["publish", run, "--repo_id", "tester/killed", "--license", "mit"]
    total = forked(argv, killed_at(0, tmp_path)).err.count("\x01")
    for number in range(1, total + 1):
        with attacks.attempt(f"publish killed before change {number} of {total}"):
            outcome = forked(argv, killed_at(number, tmp_path))
            assert outcome.code in (0, -signal.SIGKILL), outcome.err[-1500:]
            assert contents(run) == before
            files = hub_here.files("tester/killed")
            assert {"config.json", "model.safetensors", "README.md"} <= set(files)


def test_the_board_is_killed(run, hub_here, tmp_path, attacks: Attacks):
    for number in range(3):
        assert forked(["publish", run, "--repo_id", f"tester/model{number}", "--license", "mit"]).code == 0
    board = tmp_path / "board"
    argv = ["leaderboard", "build", "--output_dir", board]
    assert forked(argv).code == 0
    before = contents(board)
    assert forked(["publish", run, "--repo_id", "tester/model9", "--license", "mit"]).code == 0
    shutil.copytree(board, tmp_path / "before")
    total = forked(argv, killed_at(0, board)).err.count("\x01")
    after = contents(board)
    for number in range(1, total + 1):
        restored(board, tmp_path / "before")
        with attacks.attempt(f"build killed before change {number} of {total}"):
            outcome = forked(argv, killed_at(number, board))
            assert outcome.code in (0, -signal.SIGKILL), outcome.err[-1500:]
            check_whole(board, before, after)
    for size in (0, 1, 100, 1000, 10_000):
        restored(board, tmp_path / "before")
        with attacks.attempt(f"build on a disk full at byte {size:,}"):
            outcome = forked(argv, refused_beyond(size))
            check_whole(board, before, after)
            if outcome.code:
                assert "cannot be written" in outcome.refused()


def test_owners_words_survive_a_writer_that_fails(run, tmp_path, attacks: Attacks, monkeypatch):
    """Each step of writing an encoder folder raises in turn; the card and all else are as they were."""
    from hf_orthossl import SSLConfig, SSLModel
    from hf_orthossl.hub import write_encoder_folder

    folder = tmp_path / "encoder"
    shutil.copytree(run / "encoder", folder)
    before = contents(folder)
    model = SSLModel(SSLConfig("resnet10t", image_size=32, backbone_config={"channels": [8, 8, 16, 16]}))
    for target in (
        "hf_orthossl.hub.encoder_folder.spectral_report",
        "hf_orthossl.hub.encoder_folder.render_card",
        "hf_orthossl.spectra.SpectralReport.save",
        "hf_orthossl.spectra.SpectralReport.plot",
        "matplotlib.figure.Figure.savefig",
        "hf_orthossl.spectra.report.save_arrays",
    ):
        for error in (OSError(28, "No space left on device"), RuntimeError("defect"), KeyboardInterrupt()):

            def fail(*args, error=error, **kwargs):
                raise error

            with attacks.attempt(f"{target} raises {error!r}"):
                with monkeypatch.context() as patch:
                    patch.setattr(target, fail)
                    with pytest.raises(BaseException):  # noqa: B017, PT011
                        write_encoder_folder(model, folder, source=None)
                assert contents(folder) == before
                assert os.listdir(tmp_path) == ["encoder"]
