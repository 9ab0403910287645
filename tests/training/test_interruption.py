"""SIGTERM and Ctrl-C, to one process, to one of two, and to a command: it saves, says so, exits, and goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from survival_runs import FRONTS, assert_same, history, in_group, state, tiny_model, train

from hf_orthossl.cli import main
from hf_orthossl.distributed.ending import REPEAT
from hf_orthossl.modeling import SSLModel
from hf_orthossl.training.interruption import Interrupted, Interruption


@pytest.fixture(scope="module", params=FRONTS)
def whole(request, tmp_path_factory):
    """A front, the folder of a run of 8 steps without interruption, and its final state."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, state(train(request.param, folder))


class SignalAt:
    """A model that sends its own process signals at the end of optimizer step `step`."""

    def __init__(self, step, *signals, **config):
        self.model, self.step, self.signals = tiny_model(**config), step, signals
        self.end_step, self.done = self.model.end_step, 0
        self.model.end_step = self

    def __call__(self, *arguments):
        parts = self.end_step(*arguments)
        self.done += 1
        if self.done == self.step:
            for number in self.signals:
                os.kill(os.getpid(), number)
                # A signal that is repeated at once counts as one.
                time.sleep(2 * REPEAT)
        return parts


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
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


def test_signals_are_left_alone_where_they_were_ignored_and_outside_the_main_thread(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption(tmp_path):
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    seen = []

    def inside():
        with Interruption(tmp_path):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_an_interrupted_command_leaves_no_results_and_goes_on(tmp_path, monkeypatch, capfd):
    end_step, done = SSLModel.end_step, []

    def interrupted(self, *arguments):
        parts = end_step(self, *arguments)
        done.append(1)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return parts

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


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_leaves_the_workers_their_work(tmp_path):
    """As batch systems and terminals send it: the loader's workers get it too, and the step still needs them."""
    options = "--knn_images 0 --backbone_config channels=[8,8,16,16] --per_device_train_batch_size 16 --use_cpu"
    command = [sys.executable, "-m", "hf_orthossl", "pretrain", *options.split(), "--dataloader_num_workers", "2"]
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = tmp_path / number.name
        process = subprocess.Popen(
            [*command, "--output_dir", str(folder)], start_new_session=True, stderr=subprocess.PIPE, text=True
        )
        while not (folder / "history.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 128 + number
        assert said.strip().splitlines()[-1].startswith(f"stopped by {number.name} after step")
        assert "Traceback" not in said


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
    assert "(1 processes, 2 before): --per_device_train_batch_size 16 keeps 32 images" in capfd.readouterr().out
    reference = state(train(front, tmp_path / "reference", tiny_model(**STEADY), **SHARED))
    for name, tensor in reference.items():
        torch.testing.assert_close(
            alone[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
        torch.testing.assert_close(
            straight[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
