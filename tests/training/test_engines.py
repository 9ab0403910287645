"""Runs that `accelerate launch` starts with our configs: real processes, one run folder, one word from all of them."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from engines_on_cpu import fsdp2, pretended_gpus
from safetensors.torch import load_file
from survival_runs import digits, in_group, tiny_arguments, tiny_model
from torch.distributed import TCPStore

from hf_orthossl.cli import perform
from hf_orthossl.distributed import environment
from hf_orthossl.distributed.collectives import on_main, rank
from hf_orthossl.distributed.environment import LIMIT, TIMEOUT
from hf_orthossl.training.callbacks.reporting import read_history
from hf_orthossl.training.engines import check_engine, engine_settings, prepare_model
from hf_orthossl.training.resume import begin_run

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "scripts" / "accelerate_configs"
FRONTS = {
    "loop": ["scripts/pretrain.py"],
    "trainer": ["-m", "hf_orthossl", "pretrain"],
}
OPTIONS = """
    --backbone_config channels=[16,16,32,32] --regularizer so --gamma 1e-4 --optim sgd --learning_rate 0.01
    --max_steps 4 --logging_steps 1 --spectra_steps 0.5 --knn_images 500 --disable_tqdm true
"""
MOCO = ["--method", "mocov2plus", "--method_config", "queue_size=512"]
RUN = OPTIONS.split()


def launch(config, *arguments):
    """A finished `accelerate launch` of what follows, that no test has told to use the CPU."""
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config), *arguments]
    return subprocess.run(command, env=os.environ | settings, cwd=ROOT, capture_output=True, text=True, timeout=300)


def history(folder):
    entries = read_history(folder)
    return [entry for entry in entries if "loss" in entry]


def assert_same_run(folder, single):
    """What one process with the whole batch logged and learned, as far as float32 goes.

    There sums in another order, on another number of threads even, soon matter; test_engine_equality.py has float64.
    """
    expected, found = history(single), history(folder)
    assert [entry["step"] for entry in found] == [1, 2, 3, 4]
    for before, after in zip(expected, found, strict=True):
        assert before.keys() == after.keys()
        for name in ("loss", "ssl", "orthogonality", "embedding_std", "learning_rate", "epoch"):
            tolerance = 1e-5 if before["step"] <= 2 else 1e-2
            assert after[name] == pytest.approx(before[name], rel=tolerance), (name, after["step"])
    weights, reference = (load_file(f / "encoder" / "model.safetensors") for f in (folder, single))
    assert weights.keys() == reference.keys()
    matrices = {name: value for name, value in reference.items() if value.ndim > 1}
    assert all((weights[name] - value).norm() <= 1e-2 * value.norm() for name, value in matrices.items())


def assert_complete(folder, done, count):
    """One whole run folder, and every line of the main process once."""
    assert done.returncode == 0, done.stderr
    assert {"config.yaml", "encoder", "history.jsonl", "results.json", "checkpoint-4"} <= {
        path.name for path in folder.iterdir()
    }
    training = json.loads((folder / "encoder" / "config.json").read_text())["orthossl"]["training"]
    assert training["processes"] == count
    assert training["images_per_step"] == 64
    for line in ("data  ", "model  ", "kNN  ", "encoder  "):
        assert sum(printed.startswith(line) for printed in done.stdout.splitlines()) == 1, line


def one_process(front, folder, *more):
    perform(
        "pretrain",
        [*RUN, *more, "--output_dir", str(folder), "--per_device_train_batch_size", "64", "--use_cpu"],
        front=front,
    )


def test_two_launched_processes_are_one_run(tmp_path):
    """`accelerate launch` with DDP, twice half the batch: what one process with the whole batch does."""
    script = FRONTS["loop"]
    options = [*RUN, *MOCO, "--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "32"]
    done = launch("two_cpu_processes.yaml", *script, *options)
    assert_complete(tmp_path / "two", done, 2)
    one_process("loop", tmp_path / "one", *MOCO)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_two_launched_processes_are_one_run_of_the_trainer(tmp_path):
    script = FRONTS["trainer"]
    options = [*RUN, *MOCO, "--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "32"]
    assert_complete(tmp_path / "two", launch("two_cpu_processes.yaml", *script, *options), 2)
    one_process("trainer", tmp_path / "one", *MOCO)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("front", "method", "penalty"),
    [("loop", ["--method", "byol"], "so"), ("trainer", MOCO, "srip"), ("loop", ["--method", "swav"], "srip")],
    ids=["loop-byol-so", "trainer-mocov2plus-srip", "loop-swav-srip"],
)
def test_two_sharded_processes_are_one_run(front, method, penalty, tmp_path):
    """The config for GPUs, as it is; accelerate is told that there are some."""
    more = [*method, "--regularizer", penalty]
    options = [*RUN, *more, "--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "32"]
    done = launch("fsdp2.yaml", "--num_processes", "2", "tests/support/engines_on_cpu.py", front, *options)
    assert_complete(tmp_path / "two", done, 2)
    one_process(front, tmp_path / "one", *more)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_two_machines(tmp_path):
    """The config for several machines, both of them here."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "multi_node.yaml")]
    command += ["--num_processes=2", "--main_process_port=29713"]
    options = [*RUN, *MOCO, "--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "32"]
    machines = [
        subprocess.Popen(
            [*command, f"--machine_rank={rank}", "scripts/pretrain.py", *options],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], printed
    one_process("loop", tmp_path / "one", *MOCO)
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert "encoder  " in printed[0]
    assert "encoder  " not in printed[1]


@pytest.mark.slow
def test_what_all_processes_find_is_said_once(tmp_path):
    script = tmp_path / "pretrain.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "from hf_orthossl.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as stop:\n"
        "    pathlib.Path(__file__).with_name('code' + os.environ['RANK']).write_text(str(stop.code))\n"
        "    raise\n"
    )
    done = launch("two_cpu_processes.yaml", str(script), "pretrain", "--method", "simcrl")
    # The launcher's own report, at the end, repeats the line with words in front.
    said = [line for line in done.stderr.splitlines() if line.startswith("orthossl pretrain: error: ")]
    assert said == ["orthossl pretrain: error: method 'simcrl' is unknown: did you mean 'simclr'?"]
    assert done.returncode != 0
    # The launcher may have ended the second process before it wrote its code.
    assert {path.read_text() for path in tmp_path.glob("code*")} == {"2"}


@pytest.mark.slow
def test_one_process_s_error_ends_all(tmp_path):
    """A disk that is full for one process only, in the middle of training."""
    script = tmp_path / "pretrain.py"
    script.write_text(
        "import sys\n"
        "from hf_orthossl.cli import perform, run\n"
        "from hf_orthossl.training.step import SSLStep\n"
        "loss = SSLStep.loss\n"
        "def failing(self, *args, **kwargs):\n"
        "    if self.process_index == 1 and self.model.method.progress.step == 2:\n"
        "        raise OSError('no space left')\n"
        "    return loss(self, *args, **kwargs)\n"
        "SSLStep.loss = failing\n"
        "run('pretrain', lambda rest: perform('pretrain', rest, front='loop'), sys.argv[1:])\n"
    )
    options = [*RUN, "--output_dir", str(tmp_path / "run"), "--per_device_train_batch_size", "32"]
    done = launch("two_cpu_processes.yaml", str(script), *options)
    assert done.returncode != 0
    assert next(line for line in done.stderr.splitlines() if "rror: " in line) == "pretrain: error: no space left"
    assert "Connection" not in done.stderr


def test_the_first_of_several_to_fail_says_so(monkeypatch, capsys):
    """Two calls stand for two processes: the launcher's store is what they have in common."""
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=10))
    launched = {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert not environment.peer_failed()
    environment.print_error_once("first")
    environment.print_error_once("second")
    assert capsys.readouterr().err == "first\n"
    assert environment.peer_failed()
    # Without such a store no process knows of the others.
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    environment.print_error_once("no space left")
    assert capsys.readouterr().err == "[rank 1] no space left\n"
    assert not environment.peer_failed()
    monkeypatch.delenv("WORLD_SIZE")
    environment.print_error_once("no space left")
    assert capsys.readouterr().err == "no space left\n"


class _Asked(Exception):
    pass


def test_torch_waits_as_long_as_the_main_process_may_measure_and_the_watch_for_minutes(monkeypatch, tmp_path):
    asked = {}

    def init_process_group(**settings):
        asked.update(settings)
        raise _Asked

    args = tiny_arguments(tmp_path)
    assert args.ddp_timeout == LIMIT
    (timeout,) = [kind.timeout for kind in engine_settings(args)["kwargs_handlers"] if hasattr(kind, "timeout")]
    assert timeout == TIMEOUT
    monkeypatch.setattr("torch.distributed.init_process_group", init_process_group)
    monkeypatch.setattr("hf_orthossl.distributed.rendezvous.meet", lambda limit: asked.update(limit=limit))
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.raises(_Asked):
            tiny_arguments(tmp_path, ddp_timeout=77)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert (asked["limit"], asked["timeout"]) == (77, TIMEOUT)


def test_one_process_takes_one_of_several_gpus(monkeypatch, tmp_path, caplog):
    from transformers import TrainingArguments

    def with_gpus(args):
        set_up(args)
        args._n_gpu = 4

    set_up = TrainingArguments.__post_init__
    monkeypatch.setattr(TrainingArguments, "__post_init__", with_gpus)
    args = tiny_arguments(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert (args.n_gpu, args.train_batch_size, args.images_per_step) == (1, 8, 8)
    assert "one of the 4 GPUs of this machine: start it with `accelerate launch`" in caplog.text


def refused_by_main():
    def check():
        raise FileNotFoundError("no checkpoint") if rank() == 0 else AssertionError("asked elsewhere")

    try:
        on_main(check)
    except OSError as error:
        return on_main(lambda: rank() + 7), type(error), str(error)


def test_what_the_main_process_finds_all_are_told(two_processes):
    assert two_processes.run(refused_by_main) == [(7, FileNotFoundError, "no checkpoint")] * 2


def _begin(folder, **settings):
    try:
        begin_run(tiny_model(), digits(), tiny_arguments(folder, **settings), "loop_state.json")
    except ValueError as error:
        return str(error)


def begin_with(folder, name, values):
    return in_group(_begin, rank(), len(values), folder, **{name: values[rank()]})


def test_processes_with_different_options_are_refused_and_may_read_images_in_different_ways(two_processes, tmp_path):
    said = two_processes.run(begin_with, tmp_path, "learning_rate", (0.1, 0.2))
    assert said == [said[0]] * 2
    assert said[0].startswith("learning_rate is 0.1 on process 0 and 0.2 on process 1: start all processes")
    assert two_processes.run(begin_with, tmp_path, "cache_images", ("never", "auto")) == [None, None]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_what_accelerate_takes(path):
    """Its own reader and checks: an unknown key, or one of another engine, is refused."""
    engines = {
        "one_gpu": DistributedType.NO,
        "fsdp2": DistributedType.FSDP,
        "deepspeed_zero2": DistributedType.DEEPSPEED,
    }
    engine = engines.get(path.stem, DistributedType.MULTI_GPU)
    assert load_config_from_file(str(path)).distributed_type == engine
    args = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    args, _, _ = _validate_launch_command(args)
    assert (args.multi_gpu, args.use_fsdp, args.use_deepspeed) == tuple(
        engine == other for other in (DistributedType.MULTI_GPU, DistributedType.FSDP, DistributedType.DEEPSPEED)
    )
    comment = path.read_text().split("\ncompute_environment")[0]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert f"accelerate launch --config_file scripts/accelerate_configs/{path.name}" in comment


def test_all_processes_start_from_the_main_one_s_weights(two_processes):
    """Whatever their seeds, and buffers too, which DDP is told not to send."""
    for sharded in (False, True):
        first, second = two_processes.run(_prepare, sharded)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        assert any("bank" in name for name in first)


def _prepare(sharded):
    with fsdp2() if sharded else pretended_gpus():
        accelerator, model = Accelerator(), tiny_model()
        assert accelerator.is_fsdp2 == sharded
        for tensor in model.state_dict().values():
            tensor.fill_(accelerator.process_index)
        settings = {"sync_batchnorm": True, "gradient_cache": None, "gradient_checkpointing": False}
        prepare_model(model, accelerator, SimpleNamespace(**settings, freeze=None, freeze_epochs=0.0))
        state = model.state_dict() if sharded else dict(model.named_buffers())
        return {name: value.clone() for name, value in state.items()}


def test_engines_that_do_not_fit_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    args = tiny_arguments(tmp_path)
    engine = SimpleNamespace(num_processes=2, device=torch.device("cpu"), is_fsdp2=False)
    engine.distributed_type = DistributedType.MULTI_CPU
    with pytest.raises(ValueError, match="only on GPUs"):
        prepare_model(tiny_model(), engine, args)
    engine.distributed_type = DistributedType.FSDP
    with pytest.raises(ValueError, match="fsdp_version is 1"):
        prepare_model(tiny_model(), engine, args)
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    check_engine(tmp_path, engine)
    engine.distributed_type = DistributedType.MULTI_GPU
    with pytest.raises(ValueError, match="saved with FSDP, but this run is without FSDP"):
        check_engine(tmp_path, engine)
