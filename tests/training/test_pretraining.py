"""`hf_orthossl.pretrain`: the command as a function, with the same folder and the same weights."""

import contextlib
import io
import json

import datasets
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from hf_orthossl import OrthogonalityCallback, OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel, pretrain
from hf_orthossl.cli import main
from hf_orthossl.data import load_source
from hf_orthossl.encoders import load_encoder
from hf_orthossl.pretraining import ModelArguments, PretrainingRun
from hf_orthossl.regularization import PENALTIES
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.building import settled_model

OPTIONS = {
    "backbone_config": {"channels": [8, 8, 16, 16]},
    "per_device_train_batch_size": 32,
    "max_steps": 2,
    "logging_steps": 1,
    "knn_images": 100,
    "use_cpu": True,
}
FLAGS = (
    "--backbone_config channels=[8,8,16,16] --per_device_train_batch_size 32 --max_steps 2 --logging_steps 1 "
    "--knn_images 100 --use_cpu"
)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def entries(folder):
    """The log without the summary, in which a Trainer tells its time."""
    return [entry for entry in PretrainingRun(folder).history if "loss" in entry]


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    folder = tmp_path_factory.mktemp("function") / "run"
    return pretrain("digits", **OPTIONS, output_dir=folder)


def test_command_and_function_leave_the_same_folder(called, tmp_path):
    with contextlib.redirect_stdout(io.StringIO()):
        main(["pretrain", *FLAGS.split(), "--output_dir", str(tmp_path / "run")])
    command = PretrainingRun(tmp_path / "run")
    assert files(called.output_dir) == files(command.output_dir)
    for checkpoint in ("encoder", "checkpoint-2"):
        one, other = (load_file(run.output_dir / checkpoint / "model.safetensors") for run in (called, command))
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert entries(called.output_dir) == entries(command.output_dir)
    assert called.results == command.results
    assert called.config == command.config
    cards = [(run.encoder / "README.md").read_text().replace(str(run.output_dir), "RUN") for run in (called, command)]
    assert cards[0] == cards[1]


def test_a_run_knows_its_folder(called):
    assert called.encoder.name == "encoder"
    assert [entry["step"] for entry in entries(called.output_dir)] == [1, 2]
    assert [result.protocol["step"] for result in called.results] == [0, 0, "end", "end"]
    assert called.config["method"] == "simclr"
    assert called.publication is None


def test_a_data_set_in_memory_is_resumed_from_python_only(tmp_path):
    rows = load_source("digits").dataset.select(range(64)).cast_column("image", datasets.Image())
    options = OPTIONS | {"per_device_train_batch_size": 16, "output_dir": tmp_path / "run", "knn_images": 0}
    run = pretrain(rows, **options | {"max_steps": 1})
    assert run.results == []
    resumed = pretrain(rows, output_dir=run.output_dir, resume=True, max_steps=2)
    assert [entry["step"] for entry in entries(resumed.output_dir)] == [1, 2]
    with pytest.raises(SystemExit):
        main(["pretrain", "--resume", "--max_steps", "3", "--output_dir", str(run.output_dir)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gama": 1e-4}, "unknown option 'gama': did you mean 'gamma'?"),
        ({"dataset": "digits"}, "pass the data set as the first argument"),
        ({"front": "lop"}, "did you mean 'loop'?"),
        ({"method": "simcrl"}, "did you mean 'simclr'?"),
        ({"config": "/no/such.yaml"}, "no such file"),
    ],
)
def test_bad_options_are_one_line(options, said, tmp_path):
    with pytest.raises((ValueError, OSError), match=said.replace("?", r"\?")) as failure:
        pretrain("digits", output_dir=tmp_path / "run", **options)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "run").exists()


def test_a_recipe_and_options_after_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("method: {name: byol, hidden_dim: 32, output_dim: 16}\ngamma: 1e-3\nlearning_rate: 1e-2\n")
    options = OPTIONS | {"max_steps": 1, "knn_images": 0, "gamma": 1e-4, "method_config": {"output_dim": 8}}
    run = pretrain("digits", config=path, output_dir=tmp_path / "run", **options)
    config = SSLModel.from_pretrained(run.output_dir / "checkpoint-1").config
    assert (config.method, config.gamma) == ("byol", 1e-4)
    assert (config.method_config["hidden_dim"], config.method_config["output_dim"]) == (32, 8)
    assert entries(run.output_dir)[0]["learning_rate"] <= 1e-2


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_a_front_alone_leaves_the_encoder_with_its_card(front, tmp_path):
    rows = datasets.Dataset.from_dict(
        {"image": list(np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8))},
        features=datasets.Features({"image": datasets.Image()}),
    )
    settings = {"per_device_train_batch_size": 16, "max_steps": 1, "use_cpu": True, "disable_tqdm": True}
    args = OrthoSSLTrainingArguments(output_dir=str(tmp_path), **settings)
    before = dict(vars(args))
    model = SSLModel(SSLConfig(image_size=32, backbone_config={"channels": [8, 8, 16, 16]}))
    if front == "loop":
        pretrain_loop(model, rows, args)
    else:
        OrthoSSLTrainer(model, args, train_dataset=rows).train()
    weights = load_file(tmp_path / "encoder" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.encoder.backbone.state_dict().items())
    assert "| optimizer steps | 1 |" in (tmp_path / "encoder" / "README.md").read_text()
    # The arguments of the caller are as they were.
    assert {name: value for name, value in vars(args).items() if name in before} == before
    assert args.views is args.learning_rate is None


def test_one_default_for_each_thing():
    """The command's, the model's and the callback's, from the registry of penalties."""
    # The penalty depends on `adapt`.
    command, config = settled_model(ModelArguments(), OrthoSSLTrainingArguments(use_cpu=True)), SSLConfig()
    for name in ("backbone", "method", "regularizer", "penalty_every", "whitening"):
        assert getattr(command, name) == getattr(config, name), name
    for kind, penalty in PENALTIES.items():
        gammas = {
            SSLConfig(regularizer=kind).gamma,
            OrthogonalityCallback(kind).gamma,
        }
        assert gammas == {penalty.default_gamma}
        if penalty.has_decoupled_step():
            assert SSLConfig(regularizer=kind, penalty_mode="decoupled").strength == penalty.default_strength
    assert SSLConfig(regularizer=None).gamma == 0


def test_a_weight_that_is_another_penaltys_default_survives_saving(tmp_path):
    SSLConfig(regularizer="srip", gamma=SSLConfig().gamma).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["gamma"] == SSLConfig().gamma
    assert SSLConfig.from_pretrained(tmp_path).gamma == SSLConfig().gamma


def test_a_vit_sees_crops_of_several_sizes(tmp_path):
    """Its position embeddings are resampled for the smaller ones, and the run goes on so when it is resumed."""
    options = {
        "backbone": "vit_tiny_patch16_224",
        "backbone_config": {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2},
        "method": "dino",
        "method_config": {"hidden_dim": 16, "prototypes": 8},
        "views": "cifar-multicrop",
        "image_size": 32,
        "per_device_train_batch_size": 8,
        "knn_images": 0,
        "use_cpu": True,
        "output_dir": tmp_path / "run",
    }
    run = pretrain("digits", **options, max_steps=1)
    run = pretrain("digits", **options, max_steps=2, resume=True)
    assert [entry["step"] for entry in run.history if "loss" in entry][-1] == 2
    assert json.loads((run.encoder / "config.json").read_text())["model_args"]["dynamic_img_size"] is True
    encoder = load_encoder(str(run.encoder), pretrained=True).eval()
    theirs = timm.create_model(f"local-dir:{run.encoder}", pretrained=True).eval()
    for side in (32, 16):
        images = torch.randn(2, 3, side, side)
        torch.testing.assert_close(theirs(images), encoder(images))
