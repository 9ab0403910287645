"""Which options of training are taken: three lists of every training argument, and one line for each refusal."""

import dataclasses
import inspect
import subprocess
import sys
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import pytest
from survival_runs import tiny_model
from transformers import Trainer, TrainingArguments

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, pretrain
from hf_orthossl.cli import main
from hf_orthossl.options import default_of
from hf_orthossl.training.inherited import ELSEWHERE, HIDDEN, REFUSED, refusal
from hf_orthossl.training.options import TrainingOptions
from hf_orthossl.training.trainer import WITHOUT_EFFECT

ROOT = Path(__file__).parents[2]
WORKS = {spec.name for spec in fields(TrainingOptions)}
HIDDEN_NAMES = [name for names in HIDDEN.values() for name in names]
INHERITED = {spec.name: spec for spec in fields(TrainingArguments)}


def refused(capsys, argv):
    """The one line that a bad command prints."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_no_option_is_in_two_lists():
    names = [*WORKS, *REFUSED, *HIDDEN_NAMES, *ELSEWHERE]
    assert len(names) == len(set(names))


def test_every_training_argument_is_in_a_list():
    """One of a newer release that no list names is refused as well: see below."""
    assert set(INHERITED) <= {*WORKS, *REFUSED, *HIDDEN_NAMES}


@pytest.mark.parametrize("name", [*REFUSED, *HIDDEN_NAMES, *ELSEWHERE])
def test_what_is_not_taken_is_said_in_one_line(name, capsys, tmp_path):
    if name != "debug":  # That of every command, which shows tracebacks.
        line = refused(capsys, ["pretrain", f"--{name}", "1"])
        assert line == f"orthossl pretrain: error: --{name} cannot be used: {refusal(name)}"
        assert line == refused(capsys, ["pretrain", f"--{name}=1"])
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{name}: 1")
    assert f"recipe.yaml: {name} cannot be used: " in refused(capsys, ["pretrain", "--config", str(path)])
    with pytest.raises(ValueError, match=f"^{name} cannot be used: "):
        pretrain("digits", **{name: 1})


@pytest.mark.parametrize("name", sorted(set(INHERITED) - WORKS))
def test_python_cannot_set_them_either(name):
    with pytest.raises(ValueError, match=f"^{name} cannot be used: "):
        OrthoSSLTrainingArguments(use_cpu=True, **{name: object()})


def test_an_argument_of_a_newer_release_is_refused():
    @dataclass
    class Newer(OrthoSSLTrainingArguments):
        shiny: bool = False

    Newer(use_cpu=True)
    with pytest.raises(ValueError, match=r"^shiny cannot be used: it is an option of transformers.TrainingArguments"):
        Newer(use_cpu=True, shiny=True)


def test_arguments_can_be_copied_with_changes():
    args = OrthoSSLTrainingArguments(use_cpu=True, optim="adamw_torch", hub_token="hf_secret")
    assert dataclasses.replace(args, learning_rate=0.5).learning_rate == 0.5
    assert "hf_secret" not in repr(args)


def test_defaults_are_stated_once():
    """Python, the command line and the help have the same ones."""
    for spec in fields(TrainingOptions):
        (inherited,) = (one for one in fields(OrthoSSLTrainingArguments) if one.name == spec.name)
        assert default_of(inherited) == default_of(spec) is not MISSING
        assert spec.metadata["help"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--fp16 --use_cpu", "fp16 needs a GPU: pass --bf16"),
        ("--fp16 --bf16", "exclude each other"),
        ("--tf32 --use_cpu", "tf32 is True, which only NVIDIA's GPUs have"),
        ("--optim larss", "optim is 'larss': did you mean 'lars'?"),
        ("--optim adamw_8bit", "optim adamw_8bit needs the package bitsandbytes: pip install bitsandbytes"),
        ("--optim adamw_torch_4bit", "pip install torchao"),
        ("--optim stable_adamw", "pip install torch-optimi"),
        ("--optim galore_adamw", "optim is 'galore_adamw'"),
        ("--optim sgd --adam_beta1 0.8", "adam_beta1 is 0.8, but sgd does not read it"),
        ("--optim adamw_torch --momentum 0.5", "momentum is 0.5, but adamw_torch does not read it"),
        ("--optim sgd --optim_args nesterov=true", "sgd has no further arguments"),
        ("--optim lars --optim_args trust_coef=1", "did you mean 'trust_coeff'?"),
        ("--report_to wandb", "report_to wandb needs the package wandb: pip install wandb"),
        ("--report_to comet_ml", "pip install comet-ml"),
        ("--report_to tensorbord", "did you mean 'tensorboard'?"),
        ("--lr_scheduler_type cosin", "did you mean 'cosine'?"),
        ("--lr_scheduler_type reduce_lr_on_plateau", "it needs labels to evaluate with"),
        ("--lr_scheduler_type cosine_with_min_lr", "pass --lr_scheduler_kwargs min_lr=1e-4"),
        ("--lr_scheduler_type constant --warmup_steps 5", "pass --lr_scheduler_type constant_with_warmup"),
        ("--lr_scheduler_type constant --lr_scheduler_kwargs a=1", "constant has no arguments"),
        ("--lr_scheduler_kwargs num_cycle=2 --use_cpu", "cosine does not take it"),
        ("--report_to none tensorboard", "none excludes the others"),
        ("--torch_compile_mode fast --use_cpu", "torch_compile_mode is 'fast': Unrecognized mode"),
        ("--torch_compile_backend inducter --use_cpu", "did you mean 'inductor'?"),
        ("--ddp_backend foo", "ddp_backend is 'foo': choose from nccl, gloo"),
        ("--zzz 1", "unknown option '--zzz': orthossl pretrain --help lists the options"),
        ("--save_strategy best", "save_strategy is 'best': choose from steps, epoch, no"),
        ("--save_strategy epoch --save_steps 5", "save_steps is 5, but save_strategy is epoch"),
        ("--save_steps 0", "save_steps is 0"),
        ("--logging_steps 2.5", "logging_steps is 2.5"),
        ("--hub_strategy checkpoint", "hub_strategy is 'checkpoint': choose from every_save, end"),
        ("--hub_model_id a/b", "hub_model_id is a/b, but nothing is published: pass --push_to_hub too"),
        ("--hub_token hf_secret", "hub_token is given, but nothing is published"),
        ("--dataloader_prefetch_factor 2", "pass --dataloader_num_workers too"),
        ("--dataloader_multiprocessing_context thread", "choose from fork, spawn, forkserver"),
        ("--max_steps 0", "max_steps is 0: it must be 1 or more"),
        ("--max_steps 1.5", "--max_steps is '1.5': it must be a whole number"),
        ("--num_train_epochs 0", "num_train_epochs is 0: it must be above 0"),
        ("--gradient_accumulation_steps 0", "gradient_accumulation_steps is 0: it must be 1 or more"),
        ("--max_steps 5 --num_train_epochs 2", "max_steps and num_train_epochs exclude each other"),
        ("--seed 5000000000", "seed is 5000000000: it must be below 2**32"),
        ("--seed -1", "seed is -1: it must be 0 or more"),
        ("--learning_rate nan", "--learning_rate is 'nan': it must be a number"),
        ("--bf16 maybe", "--bf16 is 'maybe': it must be true or false"),
        ("--gamma", "--gamma: expected one argument"),
        ("--streaming --cache_images always", "cache_images is always, which a stream cannot have"),
        ("--spectra_steps 0 --spectra_threshold 0.5", "spectra_steps is 0, which measures none"),
    ],
)
def test_options_without_effect_and_packages_that_are_missing(options, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_orthossl.training.choices.find_spec", lambda module: None)
    line = refused(capsys, ["pretrain", *options.split(), "--output_dir", str(tmp_path / "run")])
    assert said in line
    assert "hf_secret" not in line
    assert not (tmp_path / "run").exists()


def test_the_method_s_optimizer_must_read_the_settings(capsys, tmp_path):
    argv = ["pretrain", "--adam_beta1", "0.5", "--use_cpu", "--output_dir", str(tmp_path / "run")]
    assert "adam_beta1 is 0.5, but sgd does not read it" in refused(capsys, argv)


def test_the_table_of_options_is_up_to_date():
    script = ROOT / "scripts" / "training_options.py"
    table = subprocess.run([sys.executable, script], capture_output=True, check=True, timeout=60).stdout
    assert (ROOT / "docs" / "training_options.md").read_bytes() == table


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_arguments_of_the_trainer_without_effect(name):
    with pytest.raises(ValueError, match=f"^{name} is not used, because "):
        OrthoSSLTrainer(None, None, "digits", **{name: object()})


def test_every_argument_of_the_trainer_is_used_or_refused():
    used = {"self", "model", "args", "train_dataset", "processing_class", "callbacks", "optimizers"}
    assert set(inspect.signature(Trainer.__init__).parameters) <= used | set(WITHOUT_EFFECT)


def test_plain_training_arguments_are_refused():
    with pytest.raises(ValueError, match=r"^args is TrainingArguments: pass OrthoSSL"):
        OrthoSSLTrainer(tiny_model(), TrainingArguments(use_cpu=True), "digits")
