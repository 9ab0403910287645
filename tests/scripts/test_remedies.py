"""`scripts/remedies.py`: which runs there are, in which order, what is kept of them, and what the report says."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import remedies
from remedy_studies import plan, running
from remedy_studies.measures import correlations
from remedy_studies.plan import GAMMAS, METHOD_NAMES, PIECES, STRENGTHS, Piece, Size
from remedy_studies.report import write_report
from remedy_studies.rows import collect, read_rows, write_rows
from remedy_studies.transfer import regret, settings_of

from hf_orthossl.comparison.arms import parse_arm
from hf_orthossl.regularization import MAX_STRENGTH
from hf_orthossl.training import OrthoSSLTrainingArguments
from hf_orthossl.training.options import OPTION_CLASSES, forms


def test_the_studies_are_those_that_were_announced():
    assert [len(pieces) for pieces in PIECES.values()] == [13, 8, 1]
    assert all(set(piece.arms) == {"none", "so", "srip", "so:decoupled", "muon"} for piece in PIECES["methods"])
    settings = {(p.about["optimizer"], p.about["width"], p.about["learning_rate"]) for p in PIECES["transfer"]}
    assert len(settings) == 8
    assert {width for _, width, _ in settings} == {48, 192}
    for values in (GAMMAS, STRENGTHS):
        assert len(values) == 6
        assert max(values) / min(values) == pytest.approx(1000)
    assert max(STRENGTHS) <= MAX_STRENGTH
    known = {name for kind in OPTION_CLASSES for name in forms(kind)}
    for piece in [piece for pieces in PIECES.values() for piece in pieces]:
        given = piece.given(Size("digits", 8, 64))
        assert set(given) <= known
        for arm in [*piece.made, *(parse_arm(name, 400) for name in piece.arms)]:
            assert set(arm.settings(1.0)) <= known
    training = {name: value for name, value in given.items() if name in forms(OPTION_CLASSES[2])}
    OrthoSSLTrainingArguments("runs/a", **training)


@pytest.fixture
def order(monkeypatch):
    """What would be compared, instead of comparing it."""
    done = []

    def note(piece, size, seeds, minutes, folder):
        done.append((piece.name, seeds))
        folder.mkdir(parents=True, exist_ok=True)
        record = {"left": 0, "seeds": seeds, "arms": [{"name": name} for name in piece.arm_names]}
        (folder / "comparison.json").write_text(json.dumps(record), encoding="utf-8")

    monkeypatch.setattr(running, "_compare", note)
    return done


def test_all_pieces_of_a_seed_come_before_the_next(order, tmp_path):
    pieces = [*PIECES["methods"][:2], PIECES["transfer"][0]]
    names = [piece.name for piece in pieces]
    size = Size("digits", 8, 64)
    assert running.run_all(pieces, size, 2, None, tmp_path, lambda: None)
    assert order == [*((name, 1) for name in names), *((name, 2) for name in names[:2])]
    # What has ended is not done again.
    assert running.run_all(pieces, size, 2, None, tmp_path, lambda: None)
    assert len(order) == 5
    assert not running.run_all(pieces, size, 3, 1e-9, tmp_path, lambda: None)
    assert len(order) == 5


TINY = {"backbone_config": {"patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 1}, "views": "digits"}
TINY |= {"per_device_train_batch_size": 16, "method_config": {"hidden_dim": 16, "output_dim": 8}}


@pytest.fixture
def tiny(monkeypatch):
    """One piece, with an arm whose γ is measured."""
    monkeypatch.setattr("hf_orthossl.spectra.SpectralReport.plot", lambda report, path: path.write_bytes(b"figure"))
    monkeypatch.setattr("hf_orthossl.training.auto_gamma.STEPS", 2)
    arms = ("none", "so:auto")
    piece = Piece("methods", "simclr", {"method": "simclr"}, arms, options=TINY)
    monkeypatch.setitem(plan.PIECES, "methods", [piece])


def test_a_study_is_run_kept_and_reported(tiny, tmp_path, capsys):
    options = ["--studies", "methods", "--dataset", "digits", "--steps", "4", "--images", "120", "--seeds", "1"]
    options += ["--output_dir", str(tmp_path / "runs"), "--report_dir", str(tmp_path / "report")]
    assert remedies.main(options) == 0
    rows = read_rows(tmp_path / "report")
    runs = {row["arm"]: row for row in rows if row["kind"] == "run"}
    assert set(runs) == {"none", "so:auto"}
    record = json.loads((tmp_path / "runs" / "methods" / "simclr" / "comparison.json").read_text(encoding="utf-8"))
    kept = {row["arm"]: row for row in record["runs"]}
    for arm, row in runs.items():
        assert row["linear"] == pytest.approx(kept[arm]["linear"], rel=1e-5)
        assert row["rankme"] == pytest.approx(kept[arm]["representation"]["rankme"], rel=1e-5)
        assert (row["method"], row["seed"], row["steps"], row["images"]) == ("simclr", 0, 4, 120)
    assert runs["so:auto"]["gamma"] > 0
    assert (tmp_path / "report" / "rows.jsonl").stat().st_size < 5000
    page = (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    assert "2 runs of 1 of 1 pieces" in page
    assert page.count("Not run yet.") == 2
    # Without the runs, the rows are enough, and the report is the same.
    again = [*options[:-4], "--report", "--output_dir", str(tmp_path / "none"), *options[-2:]]
    assert remedies.main(again) == 0
    assert read_rows(tmp_path / "report") == rows
    assert (tmp_path / "report" / "README.md").read_text(encoding="utf-8") == page


def made(study, piece, arm, seed, linear, **more):
    measures = {"knn": linear - 0.05, "effective_rank": 100 * linear, "rankme": 50 * linear, "lidar": 1 / linear}
    row = {"study": study, "piece": piece, "kind": "run", "arm": arm, "strength": None, "seed": seed, "linear": linear}
    return row | {"method": piece, "steps": 400, "images": 10_000, "alpha_req": 2 - linear} | measures | more


def test_the_report_of_known_rows(tmp_path):
    """Differences that can be worked out by hand: +2 points with a spread of 0 from three seeds."""
    rows = [
        made("methods", "dino", arm, seed, 0.3 + 0.01 * seed + lift, strength=strength)
        for seed in range(3)
        for arm, lift, strength in (("none", 0, None), ("so", 0.02, 5e-3), ("muon", -0.01, 1e-3))
    ]
    rows += [made("methods", "byol", "none", 0, 0.4)]
    page = write_report(rows, tmp_path).read_text(encoding="utf-8")
    assert "10 runs of 2 of 13 pieces; all 5 arms have ended in 0 of 39 pairs" in page
    dino = next(line for line in page.splitlines() if line.startswith("| `dino` |"))
    cells = [cell.strip() for cell in dino.split("|")[2:-1]]
    assert cells[0] == "31.0 ± 1.0"
    assert cells[1] == "33.0 ± 1.0, **+2.0** (+2.0 to +2.0)"
    assert cells[2:4] == ["–", "–"]
    assert cells[4] == "30.0 ± 1.0, **-1.0** (-1.0 to -1.0)"
    assert "| SO | +2.00 | 1 | 1 | 0 | 0 |" in page
    assert "| `dino` | 0.005 | – | – | 0.001 |" in page
    assert (tmp_path / "methods.png").stat().st_size > 10_000
    assert (tmp_path / "measures.png").is_file()


def test_the_correlations_of_known_rows():
    runs = [made("methods", method, "so", seed, 0.2 + 0.01 * seed) for method in ("dino", "byol") for seed in range(6)]
    found = correlations(runs)
    assert found["RankMe"].overall == pytest.approx(1)
    assert found["LiDAR"].overall == pytest.approx(-1)
    # α = 2 − linear: the nearer to 1, the better.
    assert found["α-ReQ"].within == {"dino": pytest.approx(1), "byol": pytest.approx(1)}
    assert found["effective rank"].low <= found["effective rank"].overall


def test_what_one_strength_costs(tmp_path):
    found = regret([{0.1: 0.5, 1.0: 0.4}, {0.1: 0.1, 1.0: 0.3}, {0.1: 0.2, 1.0: 0.2}])
    assert found.best == (0.1, 1.0, 0.1)
    assert (found.value, found.mean, found.largest) == pytest.approx((1.0, 0.1 / 3, 0.1))
    piece = PIECES["transfer"][0]
    rows = [made("transfer", piece.name, f"gamma-{value:g}", 0, 0.3 + value / 10) | piece.about for value in GAMMAS]
    rows += [made("transfer", piece.name, "auto", 0, 0.31, gamma=0.01) | piece.about]
    (setting,) = settings_of(rows)
    assert setting.best("gamma") == (0.3, pytest.approx(0.33))
    assert setting.auto == (0.01, 0.31)
    page = write_report(rows, tmp_path).read_text(encoding="utf-8")
    assert "| adamw | 48 | 0.0003 | 7 | – | 31.0 (0.01) | 33.0 (0.3) | – |" in page
    assert "`--gamma auto` loses 2.0 points on average" in page


def test_rows_of_another_machine_stay(tmp_path):
    rows = [made("methods", "dino", "none", 0, 0.3), made("methods", METHOD_NAMES[1], "so", 1, 0.4)]
    write_rows(tmp_path, rows)
    assert collect(tmp_path / "runs", read_rows(tmp_path)) == rows
    (tmp_path / "rows.jsonl").write_text('{"study": "other"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows.jsonl: line 1 is not a row of these studies: remove it"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--studies method", "--studies: 'method' is unknown, choose from methods, transfer, fused"),
        ("--pieces resnet", "--pieces: 'resnet' is unknown, choose from"),
        ("--minutes 0", "--minutes is 0: it must be more than 0"),
    ],
)
def test_bad_input_is_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        remedies.main(options.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
