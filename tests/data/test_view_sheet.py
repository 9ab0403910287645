"""`orthossl views` shows what a training step sees: the same pixels, made by the same code."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_orthossl import SSLConfig, SSLModel, draw_views
from hf_orthossl.cli import main
from hf_orthossl.data import RECIPES, ViewSpec, collate, get_recipe, load_source
from hf_orthossl.data.view_sheet import as_rgb, describe_view, make_view_sheet
from hf_orthossl.training import OrthoSSLTrainingArguments, TrainingData

MINE = """
views:
  - {base: digits, repeat: 2}
  - {size: 16, scale: [0.1, 0.3], blur: 0.25}
"""


def photographs(folder, count=3):
    """Images of several sizes, which are cropped while they are decoded."""
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (90 + 10 * number, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("where", ["digits", "photographs"])
def test_the_sheet_has_the_pixels_that_a_run_makes(where, tmp_path):
    name = "digits" if where == "digits" else str(photographs(tmp_path))
    config = SSLConfig("resnet10t", image_size=32, method="dino", backbone_config={"channels": [8, 8, 8, 8]})
    args = OrthoSSLTrainingArguments(
        output_dir=str(tmp_path / "run"), views="cifar-multicrop", seed=5, use_cpu=True, per_device_train_batch_size=3
    )
    data = TrainingData(load_source(name), SSLModel(config), args)
    batch = collate(data.dataset.__getitems__([0, 1, 2]))
    assert ("crops" in batch) == (where == "photographs")
    expected = data.views(batch["crops"] if "crops" in batch else batch["pixel_values"], seed=5)
    sheet = make_view_sheet(data.source, data.views, 32, [0, 1, 2], seed=5)
    assert [view.shape[-1] for view in sheet.views] == [32, 32, *[16] * 6]
    for shown, normalized in zip(sheet.views, expected, strict=True):
        pixels = (normalized * data.views.std + data.views.mean) * 255
        assert (shown.float() - pixels).abs().max() <= 0.5 + 1e-3
    assert sheet.rows == [0, 1, 2]
    assert sheet.originals.shape == (3, 3, 32, 32)


def test_titles_name_the_operations_in_their_order():
    assert describe_view(RECIPES["digits"].views[0]) == [
        "crop 50–100 % of the area",
        "brightness, contrast 80 %",
        "blur 30 %",
    ]
    everything = ViewSpec(scale=(0.2, 0.5), blur=1.0, solarize=0.2)
    assert describe_view(everything)[1:] == [
        "flip 50 %",
        "brightness, contrast, saturation, hue 80 %",
        "grey 20 %",
        "blur 100 %",
        "solarize 20 %",
    ]
    assert describe_view(ViewSpec(flip=0, jitter=0, grayscale=0)) == ["crop 8–100 % of the area"]


def test_a_recipe_of_the_user_s_own_is_drawn_and_trains(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(MINE)
    recipe = get_recipe(str(tmp_path / "mine.yaml"))
    assert (recipe.name, recipe.sizes(32)) == ("mine", (32, 32, 16))
    assert recipe.views[2].blur == 0.25
    sheet = tmp_path / "new" / "sheet.png"
    main(["views", "--dataset", "digits", "--views", str(tmp_path / "mine.yaml"), "-o", str(sheet), "--images", "2"])
    assert capsys.readouterr().out == f"views    mine: 3 of each of 2 images\nsheet    {sheet}\n"
    with Image.open(sheet) as image:
        assert min(image.size) > 300
    config = SSLConfig("resnet10t", image_size=32, method="dino", backbone_config={"channels": [8, 8, 8, 8]})
    args = OrthoSSLTrainingArguments(output_dir=str(tmp_path / "run"), views=str(tmp_path / "mine.yaml"), use_cpu=True)
    data = TrainingData("digits", SSLModel(config), args)
    # The content is recorded: the file may change until the run is resumed.
    assert data.options["views"] == {**recipe.to_dict(), "name": "mine"}
    assert data.facts()["views"] == "mine"


def test_the_call_from_python_says_what_it_drew(tmp_path):
    sheet = draw_views("digits", "digits", tmp_path / "sheet.svg", images=3, split="test")
    assert b"<svg" in (tmp_path / "sheet.svg").read_bytes()
    assert sheet.rows == [0, 180, 359]
    again = draw_views("digits", "digits", tmp_path / "again.svg", images=3, split="test")
    assert all(torch.equal(a, b) for a, b in zip(sheet.views, again.views, strict=True))


def test_images_of_any_number_of_channels_can_be_looked_at():
    pixels = torch.arange(2 * 5 * 2 * 2, dtype=torch.uint8).view(2, 5, 2, 2)
    assert torch.equal(as_rgb(pixels), pixels[:, :3].permute(0, 2, 3, 1))
    grey = as_rgb(pixels[:, :2])
    assert torch.equal(grey[..., 0], pixels[:, :2].float().mean(1).round().to(torch.uint8))
    assert grey.shape == (2, 2, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--views is missing: pass a recipe"),
        (["--views", "digit"], "did you mean 'digits'"),
        (["--views", "none.yaml"], "views none.yaml: no such file"),
        (["--views", "BAD"], "views of recipe bad is 3: it must be a list of mappings"),
        (["--views", "KEY"], "has no key 'jiter': did you mean 'jitter'"),
        (["--views", "MANY"], "repeat in recipe many is 100000: it must be 1 to 64 views"),
        (["--views", "digits", "--images", "0"], "images is 0: it must be 1 or more"),
        (["--views", "digits", "--output", "sheet.doc"], "its name must end in .png, .pdf or .svg"),
        (["--views", "digits", "--output", "THERE"], "exists: pass the name of a new file"),
        (["--views", "multicrop"], "images of data set digits are 32×32, smaller than image_size 96"),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "bad": "views: 3",
        "key": "views: [{jiter: 1}]",
        "many": "views: [{repeat: 100000}]",
        "there": "mine",
    }.items():
        (tmp_path / f"{name}.{'png' if name == 'there' else 'yaml'}").write_text(text)
    known = {"BAD": "bad.yaml", "KEY": "key.yaml", "MANY": "many.yaml", "THERE": "there.png"}
    with pytest.raises(SystemExit) as stop:
        main(["views", "--dataset", "digits", *(known.get(word, word) for word in arguments)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "views.png").exists()
