"""A run that starts from given weights: what it starts with, what it records, and what is refused."""

import hashlib
import json
import shutil

import pytest
import torch
import yaml

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel, load_encoder, pretrain
from hf_orthossl.cli import main
from hf_orthossl.data import ImageDataset, load_source
from hf_orthossl.encoders import export_encoder
from hf_orthossl.evaluation import extract_features
from hf_orthossl.spectra import SpectralReport
from hf_orthossl.training import pretrain_loop

FRONTS = ("trainer", "loop")
SETTINGS = {
    "method_config": {"hidden_dim": 16, "output_dim": 8},
    "per_device_train_batch_size": 16,
    "learning_rate": 0.05,
    "max_steps": 2,
    "save_steps": 1,
    "knn_images": 0,
    "spectra_steps": 0,
    "logging_steps": 1,
    "use_cpu": True,
    "split": "train[:64]",
}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr("hf_orthossl.spectra.SpectralReport.plot", lambda report, path: path.write_bytes(b"figure"))
    monkeypatch.setattr("hf_orthossl.hub.encoder_folder.plot_spectra", lambda both, path: path.write_bytes(b"figure"))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """An encoder folder with weights of its own."""
    torch.manual_seed(5)
    encoder = load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 16])
    return export_encoder(encoder, tmp_path_factory.mktemp("given") / "first")


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def same(encoder, other):
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


def test_a_model_has_the_weights_it_starts_from(given):
    model = SSLModel(SSLConfig(pretrained=str(given), image_size=32))
    assert model.config.backbone == str(given)
    assert same(model.encoder, load_encoder(given, pretrained=True))
    assert not same(SSLModel(SSLConfig(backbone=str(given), image_size=32)).encoder, model.encoder)


def test_a_saved_model_is_loaded_without_its_start(given, tmp_path):
    """With the trained weights, even where those of the start are gone."""
    start = shutil.copytree(given, tmp_path / "start")
    model = SSLModel(SSLConfig(pretrained=str(start), image_size=32))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1)
    model.save_pretrained(tmp_path / "saved")
    (start / "model.safetensors").unlink()
    loaded = SSLModel.from_pretrained(tmp_path / "saved")
    assert loaded.config.pretrained == str(start)
    assert same(loaded.encoder, model.encoder)


@pytest.mark.parametrize("front", FRONTS)
def test_what_a_run_started_from_is_recorded_and_never_read_again(front, given, tmp_path, capsys):
    start = shutil.copytree(given, tmp_path / "first" / "encoder")
    run = pretrain("digits", front=front, pretrained=start.parent, output_dir=tmp_path / "run", **SETTINGS)
    words = f"first, sha256 {digest(given)[:16]}"
    assert f"start    {words}\n" in capsys.readouterr().out
    record = json.loads((run.encoder / "config.json").read_text())["orthossl"]
    assert record["training"]["started_from"] == words
    assert record["training"]["pretrained"] is True
    assert record["base_model"] is None
    card = (run.encoder / "README.md").read_text()
    assert f"Started from {words}." in card
    assert str(start.parent) not in card
    assert run.config["pretrained"] == run.config["backbone"] == str(start.parent)
    # Resumed after step 1, with the weights of the start gone.
    whole = load_encoder(run.encoder, pretrained=True)
    shutil.rmtree(run.output_dir / "checkpoint-2")
    shutil.rmtree(run.encoder)
    (start / "model.safetensors").unlink()
    run = pretrain("digits", front=front, output_dir=tmp_path / "run", resume=True)
    assert same(whole, load_encoder(run.encoder, pretrained=True))
    record = json.loads((run.encoder / "config.json").read_text())["orthossl"]
    assert record["training"]["started_from"] == words


@pytest.mark.parametrize("train", [pretrain_loop, lambda model, data, args: OrthoSSLTrainer(model, args, data).train()])
def test_fronts_record_it_too(train, given, tmp_path):
    model = SSLModel(SSLConfig(pretrained=str(given), image_size=32, method_config=SETTINGS["method_config"]))
    train(model, "digits", OrthoSSLTrainingArguments(str(tmp_path), max_steps=1, spectra_steps=0, use_cpu=True))
    facts = json.loads((tmp_path / "checkpoint-1" / "run.json").read_text())["facts"]
    assert facts["started_from"] == [[0, f"first, sha256 {digest(given)[:16]}"]]


def test_weights_of_the_hub_are_named_with_repository_and_revision(given, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--owner--net" / "snapshots" / ("1a2b3c4d" * 5)
    shutil.copytree(given, snapshot)
    monkeypatch.setattr("hf_orthossl.encoders.loading.snapshot_download", lambda *args, **kwargs: str(snapshot))
    encoder = load_encoder("owner/net@main", pretrained=True)
    assert encoder.start.repository == "owner/net"
    assert encoder.start.describe() == f"owner/net, revision 1a2b3c4d1a2b, sha256 {digest(given)[:16]}"
    assert load_encoder("owner/net").start is None


def test_position_embeddings_are_resampled(tmp_path):
    encoder = load_encoder("vit_tiny_patch16_224", image_size=32, embed_dim=8, depth=1, num_heads=1)
    export_encoder(encoder, tmp_path / "vit")
    model = SSLModel(SSLConfig(pretrained=str(tmp_path / "vit"), image_size=64))
    assert model.encoder.backbone.pos_embed.shape[1] == 1 + 16
    assert torch.equal(model.encoder.backbone.patch_embed.proj.weight, encoder.backbone.patch_embed.proj.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "resnet18", "--pretrained", "resnet50"], "backbone is 'resnet18' and pretrained is 'resnet50'"),
        (["--backbone", "resnet10t", "--pretrained", "resnet18"], "names the backbone too: leave out backbone"),
        (["--pretrained", "true"], "pretrained is 'true': it must name the weights to start from"),
        (["--pretrained", "resnet10t_cifa"], "unknown backbone 'resnet10t_cifa'"),
        (["--pretrained", "resnet18_cifar"], "backbone 'resnet18_cifar' has no pretrained weights"),
    ],
)
def test_what_is_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", *options, "--output_dir", str(tmp_path / "run"), "--max_steps", "1", "--use_cpu"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_recipe_names_the_start_like_the_flag(given, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"pretrained": str(given), **SETTINGS, "max_steps": 1}))
    run = pretrain("digits", config=recipe, output_dir=tmp_path / "run", backbone=str(given))
    assert run.config["pretrained"] == str(given)


def printed(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return line


def test_adapting_sets_what_the_user_does_not(given, tmp_path, capsys):
    options = {**SETTINGS, "max_steps": 20, "save_strategy": "no", "method_config": {"hidden_dim": 8}}
    del options["learning_rate"], options["save_steps"]
    run = pretrain("digits", pretrained=given, adapt=True, output_dir=tmp_path / "run", weight_decay=0.2, **options)
    # 20 steps are 5 epochs of 64 images, of which a tenth trains the heads alone; 1e-4 holds for 256 images a step.
    expected = {"optim": "adamw_torch", "learning_rate": 1e-4 * 16 / 256, "weight_decay": 0.2, "warmup_steps": 0.1}
    expected |= {"layer_decay": 0.75, "freeze_epochs": 0.5, "regularizer": "so_init", "gamma": 1e-3}
    assert {name: run.config[name] for name in expected} == pytest.approx(expected)
    said = printed(capsys.readouterr().out, "adapt")
    assert "optim adamw_torch, learning_rate 6.25e-06, weight_decay 0.2, warmup_steps 0.1, layer_decay 0.75" in said
    assert said.endswith("freeze_epochs 0.5, regularizer so_init")
    record = json.loads((run.encoder / "config.json").read_text())["orthossl"]["training"]
    assert record["adapt"] is True
    assert record["layer_decay"] == 0.75
    assert record["freeze_epochs"] == 0.5
    assert record["warmup_steps"] == 2


@pytest.mark.parametrize("train", [pretrain_loop, lambda model, data, args: OrthoSSLTrainer(model, args, data).train()])
def test_each_front_adapts_and_an_own_value_holds(train, given, tmp_path):
    model = SSLModel(SSLConfig(pretrained=str(given), image_size=32, regularizer=None))
    args = OrthoSSLTrainingArguments(
        str(tmp_path), max_steps=1, spectra_steps=0, use_cpu=True, adapt=True, layer_decay=1.0, freeze_epochs=0
    )
    train(model, "digits", args)
    run = json.loads((tmp_path / "checkpoint-1" / "run.json").read_text())
    assert run["facts"]["optimizer"] == [[0, "AdamW"]]
    assert run["options"]["layer_decay"] == [[0, 1.0]]
    assert run["options"]["freeze_epochs"] == [[0, 0.0]]
    with pytest.raises(ValueError, match="adapt is true, but the model has random weights"):
        train(SSLModel(SSLConfig(image_size=32)), "digits", args)


def test_the_penalty_is_the_users_if_it_is_the_default_too(given, tmp_path):
    run = pretrain(
        "digits",
        pretrained=given,
        adapt=True,
        regularizer="so",
        output_dir=tmp_path / "run",
        **SETTINGS | {"save_steps": 2},
    )
    assert run.config["regularizer"] == "so"
    assert run.config["gamma"] == 1e-6


@pytest.mark.parametrize("front", FRONTS)
def test_a_resumed_run_keeps_the_gram_matrices_of_its_start(front, given, tmp_path):
    """Bit for bit, although the weights of the start are not read again."""
    options = SETTINGS | {"max_steps": 4, "learning_rate": 0.01, "freeze_epochs": 0, "penalty_every": 2, "gamma": 1.0}
    options["save_total_limit"] = 0
    run = pretrain("digits", front=front, pretrained=given, adapt=True, output_dir=tmp_path / "run", **options)
    whole = load_encoder(run.encoder, pretrained=True)
    values = [entry["orthogonality"] for entry in run.history if "orthogonality" in entry]
    assert values[0] < values[-1]
    shutil.rmtree(run.output_dir / "checkpoint-4")
    shutil.rmtree(run.output_dir / "checkpoint-3")
    shutil.rmtree(run.encoder)
    run = pretrain("digits", front=front, output_dir=tmp_path / "run", resume=True)
    assert same(whole, load_encoder(run.encoder, pretrained=True))
    assert [entry["orthogonality"] for entry in run.history if "orthogonality" in entry] == values


def test_adapting_needs_weights(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--adapt", "--output_dir", str(tmp_path / "run")])
    assert "adapt is true, but there are no weights to adapt: pass --pretrained NAME too" in capsys.readouterr().err


@pytest.mark.parametrize("front", FRONTS)
def test_a_run_shows_what_it_kept_of_its_start(front, given, tmp_path, capsys):
    """kNN before and after, drift on held-out images, both spectra; a resumed run knows the same start."""
    options = SETTINGS | {"knn_images": 64, "max_steps": 3, "learning_rate": 0.2, "save_total_limit": 0}
    run = pretrain("digits", front=front, pretrained=given, output_dir=tmp_path / "run", **options)
    start, end = load_encoder(given, pretrained=True), load_encoder(run.encoder, pretrained=True)
    test = ImageDataset(load_source("digits", split="test"), image_size=32)
    X, Y = (extract_features(encoder, test).representations.double() for encoder in (start, end))
    found = {result.metric: result for result in run.results if result.task == "drift"}
    X, Y = X - X.mean(0), Y - Y.mean(0)
    cka = float((X.T @ Y).norm() ** 2 / ((X.T @ X).norm() * (Y.T @ Y).norm()))
    assert found["linear_cka"].value == pytest.approx(cka, rel=1e-5)
    assert 0 < found["linear_cka"].value < 1
    assert found["mean_cosine"].split == "test"
    assert found["mean_cosine"].protocol == {"images": len(test), "step": "end"}
    assert [r.protocol["step"] for r in run.results if r.metric == "top1"] == [0, "end"]
    assert "drift    linear CKA " in capsys.readouterr().out
    card = (run.encoder / "README.md").read_text()
    assert "linear CKA with the start" in card
    assert "spectra_from_start.png" in card
    assert (run.encoder / "spectra_from_start.png").is_file()
    # Drift is no accuracy, which is all that the Hub's index of models knows.
    assert "linear_cka" not in card.partition("---\n")[2].partition("---\n")[0]
    assert (
        SpectralReport.load(run.output_dir / "start").weights.keys() == SpectralReport.load(run.encoder).weights.keys()
    )
    before = run.results
    shutil.rmtree(run.output_dir / "checkpoint-3")
    shutil.rmtree(run.encoder)
    resumed = pretrain("digits", front=front, output_dir=tmp_path / "run", resume=True)
    assert resumed.results == before


def test_a_run_from_random_weights_has_no_start(tmp_path):
    run = pretrain(
        "digits", output_dir=tmp_path / "run", **SETTINGS | {"knn_images": 64, "save_strategy": "no", "save_steps": 500}
    )
    assert not (run.output_dir / "start").exists()
    assert {result.task for result in run.results} == {"knn"}
