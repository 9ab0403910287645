"""Runs that are killed, interrupted or run out of disk, and go on as if nothing had happened."""

import itertools
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest
import torch
from survival_runs import (
    FRONTS,
    KILLED,
    Life,
    assert_same,
    digits,
    history,
    state,
    tiny_arguments,
    tiny_model,
    train,
    train_until,
)

from hf_orthossl.training import OrthoSSLTrainer
from hf_orthossl.training.step import SSLStep


@pytest.fixture(scope="module", params=FRONTS)
def whole(request, tmp_path_factory):
    """A front, the folder of a run of 8 steps without interruption, with all checkpoints, and its final state."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, state(train(request.param, folder, save_total_limit=None))


def start_with(checkpoints, folder, source):
    """A run folder as it is after a kill: some of the checkpoints, and a log that went on after them."""
    folder.mkdir()
    for step in checkpoints:
        shutil.copytree(source / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    (folder / "history.jsonl").write_text((source / "history.jsonl").read_text() + '{"step": 8, "loss"')


def test_every_checkpoint_leads_to_the_same_weights_and_log(whole, tmp_path):
    """From the middle of an epoch, its end, and between two log entries, bit for bit."""
    front, source, final = whole
    assert [entry["step"] for entry in history(source)] == [3, 6, 8]
    for step in (2, 4, 6):
        folder = tmp_path / str(step)
        start_with([step], folder, source)
        torch.manual_seed(99)
        assert_same(state(train(front, folder, tiny_model(), resume=True)), final)
        assert history(folder) == history(source)


@pytest.mark.parametrize(("front", "method"), [*itertools.product(FRONTS, ["lejepa"]), (FRONTS[0], "visreg")])
def test_random_directions_after_a_kill_are_those_of_the_step(front, method, tmp_path):
    """Of the loss of LeJEPA and of VISReg, and of a regularizer of the representation."""
    config = {
        "method": method,
        "method_config": {"hidden_dim": 32, "output_dim": 8, "slices": 16},
        "embedding_regularizer": "visreg",
        "embedding_layer": "representation",
        "embedding_config": {"slices": 16},
    }
    final = state(train(front, tmp_path / "whole", tiny_model(**config), max_steps=4))
    start_with([2], tmp_path / "killed", tmp_path / "whole")
    torch.manual_seed(99)
    resumed = train(front, tmp_path / "killed", tiny_model(**config), max_steps=4, resume=True)
    assert_same(state(resumed), final)
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert "embedding_visreg" in history(tmp_path / "whole")[-1]


def test_a_kill_between_any_two_files_changes_nothing(whole, tmp_path):
    front, source, final = whole
    folder = tmp_path / "run"
    ends = [
        Life(train_until, front, str(folder), files, any(folder.glob("checkpoint-*"))).end()
        for files in (46, 33, 71, None)
    ]
    assert ends == [KILLED, KILLED, KILLED, 0]
    assert_same(state(train(front, folder, resume=True)), final)
    assert history(folder) == history(source)
    assert not (folder / ".saving").exists()


@pytest.mark.slow
@pytest.mark.parametrize("front", FRONTS)
def test_twenty_kills_at_random_moments(front, tmp_path):
    """SIGKILL during steps and during saves, one after each step."""
    settings = {"max_steps": 300, "save_steps": 1, "logging_steps": 7, "gradient_accumulation_steps": 1}
    folder, generator, saving = tmp_path / "run", random.Random(1), []
    for _ in range(20):
        began = time.time()
        life = Life(_train_long, front, str(folder), settings, any(folder.glob("checkpoint-*")))
        # Not before it trains: a history or a newer checkpoint.
        while time.time() - began < 120 and not _written_since(folder, began):
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 1.0))
        life.process.kill()
        assert life.end() == -signal.SIGKILL
        saving.append((folder / ".saving").exists())
    assert 0 < sum(saving) < 20
    final = state(train(front, folder, resume=True, **settings))
    assert_same(final, state(train(front, tmp_path / "whole", **settings)))
    assert history(folder) == history(tmp_path / "whole")


def _train_long(front, folder, settings, resume):
    train(front, folder, resume=resume, **settings)


def _written_since(folder, moment):
    return any(path.stat().st_ctime > moment for path in folder.glob("checkpoint-*"))


def test_any_damaged_file_of_the_newest_checkpoint_is_named_and_the_one_before_taken(whole, tmp_path, caplog):
    front, source, final = whole
    names = sorted(
        path.relative_to(source / "checkpoint-6").as_posix()
        for path in (source / "checkpoint-6").rglob("*")
        if path.is_file()
    )
    assert {"model.safetensors", "manifest.json", "run.json", "step_state_0.json"} < set(names)
    assert len(names) >= 8
    args = tiny_arguments(tmp_path / "run", resume=True)
    for name, damage in itertools.product(names, ("cut", "flip")):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        start_with([4, 6], tmp_path / "run", source)
        path = tmp_path / "run" / "checkpoint-6" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
        caplog.clear()
        if front == "trainer":
            found = OrthoSSLTrainer(model=tiny_model(), args=args, train_dataset=digits()).args.resume_from_checkpoint
            assert found == str(tmp_path / "run" / "checkpoint-4")
        else:
            from hf_orthossl.training.loop import STATE
            from hf_orthossl.training.resume import settled_arguments

            assert settled_arguments(args, STATE).resume_from_checkpoint == str(tmp_path / "run" / "checkpoint-4")
        said = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
        assert len(said) == 1
        # The manifest may still be one, with a checksum that another file does not have.
        assert said[0].startswith(f"checkpoint-6 is damaged ({'' if name == 'manifest.json' else name}")
        assert said[0].endswith("resuming from checkpoint-4")
    assert_same(state(train(front, tmp_path / "run", resume=True)), final)
    assert history(tmp_path / "run") == history(source)


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a few checkpoints."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted")
    yield folder / "run"
    subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_full_disk_is_survived(front, source, folder, fill, empty, final, monkeypatch):
    start_with([4], folder, source)
    begin = SSLStep.begin

    def begin_on_full_disk(self, step, *others):
        # After the rehearsal, which refuses a disk that is full from the start.
        if step == 4:
            fill()
        begin(self, step, *others)

    monkeypatch.setattr(SSLStep, "begin", begin_on_full_disk)
    try:
        with pytest.raises(OSError, match=r"could not save checkpoint .*checkpoint-6 .*earlier checkpoints are intact"):
            train(front, folder, resume=True)
    finally:
        empty()
        monkeypatch.undo()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"checkpoint-4"}
    assert_same(state(train(front, folder, resume=True)), final)


def test_a_full_disk_is_survived(whole, small_disk, monkeypatch):
    front, source, final = whole

    def fill():
        size = sum(path.stat().st_size for path in (source / "checkpoint-4").iterdir())
        with (small_disk / "rest").open("wb") as file:
            file.write(bytes(shutil.disk_usage(small_disk).free - size // 2))

    assert_full_disk_is_survived(front, source, small_disk, fill, (small_disk / "rest").unlink, final, monkeypatch)


def test_a_limit_on_files_is_survived(whole, tmp_path, monkeypatch):
    """The same by a limit that any user may set: no file may grow beyond 20 kB."""
    front, source, final = whole
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert_full_disk_is_survived(
        front,
        source,
        tmp_path / "run",
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1])),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
        final,
        monkeypatch,
    )
