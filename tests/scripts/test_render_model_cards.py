"""The cards of model_cards/ are what their stored data give."""

import importlib.util
from pathlib import Path

import pytest
import torch
from card_folders import encoder_folder, report_of

from hf_orthossl.evaluation import read_results
from hf_orthossl.spectra import SpectralReport

ROOT = Path(__file__).parents[2]
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/config.json"))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("render_model_cards", ROOT / "scripts" / "render_model_cards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_a_reference_card_is_up_to_date(script, folder):
    assert script.render(folder) == (folder / "README.md").read_bytes().decode()
    assert script.is_drawn(folder / "spectra.png", SpectralReport.load(folder).plot)
    assert "/" not in "".join(result.dataset for result in read_results(folder / "results.json"))
    assert {path.name for path in folder.glob("*.safetensors")} == {"spectra.safetensors"}, "no weights here"


def test_check_names_what_differs_and_rendering_mends_it(script, tmp_path, capsys):
    folder = encoder_folder(tmp_path / "card")
    options = ["--folder", str(tmp_path)]
    assert script.main([*options, "--check"]) == 1
    assert "card/README.md is not what" in capsys.readouterr().err
    assert not (folder / "README.md").exists(), "a check writes nothing"
    assert script.main(options) == 0
    assert script.main([*options, "--check"]) == 0
    card = folder / "README.md"
    card.write_text(card.read_text().replace("0.750", "0.990") + "Written by hand.\n")
    assert script.main([*options, "--check"]) == 1
    assert script.main(options) == 0
    assert "0.990" not in card.read_text()
    assert card.read_text().endswith("Written by hand.\n")
    assert "hf-hub:your-name/card" in card.read_text()


def test_check_sees_a_figure_of_other_spectra(script, tmp_path, capsys):
    folder = encoder_folder(tmp_path / "card")
    assert script.main(["--folder", str(tmp_path)]) == 0
    flat = torch.randn(40, 6) * torch.tensor([8.0, 4, 2, 1, 0.5, 0.25])
    report_of(flat).plot(folder / "spectra.png")
    assert script.main(["--folder", str(tmp_path), "--check"]) == 1
    assert "spectra.png is not what" in capsys.readouterr().err


def test_a_folder_without_data_is_named(script, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert script.main(["--folder", str(tmp_path)]) == 2
    assert "empty/spectra.json does not exist" in capsys.readouterr().err
    assert script.main(["--folder", str(tmp_path / "nowhere")]) == 2
