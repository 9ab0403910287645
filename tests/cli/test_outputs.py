"""Commands that measure check first that their results can be written, and that what they need is there."""

import pytest
from PIL import Image

from hf_orthossl.cli import main

MODEL = ["resnet10t", "--untrained", "--device", "cpu"]
COMMANDS = {
    "evaluate": ["evaluate", *MODEL, "--cache", "none"],
    "spectra": ["spectra", *MODEL, "--dataset", "digits"],
    "forecast": ["forecast"],
    "neighbours": ["neighbours", *MODEL, "--cache", "none"],
}


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    # Neither data nor models were opened.
    assert not said.out
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written(command, tmp_path, capsys):
    (tmp_path / "file").write_text("the user's own")
    folder = tmp_path / "file" / "results"
    assert f"{tmp_path / 'file'} is a file" in refused(capsys, *COMMANDS[command], "--output_dir", folder)
    line = refused(capsys, *COMMANDS[command], "--output_dir", "/proc/orthossl")
    assert "output_dir /proc/orthossl cannot be written" in line


@pytest.mark.parametrize("command", ["spectra", "forecast", "neighbours"])
def test_figures_that_cannot_be_drawn(command, tmp_path, capsys, monkeypatch):
    def fail(*args):
        raise RuntimeError("no font can be found")

    monkeypatch.setattr("hf_orthossl.spectra.figures.new_figure", fail)
    assert "(no font can be found)" in refused(capsys, *COMMANDS[command], "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def save_classes(folder, **classes):
    for split, names in classes.items():
        for name in names:
            for number in range(4):
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(path)


def test_labels_are_checked_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    def measured(*args, **kwargs):
        raise AssertionError("measured")

    monkeypatch.setattr("hf_orthossl.evaluation.features.extract_features", measured)
    save_classes(tmp_path / "foreign", train=["cat", "dog"], test=["car", "bus"])
    for name, words in (("foreign", "no class in common"),):
        with pytest.raises(SystemExit):
            main([*COMMANDS["evaluate"], "--dataset", str(tmp_path / name), "--output_dir", str(tmp_path / "out")])
        assert words in capsys.readouterr().err


def test_more_neighbours_than_images_are_noted(tmp_path, capsys):
    save_classes(tmp_path / "few", train=["cat", "dog"], test=["cat", "dog"])
    data = ["--dataset", str(tmp_path / "few"), "--output_dir", str(tmp_path / "out"), "--image_size", "32"]
    main([*COMMANDS["evaluate"], *data, "--task", "knn"])
    assert "k is 20 and train has 8 labelled images: all of them vote" in " ".join(capsys.readouterr().out.split())
