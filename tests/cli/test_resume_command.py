"""`orthossl pretrain --resume` with other options or other images, in both fronts: what it says, writes and refuses."""

import shutil

import pytest
import yaml
from PIL import Image

from hf_orthossl import pretrain
from hf_orthossl.cli import main
from hf_orthossl.options import forms
from hf_orthossl.training.callbacks.reporting import read_history
from hf_orthossl.training.checkpoints import MANIFEST, seal
from hf_orthossl.training.options import DataArguments, ModelArguments
from hf_orthossl.training.settings import OTHER_OPTIONS

SETTINGS = {
    "backbone_config": {"channels": [8, 8, 16, 16]},
    "method": "byol",
    "method_config": {"hidden_dim": 32, "output_dim": 16},
    "per_device_train_batch_size": 16,
    "learning_rate": 0.06,
    "weight_decay": 1e-4,
    "optim": "sgd",
    "warmup_steps": 1,
    "max_steps": 4,
    "save_steps": 2,
    "knn_images": 0,
    "spectra_steps": 0,
    "logging_steps": 1,
    "use_cpu": True,
}
FRONTS = ("trainer", "loop")
# Another value of each option of data and model.
OTHERS = {
    "dataset_name": "plain",
    "pixel_range": [0.0, 100.0],
    "nodata": 3.0,
    "pages": "images",
    "split": "train[:50%]",
    "streaming": True,
    "backbone": "resnet14t",
    "pretrained": "resnet14t.c3_in1k",
    "image_size": 16,
    "channel_axis": "first",
    "normalization": "data",
    "backbone_config": {"channels": [8, 8, 16, 24]},
    "method": "simsiam",
    "method_config": {"hidden_dim": 48},
    "regularizer": "srip",
    "gamma": 0.5,
    "regularizer_config": {"probes": 8},
    "penalty_mode": "decoupled",
    "strength": 0.5,
    "constrain": "orthogonal",
    "penalty_every": 2,
    "whitening": 0.1,
    "embedding_regularizer": "koleo",
    "embedding_weight": 0.5,
    "embedding_layer": "representation",
    "embedding_config": {"slices": 8},
}


def draw(folder, seed=0):
    """Write 64 small images of noise, in a flat folder."""
    import numpy as np

    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    for number in range(64):
        pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Return the parent of `images` and `run`, a front's run of 4 steps, as it was after step 2."""
    trained = {}

    def begin(front):
        if front not in trained:
            trained[front] = parent = tmp_path_factory.mktemp(front)
            pretrain(draw(parent / "images"), front=front, output_dir=parent / "run", **SETTINGS)
            shutil.rmtree(parent / "run" / "checkpoint-4")
            shutil.rmtree(parent / "run" / "encoder")
        return trained[front]

    return begin


@pytest.fixture
def copied(begun, tmp_path):
    """Return a copy of the run of a front, whose images stay where they were."""

    def copy(front):
        parent = begun(front)
        return parent / "images", shutil.copytree(parent / "run", tmp_path / "run")

    return copy


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_option_of_data_and_model_is_tried():
    names = {*forms(DataArguments), *forms(ModelArguments)}
    # A folder without labels has one column, whatever is given, and images in colour are refused as other channels; the
    # data set has tests of its own.
    elsewhere = {"dataset", "image_column", "label_column", "channels"}
    assert names == {*OTHERS, *elsewhere} | (names & set(OTHER_OPTIONS))


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("name", OTHERS)
def test_other_data_and_models_are_refused_by_name(name, front, copied):
    images, folder = copied(front)
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"{name} is .*|{name} '.*") as refused:
        pretrain(images, front=front, output_dir=folder, resume=True, **{name: OTHERS[name]})
    assert "\n" not in str(refused.value)
    assert contents(folder) == before


@pytest.mark.parametrize("front", FRONTS)
def test_changed_settings_are_applied_and_stand_in_config_history_and_card(front, copied, capsys):
    images, folder = copied(front)
    pretrain(images, front=front, output_dir=folder, resume=True, learning_rate=0.3, weight_decay=0.5)
    said = "resume   from step 2 on: learning_rate 0.3 (was 0.06), weight_decay 0.5 (was 0.0001)"
    assert said in capsys.readouterr().out.splitlines()
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    assert "# Changed when resumed: learning_rate 0.06 (steps 0–2), 0.3 (from step 2)\n" in text
    config = yaml.safe_load(text)
    assert (config["learning_rate"], config["weight_decay"], config["max_steps"]) == (0.3, 0.5, 4)
    entries = read_history(folder)
    (entry,) = [entry for entry in entries if "changed" in entry]
    assert entry == {
        "step": 2,
        "changed": {"learning_rate": {"before": 0.06, "now": 0.3}, "weight_decay": {"before": 1e-4, "now": 0.5}},
    }
    # A cosine from 0.3 with one step of warm-up: a quarter and three quarters of its way.
    rates = {entry["step"]: entry["learning_rate"] for entry in entries if "learning_rate" in entry}
    assert [rates[3], rates[4]] == pytest.approx([0.3 * 0.75, 0.3 * 0.25])
    card = (folder / "encoder" / "README.md").read_text(encoding="utf-8")
    assert "| learning rate (peak) | 0.06 (steps 0–2), 0.3 (from step 2) |" in card
    assert "| weight decay | 0.0001 (steps 0–2), 0.5 (from step 2) |" in card
    assert "| optimizer steps | 4 |" in card


def test_what_was_changed_goes_on_without_being_given_again(copied):
    images, folder = copied("trainer")
    pretrain(images, output_dir=folder, resume=True, weight_decay=0.5)
    pretrain(images, output_dir=folder, resume=True, max_steps=6)
    card = (folder / "encoder" / "README.md").read_text(encoding="utf-8")
    assert "| weight decay | 0.0001 (steps 0–2), 0.5 (from step 2) |" in card
    assert "# Changed when resumed: max_steps 4 (steps 0–4), 6 (from step 4)" in (folder / "config.yaml").read_text(
        encoding="utf-8"
    )


def test_the_config_of_a_changed_run_starts_a_run(copied, tmp_path):
    images, folder = copied("trainer")
    pretrain(images, output_dir=folder, resume=True, weight_decay=0.5)
    run = pretrain(images, config=str(folder / "config.yaml"), output_dir=tmp_path / "again", max_steps=1)
    assert run.config["weight_decay"] == 0.5


def refused(capsys, *argv):
    """Return the one line that a bad command prints."""
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", *map(str, argv)])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("orthossl")]
    return line


def test_replaced_images_are_refused(begun, tmp_path, capsys):
    parent = shutil.copytree(begun("trainer"), tmp_path / "copy")
    draw(parent / "images", seed=1)
    before = contents(parent / "run")
    arguments = ("--resume", "--output_dir", parent / "run", "--dataset", parent / "images")
    line = refused(capsys, *arguments)
    assert f"dataset is {str(parent / 'images')!r} and the run in {parent / 'run'} was started with" in line
    config = parent / "run" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace(str(begun("trainer")), str(parent)), encoding="utf-8")
    assert contents(parent / "run").keys() == before.keys()


def test_images_replaced_in_their_place_are_refused(tmp_path, capsys):
    images, folder = draw(tmp_path / "images"), tmp_path / "run"
    pretrain(images, output_dir=folder, **SETTINGS | {"max_steps": 2})
    draw(images, seed=1)
    before = contents(folder)
    line = refused(capsys, "--resume", "--output_dir", folder, "--max_steps", 4)
    assert f"the images are not those of the run in {folder} (their " in line
    assert "contents differ): restore them to resume it, or start a new run with another --output_dir" in line
    (images / "00.png").unlink()
    line = refused(capsys, "--resume", "--output_dir", folder, "--max_steps", 4)
    assert "(64 images before, 63 now): restore them" in line
    assert contents(folder) == before


def test_a_copy_of_the_images_elsewhere_will_do(begun, tmp_path, capsys):
    parent = shutil.copytree(begun("trainer"), tmp_path / "copy")
    shutil.move(parent / "images", parent / "moved")
    run = pretrain(parent / "moved", output_dir=parent / "run", resume=True)
    assert f"dataset {parent / 'moved'} (was " in capsys.readouterr().out
    assert run.config["dataset"] == str(parent / "moved")


def test_random_states_that_cannot_be_read_are_one_line(copied, capsys):
    _, folder = copied("trainer")
    checkpoint = folder / "checkpoint-2"
    (checkpoint / "random_states_0.json").write_text("{")
    (checkpoint / MANIFEST).unlink()
    seal(checkpoint)
    before = contents(folder)
    line = refused(capsys, "--resume", "--output_dir", folder)
    assert "random_states_0.json does not give the states of the random number generators" in line
    assert contents(folder) == before
