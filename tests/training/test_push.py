"""`push_to_hub=True`: what the Trainer and the loop upload, when, and that training does not notice."""

import logging

import pytest
import torch
from safetensors.torch import load

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, get_recipe, load_source
from hf_orthossl.training import TrainingData, pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history
from hf_orthossl.training.publishing import EncoderOutput
from hf_orthossl.training.resume import begin_record

REPO = "tester/run"


def make_model():
    torch.manual_seed(0)
    config = {"channels": [8, 8, 16, 16]}
    return SSLModel(SSLConfig("resnet10t", image_size=32, backbone_config=config, method="simclr", gamma=1e-3))


def make_args(folder, **more):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "max_steps": 4,
        "logging_steps": 1,
        "save_steps": 2,
        "views": "digits",
        "use_cpu": True,
        "disable_tqdm": True,
        "push_to_hub": True,
        "hub_model_id": REPO,
        "hub_always_push": True,
    }
    return OrthoSSLTrainingArguments(**settings | more)


@pytest.fixture(scope="module")
def digits():
    return ImageDataset(load_source("digits", split="train[:64]"), views=get_recipe("digits"), image_size=32)


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr("hf_orthossl.spectra.SpectralReport.plot", lambda report, path: path.write_bytes(b"figure"))


def trained(digits, args, front="trainer"):
    model = make_model()
    if front == "trainer":
        OrthoSSLTrainer(model=model, args=args, train_dataset=digits).train()
    else:
        pretrain_loop(model, digits, args)
    return model


def make_output(digits, args):
    model = make_model()
    data = TrainingData(digits, model, args.with_recipe(model.method.recipe))
    begin_record(model, data)
    return EncoderOutput(model, data, front="Trainer")


def titles(hub):
    return [commit.title for commit in hub.commits(REPO)][::-1]


def losses(folder):
    entries = read_history(folder)
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_every_save_publishes_the_encoder_and_training_does_not_notice(front, digits, hub_here, tmp_path):
    pushed = trained(digits, make_args(tmp_path / "pushed"), front)
    alone = trained(digits, make_args(tmp_path / "alone", push_to_hub=False), front)
    assert titles(hub_here) == ["initial commit", "Training in progress, step 2", "Training in progress, step 4"]
    assert losses(tmp_path / "pushed") == losses(tmp_path / "alone")
    published, expected = load(hub_here.files(REPO)["model.safetensors"]), alone.encoder.backbone.state_dict()
    assert published.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(published[name], weight, rtol=0, atol=0)
    assert pushed.training
    files = set(hub_here.files(REPO))
    assert {"config.json", "spectra.json", "README.md"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]


def test_strategy_end_publishes_when_asked(digits, hub_here, tmp_path):
    args = make_args(tmp_path, hub_strategy="end", hub_private_repo=True, hub_revision="run", save_strategy="no")
    trainer = OrthoSSLTrainer(model=make_model(), args=args, train_dataset=digits)
    trainer.train()
    assert [commit.title for commit in hub_here.commits(REPO, "run")] == ["End of training", "initial commit"]
    publication = trainer.push_to_hub(license="mit")
    assert hub_here.repo(REPO).private
    assert hub_here.commits(REPO, "run")[0].title == "End of training"
    assert publication.commit == hub_here.commits(REPO, "run")[0].oid
    assert "license: mit" in publication.card
    trainer.save_model(str(tmp_path / "own"))
    assert (tmp_path / "own" / "training_args.bin").exists()
    assert "training_args.bin" not in hub_here.files(REPO, "run")


def test_a_hub_that_is_away_does_not_end_training(digits, hub_here, tmp_path, caplog):
    hub_here.fail("POST .*commit/", 503, times=1000)
    with caplog.at_level(logging.WARNING, "hf_orthossl.training.publishing"):
        trained(digits, make_args(tmp_path))
    said = [record.message for record in caplog.records if record.name == "hf_orthossl.training.publishing"]
    assert len(said) == 3
    assert all("was not published (the Hub repeatedly answered 503" in line for line in said)
    assert f"publish it with orthossl publish {tmp_path} --repo_id {REPO}" in said[-1]
    assert (tmp_path / "checkpoint-4").exists()


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_the_last_step_reaches_the_hub_and_cards_say_what_was_done(front, digits, hub_here, tmp_path):
    trained(digits, make_args(tmp_path, max_steps=2), front)
    trained(digits, make_args(tmp_path / "none", save_strategy="no", max_steps=6, per_device_train_batch_size=4), front)
    assert titles(hub_here) == ["initial commit", "Training in progress, step 2", "End of training"]
    card = hub_here.files(REPO)["README.md"].decode()
    assert "| optimizer steps | 6 |" in card
    assert "24 of the 64 images of digits" in " ".join(card.split())
    assert "resnet10t, from random weights" in card


def test_a_card_pushed_during_training_says_how_far_it_is(digits, hub_here, tmp_path):
    push = make_output(digits, make_args(tmp_path))
    push.data.record.steps = 2
    push.at_save(2)
    push.wait()
    card = hub_here.files(REPO)["README.md"].decode()
    assert "| optimizer steps | 2 of 4 |" in card
    assert "| passes over the data | 0.5 |" in card
    push.at_end(2)
    assert len(hub_here.commits(REPO)) == 2


def test_saves_are_skipped_while_a_push_runs(digits, hub_here, tmp_path, monkeypatch, caplog):
    push = make_output(digits, make_args(tmp_path, hub_always_push=False))
    push.at_save(1)
    monkeypatch.setattr(push.pending, "done", lambda: False)
    with caplog.at_level(logging.WARNING, "hf_orthossl.training.publishing"):
        push.at_save(2)
    assert "Step 2 was not published" in caplog.text
    push.wait()
    assert titles(hub_here) == ["initial commit", "Training in progress, step 1"]


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_what_cannot_be_published_is_said_before_training(front, digits, hub_here, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="push_to_hub needs hub_model_id"):
        trained(digits, make_args(tmp_path, hub_model_id=None), front)
    with pytest.raises(OSError, match=r"does not accept the token \(401\)"):
        trained(digits, make_args(tmp_path, hub_token="wrong"), front)
    with pytest.raises(OSError, match=r"write access to stranger/run, because stranger is not among .* \(tester\)"):
        trained(digits, make_args(tmp_path, hub_model_id="stranger/run"), front)
    hub_here.store.create("model", "stranger/theirs", "stranger")
    with pytest.raises(OSError, match="no write access to stranger/theirs"):
        trained(digits, make_args(tmp_path, hub_model_id="stranger/theirs"), front)
    hub_here.tokens["hf_reader"] = ("tester", False)
    with pytest.raises(OSError, match="it may only read"):
        trained(digits, make_args(tmp_path, hub_token="hf_reader"), front)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="run `hf auth login`"):
        trained(digits, make_args(tmp_path), front)
    assert not (tmp_path / "history.jsonl").exists()
