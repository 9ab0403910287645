"""Runs that are killed, interrupted or run out of disk, and go on as if nothing had happened."""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
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
    in_group,
    state,
    tiny_arguments,
    tiny_model,
    train,
    train_until,
)

from hf_orthossl.cli import main
from hf_orthossl.modeling import SSLModel
from hf_orthossl.training import OrthoSSLTrainer
from hf_orthossl.training.interruption import Interrupted, Interruption


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
    assert {"model.safetensors", "manifest.json", "run_shape.json", "step_state_0.json"} < set(names)
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
            from hf_orthossl.training.elastic import resumed
            from hf_orthossl.training.loop_state import STATE

            assert resumed(args, STATE).resume_from_checkpoint == str(tmp_path / "run" / "checkpoint-4")
        said = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
        assert len(said) == 1
        # The manifest may still be one, with a checksum that another file does not have.
        assert said[0].startswith(f"checkpoint-6 is damaged ({'' if name == 'manifest.json' else name}")
        assert said[0].endswith("resuming from checkpoint-4")
    assert_same(state(train(front, tmp_path / "run", resume=True)), final)
    assert history(tmp_path / "run") == history(source)


class SignalAt:
    """A model that sends its own process signals at the end of optimizer step `step`."""

    def __init__(self, step, *signals, **config):
        self.model, self.step, self.signals = tiny_model(**config), step, signals
        self.end_step, self.done = self.model.end_step, 0
        self.model.end_step = self

    def __call__(self, skipped=False):
        self.end_step(skipped)
        self.done += 1
        if self.done == self.step:
            for number in self.signals:
                os.kill(os.getpid(), number)
                time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_exits(whole, number, code, tmp_path, capfd):
    front, source, final = whole
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        train(front, tmp_path, SignalAt(5, number).model, save_strategy="epoch")
    assert stop.value.code == code
    assert signal.getsignal(number) == before
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"stopped by {number.name} after step 5: {tmp_path}/checkpoint-5 is saved")
    assert "--resume" in line
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-5"}
    assert_same(state(train(front, tmp_path, resume=True)), final)
    assert history(tmp_path) == history(source)


@pytest.mark.parametrize("front", FRONTS)
def test_a_second_interrupt_exits_at_once(front, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(front, tmp_path, SignalAt(3, signal.SIGINT, signal.SIGINT).model, save_steps=100)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_signals_are_left_alone_where_they_were_ignored_and_outside_the_main_thread():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    seen = []

    def inside():
        with Interruption():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_an_interrupted_command_leaves_no_results_and_goes_on(tmp_path, monkeypatch, capfd):
    end_step, done = SSLModel.end_step, []

    def interrupted(self, skipped=False):
        end_step(self, skipped)
        done.append(1)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SSLModel, "end_step", interrupted)
    options = "--backbone_config channels=[8,8,16,16] --per_device_train_batch_size 32 --knn_images 50 --use_cpu"
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", *options.split(), "--max_steps", "3", "--output_dir", str(tmp_path)])
    assert stop.value.code == 143
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "encoder").exists()
    main(["pretrain", "--resume", "--output_dir", str(tmp_path)])
    assert (tmp_path / "encoder" / "model.safetensors").exists()
    assert len(done) == 3
    assert json.loads((tmp_path / "results.json").read_text())[-1]["step"] == "end"


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


def assert_full_disk_is_survived(front, source, folder, fill, empty, final):
    start_with([4], folder, source)
    fill()
    try:
        with pytest.raises(OSError, match=r"could not save checkpoint .*checkpoint-6 .*earlier checkpoints are intact"):
            train(front, folder, resume=True)
    finally:
        empty()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"checkpoint-4"}
    assert_same(state(train(front, folder, resume=True)), final)


def test_a_full_disk_is_survived(whole, small_disk):
    front, source, final = whole

    def fill():
        size = sum(path.stat().st_size for path in (source / "checkpoint-4").iterdir())
        with (small_disk / "rest").open("wb") as file:
            file.write(bytes(shutil.disk_usage(small_disk).free - size // 2))

    assert_full_disk_is_survived(front, source, small_disk, fill, (small_disk / "rest").unlink, final)


def test_a_limit_on_files_is_survived(whole, tmp_path):
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
    )


def _train_as_one_of_several(front, folder, signal_at, changes):
    """In a process of a group: trains, one of them getting a signal; what each exits with, and its final state."""
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    signals = [signal.SIGTERM] if rank == processes - 1 else []
    model = SignalAt(signal_at, *signals, **STEADY).model
    try:
        in_group(train, rank, processes, front, folder, model, **changes)
    except Interrupted as stop:
        return stop.code
    return state(model)


# Nothing drawn that would depend on the process.
STEADY = {"backbone_config": {"channels": [8, 8, 16, 16]}}
SHARED = {"max_steps": 4, "save_steps": 100, "optim": "sgd", "learning_rate": 0.01}


@pytest.mark.parametrize("front", FRONTS)
def test_one_of_two_processes_gets_the_signal_and_either_number_goes_on(front, two_processes, tmp_path, capfd):
    """Both stop after the same step; one process alone, or two again, then come to what one did from the start."""
    folder, pair = tmp_path / "run", {"per_device_train_batch_size": 8, **SHARED}
    assert two_processes.run(_train_as_one_of_several, front, str(folder), 2, pair) == [143, 143]
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2"}
    shutil.copytree(folder, tmp_path / "alone")

    one, other = two_processes.run(_train_as_one_of_several, front, str(folder), None, {"resume": True, **pair})
    assert_same(one, other)
    straight = two_processes.run(_train_as_one_of_several, front, str(tmp_path / "straight"), None, pair)[0]
    assert_same(one, straight)
    assert history(folder) == history(tmp_path / "straight")

    alone = state(train(front, tmp_path / "alone", tiny_model(**STEADY), resume=True, **pair))
    assert "2 processes before, 1 now: --per_device_train_batch_size 16 keeps 32 images" in capfd.readouterr().out
    reference = state(train(front, tmp_path / "reference", tiny_model(**STEADY), **SHARED))
    for name, tensor in reference.items():
        torch.testing.assert_close(
            alone[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
        torch.testing.assert_close(
            straight[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
