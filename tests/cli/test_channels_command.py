"""Images of 13 bands from end to end: pretraining, spectra, evaluation, forecast, and the encoder in plain timm."""

import json

import datasets
import numpy as np
import pytest
import timm
import torch
from satellite import BANDS, image, write_folders

from hf_orthossl import load_encoder, load_source, pretrain
from hf_orthossl.cli import main
from hf_orthossl.data import ImageDataset
from hf_orthossl.data.statistics import channel_statistics

TINY = {
    "channels": BANDS,
    "backbone": "resnet10t",
    "backbone_config": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "image_size": 16,
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "knn_images": 16,
    "spectra_steps": 0,
    "seed": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("bands") / "tif")


@pytest.fixture(scope="module")
def run(folder):
    return pretrain(str(folder), output_dir=folder.parent / "run", **TINY)


def orthossl(line, capsys):
    assert main(line.split()) in (None, 0)
    return capsys.readouterr().out


def refused(line, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    return said


def test_the_encoder_loads_in_plain_timm_and_gives_the_same(run, folder):
    ours = load_encoder(run.encoder, pretrained=True).eval()
    plain = timm.create_model(f"local-dir:{run.encoder}", pretrained=True).eval()
    source = load_source(str(folder), channels=BANDS)
    statistics = channel_statistics(source)
    np.testing.assert_allclose(plain.pretrained_cfg["mean"], statistics.mean)
    np.testing.assert_allclose(plain.pretrained_cfg["std"], statistics.std)
    pixels = torch.stack([item["pixel_values"] for item in ImageDataset(source, image_size=16)]) / 255
    mean, std = (torch.tensor(plain.pretrained_cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
    normalized = (pixels - mean) / std
    torch.testing.assert_close(plain(normalized), ours(normalized))
    # The data were normalized.
    np.testing.assert_allclose(normalized.mean((0, 2, 3)), np.zeros(BANDS), atol=1e-4)


def test_what_was_done_is_recorded(run):
    record = json.loads((run.encoder / "config.json").read_text())["orthossl"]
    assert len(record["mean"]) == len(record["std"]) == BANDS
    assert record["training"]["normalization"] == "mean and std of each channel from 16 images"
    assert record["training"]["views_changed"].startswith("brightness and contrast of each channel by itself; without")
    assert "13 channels of 16-bit, each scaled from its own range" in record["training"]["taken"]
    assert len(record["training"]["pixel_range"].split(", ")) == BANDS
    card = (run.encoder / "README.md").read_text()
    assert 'convert("RGB")' not in card
    assert "13 channels" in card
    assert {result.protocol["channels"] for result in run.results} == {BANDS}


def test_the_commands_follow_the_encoder(run, folder, capsys):
    said = orthossl(f"spectra {run.output_dir} --dataset {folder} --output_dir {folder.parent / 's'}", capsys)
    assert "13 channels" in said
    spectra = json.loads((folder.parent / "s" / "spectra.json").read_text())
    assert any("input" in name for name in spectra["features"])
    said = orthossl(
        f"evaluate {run.output_dir} --dataset {folder} --task knn linear --protocol lbfgs --k 5 --cache none "
        f"--output_dir {folder.parent / 'e'}",
        capsys,
    )
    assert "13 channels" in said
    assert len(json.loads((folder.parent / "e" / "results.json").read_text())) > 2
    said = orthossl(
        f"forecast --dataset {folder} --channels 13 --image_size 4 --images 16 --views_per_image 2 --max_dim 8 "
        f"--views cifar-simclr --output_dir {folder.parent / 'f'}",
        capsys,
    )
    assert "without saturation, hue, grayscale" in said
    said = orthossl(
        f"forecast --dataset {folder} --encoder {run.encoder} --images 16 --views_per_image 2 --max_dim 8 "
        f"--views cifar-simclr --output_dir {folder.parent / 'g'}",
        capsys,
    )
    assert "13 channels" in said


def weights(run):
    return load_encoder(run.encoder, pretrained=True).state_dict()


def test_the_same_weights_come_from_arrays(run, folder, tmp_path):
    files = load_source(str(folder), channels=BANDS)
    paths = [row["path"] for row in files.dataset["image"]]
    labels = list(files.dataset["label"])
    rng = np.random.default_rng(0)
    made = {(label, number): image(rng, label, 16) for label in range(2) for number in range(8)}
    numbers = [int(path.rpartition("/")[2].partition(".")[0]) for path in paths]
    arrays = [made[place] for place in zip(labels, numbers, strict=True)]
    features = datasets.Features(
        {"bands": datasets.Array3D((BANDS, 16, 16), "uint16"), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    table = datasets.Dataset.from_dict({"bands": arrays, "label": labels}, features=features, split="train")
    arrays_run = pretrain(table, output_dir=tmp_path / "table", **TINY | {"knn_images": 0})
    npy = write_folders(tmp_path / "npy", suffix=".npy")
    npy_run = pretrain(str(npy), output_dir=tmp_path / "files", **TINY | {"knn_images": 0})
    expected = weights(run)
    for other in (arrays_run, npy_run):
        for name, weight in weights(other).items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


def test_a_stream_trains_and_a_resumed_run_has_the_same_statistics(folder, tmp_path):
    options = TINY | {"streaming": True, "knn_images": 0}
    first = pretrain(str(folder), output_dir=tmp_path, **options | {"max_steps": 1})
    mean = load_encoder(first.encoder).mean
    again = pretrain(output_dir=tmp_path, data=str(folder), **options, resume=True)
    assert load_encoder(again.encoder).mean == mean
    assert len(mean) == BANDS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--channels 0", "channels is 0: it must be a whole number from 1 to 1024"),
        ("--channels 12", "is a TIFF of 13 bands, where 12 channels are read (--channels): pass the number"),
        ("", "which Pillow cannot read: pass --channels to read as many bands as there are"),
        ("--channels 13 --normalization imagenet", "normalization is imagenet, which is of 3 channels"),
        ("--channels 13 --normalization backbone", "normalization is backbone, and 'resnet10t' knows none of 13"),
        ("--channels 13 --normalization mine", "normalization 'mine' is unknown"),
        ("--channels 13 --channel_axis side", "channel_axis is 'side'"),
    ],
)
def test_what_contradicts_is_refused_in_one_line(options, words, folder, tmp_path, capsys):
    assert words in refused(f"pretrain --dataset {folder} --output_dir {tmp_path} {options}", capsys)


def test_an_encoder_of_other_channels_is_refused(run, folder, tmp_path, capsys):
    line = f"pretrain --dataset digits --pretrained {run.encoder} --output_dir {tmp_path}"
    assert "takes images of 13: pass --channels 13" in refused(line, capsys)
    line = f"evaluate {run.output_dir} resnet10t --untrained --dataset {folder} --output_dir {tmp_path}"
    assert "channels of the models differ" in refused(line, capsys)
    line = f"evaluate {run.output_dir} --task transfer --output_dir {tmp_path}"
    assert "task transfer reads RGB images" in refused(line, capsys)


def test_an_rgb_run_can_be_normalized_by_its_data(tmp_path):
    run = pretrain(output_dir=tmp_path, **{**TINY, "channels": None, "normalization": "data", "knn_images": 0})
    statistics = channel_statistics(load_source("digits"))
    np.testing.assert_allclose(load_encoder(run.encoder).mean, statistics.mean)
    assert statistics.images == 1024
