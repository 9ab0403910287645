"""`orthossl spectra`: reports, figures and tables of one encoder or several, and every bad input."""

import json
import shutil

import pytest
import torch
from card_folders import record_of
from PIL import Image

from hf_orthossl import load_encoder, load_source, spectral_report
from hf_orthossl.cli import main
from hf_orthossl.cli.inputs import spread
from hf_orthossl.cli.spectra import names_of, titles_of
from hf_orthossl.data import ImageDataset
from hf_orthossl.encoders import export_encoder
from hf_orthossl.encoders.embedding import normalized_batches
from hf_orthossl.spectra import SpectralReport

TINY = {"channels": [8, 8, 16, 16]}
FILES = {"spectra.json", "spectra.safetensors", "spectra.txt", "spectra.png", "filters.png"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two run folders with an encoder each, of different widths."""
    root = tmp_path_factory.mktemp("runs")
    for name, channels in (("narrow", [8, 8, 16, 16]), ("wide", [8, 8, 16, 24])):
        torch.manual_seed(1)
        encoder = load_encoder("resnet10t", image_size=32, channels=channels)
        export_encoder(encoder, root / name / "encoder")
    return root


def spectra(arguments, folder):
    main(["spectra", *map(str, arguments), "--batch_size", "64", "--device", "cpu", "--output_dir", str(folder)])


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["spectra", *map(str, arguments)])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("orthossl")]
    return line


def test_one_encoder_on_a_data_set(models, tmp_path, capsys):
    spectra([models / "narrow", "--dataset", "digits", "--images", 90], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"representations.png"}
    for name in ("spectra.png", "filters.png", "representations.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
    # The same numbers as from Python, over the same images of the test split, in order.
    encoder = load_encoder(str(models / "narrow"), pretrained=True)
    source = load_source("digits", split="test")
    dataset = ImageDataset(source, image_size=32, indices=spread(source.num_rows, 90))
    oracle = spectral_report(encoder, normalized_batches(encoder, dataset, batch_size=64))
    found = SpectralReport.load(tmp_path)
    assert (found.metadata["model"], found.metadata["dataset"], found.metadata["split"]) == ("narrow", "digits", "test")
    for section in ("weights", "features"):
        ours, theirs = getattr(oracle, section), getattr(found, section)
        assert list(ours) == list(theirs)
        for name in ours:
            assert theirs[name].effective_rank == pytest.approx(ours[name].effective_rank, rel=1e-9)
    assert found.features["representation"].num_images == 90
    out = capsys.readouterr().out
    assert "data     digits, test: 360 images (not used: train (1,437))\n" in out
    assert "90 of them are measured" in out
    assert f"{found.features['representation'].effective_rank:.1f}" in out
    assert "Note: 90 images cap the rank of the features at 89" in out
    assert max(map(len, out.splitlines())) <= 100 + len(str(tmp_path))
    assert out.splitlines()[-1].startswith(f"results  {tmp_path} (spectra.txt, spectra.png, filters.png, repr")
    # Terminal: the last matrix of each stage; file: all.
    whole = (tmp_path / "spectra.txt").read_text()
    assert "layer1.0.conv2 " in out
    assert "layer1.0.conv1 " not in out
    assert "layer1.0.conv1 " in whole
    assert " more: effective rank" in out


def test_several_are_compared(models, tmp_path, capsys):
    spectra([models / "narrow", models / "wide", "resnet10t", "--untrained", "--image_size", 32], tmp_path)
    folders = {path.name for path in tmp_path.iterdir()}
    assert folders == {"narrow", "wide", "resnet10t", "comparison.png", "comparison.txt"}
    for name in ("narrow", "wide", "resnet10t"):
        assert {path.name for path in (tmp_path / name).iterdir()} == FILES
    reports = [SpectralReport.load(tmp_path / name) for name in ("narrow", "wide", "resnet10t")]
    out = capsys.readouterr().out
    assert out.startswith("A: narrow (untrained)\nB: wide (untrained)\nC: resnet10t (untrained)\n")
    last = next(line for line in out.splitlines() if line.startswith("layer4.0.conv2"))
    ranks = [report.weights["layer4.0.conv2.weight"].effective_rank for report in reports]
    assert last.split()[1:3] == [f"{ranks[0]:.1f}/16", f"{ranks[1]:.1f}/24"]
    assert "layer1.0.conv1 " not in out
    assert "layer1.0.conv1 " in (tmp_path / "comparison.txt").read_text()
    assert not reports[0].features


def test_pictures_of_an_earlier_run_are_not_taken_for_its_own(models, tmp_path, capsys):
    for name in ("representations.png", "mine.png"):
        (tmp_path / name).write_bytes(b"earlier")
    spectra([models / "narrow"], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"mine.png"}
    assert capsys.readouterr().out.endswith("(spectra.txt, spectra.png, filters.png)\n")


def test_names_are_checked_in_all_models_before_the_first_is_measured(models, tmp_path, capsys):
    options = ["--dataset", "digits", "--images", 20, "--layers", "layer2", "--output_dir", tmp_path]
    transformer = ["vit_tiny_patch16_224", "--untrained", "--image_size", 32]
    line = refused([models / "narrow", *transformer, *options], capsys)
    assert "vit_tiny_patch16_224: the model has no layer 'layer2'" in line
    assert not list(tmp_path.iterdir())


def test_help_lists_options_in_their_order(capsys):
    with pytest.raises(SystemExit):
        main(["spectra", "--help"])
    out = capsys.readouterr().out
    assert out.index("--dataset NAME") < out.index("--views NAME") < out.index("--output_dir DIR")
    assert "default: False" not in out


def test_published_weights_unless_untrained(models, tmp_path):
    """A trained encoder is told from a random one by its numbers, and two untrained ones are the same."""
    ranks = []
    for options in ([], ["--untrained"], ["--untrained"], ["--untrained", "--seed", "5"]):
        spectra([models / "narrow", *options, "--include", "*layer4*conv2*"], tmp_path)
        ranks.append(SpectralReport.load(tmp_path).weights["layer4.0.conv2.weight"].effective_rank)
    assert ranks[1] == ranks[2]
    assert len({*ranks}) == 3


def test_lidar_layers_and_patterns(models, tmp_path, capsys):
    options = ["--dataset", "digits", "--split", "train[:40]", "--views", "cifar-multicrop"]
    options += ["--layers", "representation", "layer2", "--exclude", "*layer1*", "--pool", "flatten"]
    spectra([models / "narrow", *options], tmp_path)
    report = SpectralReport.load(tmp_path)
    assert list(report.features) == ["representation", "layer2"]
    assert (report.features["layer2"].dim, report.features["layer2"].pool) == (8 * 4 * 4, "flatten")
    assert 1 < report.features["representation"].lidar <= 16
    assert not any("layer1" in name for name in report.weights)
    first = report.features["representation"].lidar
    spectra([models / "narrow", *options], tmp_path)
    assert SpectralReport.load(tmp_path).features["representation"].lidar == pytest.approx(first, rel=1e-6)


def test_images_without_labels_and_of_other_sizes(models, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(9):
        Image.new("RGB", (40 + i, 50), color=(20 * i, 7 * i * i % 255, 100)).save(folder / f"{i}.png")
    spectra([models / "narrow", "--dataset", folder], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert SpectralReport.load(tmp_path / "out").features["representation"].num_images == 9


def test_a_run_is_called_by_what_it_holds_and_by_its_folder_where_that_is_not_enough(models, tmp_path, capsys):
    for run in ("default", "again"):
        (tmp_path / run).mkdir()
        shutil.copytree(models / "narrow" / "encoder", tmp_path / run / "encoder")
        config = json.loads((tmp_path / run / "encoder" / "config.json").read_text())
        config["orthossl"] = record_of(backbone="resnet10t", method="byol").to_dict()
        (tmp_path / run / "encoder" / "config.json").write_text(json.dumps(config))
    figure = tmp_path / "new" / "all.svg"
    spectra([tmp_path / "default", models / "wide", "--plot", figure], tmp_path / "out")
    assert SpectralReport.load(tmp_path / "out" / "default").name == "resnet10t-byol-so"
    printed = capsys.readouterr().out
    assert printed.startswith("A: resnet10t-byol-so\nB: wide\n")
    assert printed.endswith(f"plot     {figure}\n")
    assert b"<svg" in figure.read_bytes()
    names = {run: str(tmp_path / run) for run in ("default", "again")}
    assert titles_of(names) == {"default": "resnet10t-byol-so (default)", "again": "resnet10t-byol-so (again)"}
    line = refused([tmp_path / "default", "--plot", figure, "--output_dir", tmp_path / "other"], capsys)
    assert line == f"orthossl spectra: error: plot {figure} exists: pass the name of a new file, or remove it"


def test_names_are_as_short_as_can_be():
    assert names_of(["runs/byol/encoder", "runs/byol-so/"]) == ["byol", "byol-so"]
    assert names_of(["a/run", "b/run"]) == ["a/run", "b/run"]
    assert names_of(["hf-hub:user/resnet50", "resnet50"]) == ["user/resnet50", "resnet50"]
    assert names_of(["resnet18"]) == ["resnet18"]
    assert names_of(["."]) == ["."]


def test_rows_are_spread_over_a_sorted_data_set():
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 100) == [0, 1, 2]
    assert len(set(spread(1797, 1000))) == 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "MODEL"),
        (["resnet10tt"], "did you mean 'resnet10t'"),
        (["/no/such/run"], "there is no such folder"),
        (["MODEL", "MODEL"], "is given twice"),
        (["MODEL", "MODEL/"], "is given twice"),
        (["MODEL", "MODEL/encoder"], "is given twice"),
        ([f"m{i}" for i in range(8)], "models must be at most 7 to have a colour each, got 8"),
        (["MODEL", "--layers", "layer1"], "layers is given without images: pass --dataset too"),
        (["MODEL", "--views", "digits"], "views is given without images"),
        (["MODEL", "--dataset", "digits", "--views", "digit"], "did you mean 'digits'"),
        (["MODEL", "--dataset", "digits", "--layers", "layer9"], "no layer 'layer9': did you mean 'layer"),
        (["MODEL", "--dataset", "digits", "--views", "multicrop"], "needs larger images: narrow expects 32 px"),
        (["MODEL", "--include", "layer9*"], "include pattern 'layer9*' matches none"),
        (["MODEL", "--pool", "max"], "pool is 'max': choose from avg, flatten"),
        (["MODEL", "--map", "tsne"], "map is 'tsne': choose from pca, umap"),
        (["MODEL", "--images", "1"], "images must be at least 2, got 1"),
        (["MODEL", "--dataset", "/no/such/data"], "there is no such file or folder"),
        (["MODEL", "--dataset", "EMPTY"], "has no images"),
        (["MODEL", "--dataset", "digits", "--split", "tset"], "split 'tset' is not in data set digits"),
        (["MODEL", "--dataset", "digits", "--image_column", "label"], "label"),
        (["MODEL", "--dataset", "digits", "--device", "tpu"], "device 'tpu' cannot be used"),
        (["MODEL", "--dataset", "digits", "--image_size", "0"], "image_size=0"),
        (["MODEL", "--imges", "5"], "did you mean '--images'"),
        (["MODEL", "--plot", "x.doc"], "plot is 'x.doc': its name must end in .png, .pdf or .svg"),
    ],
)
def test_bad_input_is_one_line(arguments, said, models, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    narrow = models / "narrow"
    known = {"MODEL": narrow, "MODEL/": f"{narrow}/", "MODEL/encoder": narrow / "encoder", "EMPTY": tmp_path / "empty"}
    line = refused([known.get(word, word) for word in arguments] + ["--output_dir", tmp_path / "out"], capsys)
    assert said in line
    assert not (tmp_path / "out" / "spectra.json").exists()


def test_an_output_folder_that_is_a_file(models, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert "is a file: pass another --output_dir" in refused(
        [models / "narrow", "--output_dir", tmp_path / "out"], capsys
    )


def test_umap_is_asked_for_before_anything_is_measured(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_orthossl.cli.options.spectra.find_spec", lambda name: None)
    line = refused([models / "narrow", "--dataset", "digits", "--map", "umap"], capsys)
    assert "pip install 'hf-orthossl[umap]'" in line


def test_real_cifar10_against_an_untrained_encoder(cifar10, models, tmp_path, capsys):
    spectra([models / "narrow", "--dataset", cifar10, "--images", 64], tmp_path)
    printed = capsys.readouterr().out
    assert "test: 10,000 images" in printed
    assert "64 of them are measured" in printed
    assert (tmp_path / "representations.png").exists()
