"""The report on adapting an encoder is what its rows give."""

import importlib.util
import json
import statistics
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("adaptation", ROOT / "scripts" / "adaptation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_averages_seeds(script, tmp_path):
    rows = [
        {"seed": seed, "arm": arm, "epochs": 8.0, "adapt_epochs": 4.0, "learning_rate": 3e-4, "gamma": 1e-3}
        | {name: value + seed / 10 for name, _ in script.COLUMNS.values()}
        for seed in range(3)
        for arm, value in (("start", 0.5), ("none", 0.25))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = script.render(tmp_path)
    spread = statistics.stdev([0.25, 0.35, 0.45])
    assert f"| no penalty (3) | 0.350 ± {spread:.3f} |" in text
    assert "| before adapting (3) | 0.600" in text
    assert "SO-init (" not in text


def test_the_new_domain_is_blurred_and_shifted(script):
    grey = script.shifted(Image.new("RGB", (8, 8), (100, 100, 100)))
    assert grey.getpixel((4, 4)) == (125, 85, 70)


def test_the_stored_report_is_up_to_date(script):
    if not (script.REPORT / "rows.jsonl").exists():
        pytest.skip("needs the rows of scripts/adaptation.py")
    assert script.render(script.REPORT) == (script.REPORT / "README.md").read_text(encoding="utf-8")
