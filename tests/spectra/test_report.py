import json
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_orthossl.spectra import SpectralReport, WeightSpectrum, spectral_report, weight_spectra
from hf_orthossl.spectra import report as report_module


def _network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 12), nn.Linear(12, 20))


@pytest.fixture
def report():
    images = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return spectral_report(_network(), images, layers=["input", "0", "representation"], metadata={"dataset": "noise"})


def test_every_measure_of_a_weight_matches_numpy():
    matrix = torch.randn(30, 18, generator=torch.Generator().manual_seed(0)) * 0.4
    found, w = WeightSpectrum.from_matrix(matrix), matrix.double().numpy()
    gram = w.T @ w - np.eye(18)
    singular = np.linalg.svd(w, compute_uv=False)
    p = singular / singular.sum()
    assert found.gram_frobenius == pytest.approx(np.linalg.norm(gram), rel=1e-8)
    assert found.gram_sigma_max == pytest.approx(np.abs(np.linalg.eigvalsh(gram)).max(), rel=1e-8)
    assert found.condition_number == pytest.approx(np.linalg.cond(w), rel=1e-8)
    assert found.stable_rank == pytest.approx(np.linalg.norm(w) ** 2 / np.linalg.norm(w, 2) ** 2, rel=1e-8)
    assert found.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-8)
    oracle = np.linalg.eigvalsh(np.cov(w, rowvar=False))[::-1]
    np.testing.assert_allclose(found.eigenvalues, oracle / oracle[0], rtol=0, atol=1e-8)
    assert (found.num_positive, found.dim) == (18, 18)


def test_the_gram_side_is_the_smaller_and_outputs_beyond_the_inputs_are_not_positive():
    wide = WeightSpectrum.from_matrix(nn.init.orthogonal_(torch.empty(6, 15, dtype=torch.float64)))
    assert wide.gram_frobenius < 1e-9
    assert wide.gram_sigma_max < 1e-9
    assert wide.condition_number == pytest.approx(1)
    # Six centred rows span five dimensions of fifteen.
    assert (wide.num_positive, len(wide.eigenvalues)) == (5, 15)
    dead = WeightSpectrum.from_matrix(torch.zeros(4, 3))
    assert (dead.condition_number, dead.effective_rank, dead.num_positive) == (math.inf, 0, 0)


def _assert_same(one, other):
    for spec in fields(one):
        a, b = getattr(one, spec.name), getattr(other, spec.name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, spec.name


def test_a_report_comes_back_as_it_was_saved(report, tmp_path):
    report.weights["dead.weight"] = WeightSpectrum.from_matrix(torch.zeros(4, 3), "Linear")
    folder = report.save(tmp_path / "new" / "spectra")
    assert sorted(path.name for path in folder.iterdir()) == ["spectra.json", "spectra.safetensors"]

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    json.loads((folder / "spectra.json").read_text(), parse_constant=refuse)
    loaded = SpectralReport.load(folder)
    assert loaded.metadata == {"model": "Sequential", "num_images": 50, "dataset": "noise"}
    assert loaded.notes == report.notes
    for section in ("weights", "features"):
        ours, theirs = getattr(report, section), getattr(loaded, section)
        assert list(ours) == list(theirs)
        for name in ours:
            _assert_same(ours[name], theirs[name])
    assert loaded.weights["dead.weight"].condition_number == math.inf
    assert loaded.table() == report.table()


def test_a_report_of_weights_alone_and_an_empty_one_are_saved_too(tmp_path):
    only = SpectralReport(weights=weight_spectra(_network()))
    assert list(SpectralReport.load(only.save(tmp_path / "a")).weights) == list(only.weights)
    assert SpectralReport.load(SpectralReport().save(tmp_path / "b")) == SpectralReport()


def test_metadata_that_json_cannot_hold_is_refused_before_anything_is_written(report, tmp_path):
    for value in (math.nan, object()):
        report.metadata["bad"] = value
        with pytest.raises(ValueError, match="metadata must contain only JSON"):
            report.save(tmp_path / "spectra")
    assert not (tmp_path / "spectra").exists()


def _set(*path, value):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def _remove(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("schema_version", value=99),
        _remove("schema_version"),
        _remove("weights"),
        _set("weights", value=[]),
        _set("metadata", value="x"),
        _set("notes", value=[1]),
        _set("weights", "0.weight", value=None),
        _set("weights", "0.weight", "shape", value=[27]),
        _set("weights", "0.weight", "shape", value=[27, 9]),
        _set("weights", "0.weight", "shape", value=[27, True]),
        _set("weights", "0.weight", "group", value=3),
        _set("weights", "0.weight", "effective_rank", value="8"),
        _set("weights", "0.weight", "effective_rank", value=-1.0),
        _set("weights", "0.weight", "effective_rank", value=10**400),
        _set("weights", "0.weight", "num_positive", value=10**6),
        _set("weights", "0.weight", "num_positive", value=2.5),
        _set("weights", "0.weight", "script", value="<b>"),
        _set("weights", "ghost", value={}),
        _remove("weights", "0.weight"),
        _remove("weights", "0.weight", "stable_rank"),
        _set("features", "0", "pool", value="<script>"),
        _set("features", "0", "exact", value=1),
        _set("features", "0", "dim", value=10**9),
        _set("features", "0", "rankme", value=None),
    ],
)
def test_a_tampered_json_is_refused_in_one_line(report, tmp_path, change):
    report.save(tmp_path)
    content = json.loads((tmp_path / "spectra.json").read_text())
    change(content)
    (tmp_path / "spectra.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"spectra|report") as caught:
        SpectralReport.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"schema_version": NaN}', "[" * 100_000, "\xff", "1e999"])
def test_what_is_no_json_is_refused(report, tmp_path, text):
    report.save(tmp_path)
    (tmp_path / "spectra.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"spectra\.json"):
        SpectralReport.load(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        torch.full((8,), math.nan, dtype=torch.float64),
        torch.linspace(0, 1, 8, dtype=torch.float64),
        torch.full((8,), 2.0, dtype=torch.float64),
        torch.full((8,), -1.0, dtype=torch.float64),
        torch.ones(8),
        torch.ones(9, dtype=torch.float64),
        torch.ones(2, 4, dtype=torch.float64),
        torch.ones(0, dtype=torch.float64),
        None,
    ],
)
def test_tampered_arrays_are_refused(report, tmp_path, array):
    report.save(tmp_path)
    arrays = load_file(tmp_path / "spectra.safetensors")
    arrays.pop("weights/0.weight/eigenvalues")
    if array is not None:
        arrays["weights/0.weight/eigenvalues"] = array
    save_file(arrays, tmp_path / "spectra.safetensors")
    with pytest.raises(ValueError, match="is not a spectral report"):
        SpectralReport.load(tmp_path)


def test_broken_missing_and_oversized_files_are_refused(report, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SpectralReport.load(tmp_path)
    report.save(tmp_path)
    whole = (tmp_path / "spectra.safetensors").read_bytes()
    for broken in (b"", whole[:-8], b"\x80\x04pickle", b"\xff" * 64):
        (tmp_path / "spectra.safetensors").write_bytes(broken)
        with pytest.raises(ValueError, match="not a safetensors file"):
            SpectralReport.load(tmp_path)
    monkeypatch.setitem(report_module._MAX_BYTES, "spectra.json", 10)
    with pytest.raises(ValueError, match="too large"):
        SpectralReport.load(tmp_path)


def test_the_table_shows_every_layer_its_numbers_and_the_notes(report):
    table = report.table()
    for name in (*report.weights, *report.features):
        assert f"\n{name.removesuffix('.weight')} " in table
    row = next(line for line in table.splitlines() if line.startswith("4 "))
    # Twelve centred rows span eleven dimensions at most.
    assert row.split()[1] == "12x20"
    assert row.endswith("11 / 11")
    pixels = next(line for line in table.splitlines() if line.startswith("input "))
    assert pixels.endswith("49 / 49")
    assert "Note: 50 images cap the rank of the features at 49" in table


def test_the_brief_table_has_the_last_weight_of_each_stage_and_a_line_on_the_others():
    model = nn.ModuleDict({f"layer{i}": nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 7)) for i in (1, 2, 3)})
    model["layer1"][0].weight.data = torch.ones(8, 9)
    report = SpectralReport(weights=weight_spectra(model))
    brief, whole = report.table(brief=True), report.table()
    assert [name in brief for name in ("layer1.1 ", "layer2.1 ", "layer3.1 ", "layer2.0 ")] == [True, True, True, False]
    assert "\nand 3 more: effective rank 12 to " in brief
    assert "% of the maximum, lowest in layer1.0\n" in brief
    assert all(f"\nlayer{i}.{j} " in whole for i in (1, 2, 3) for j in (0, 1))
    assert "more:" not in whole


def test_comparing_two_shows_changes_and_what_only_one_has(report):
    other = spectral_report(_network(seed=5), metadata={"model": "orthogonal"})
    other.weights["3.weight"] = WeightSpectrum.from_matrix(torch.eye(12, dtype=torch.float64))
    other.weights["extra"] = other.weights.pop("4.weight")
    text = report.compare(other)
    assert text.startswith("A: Sequential\nB: orthogonal\n")
    rank, last = report.weights["3.weight"].effective_rank, report.weights["4.weight"].effective_rank
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("3 ")).split()
    assert row == ["3", f"{rank:.1f}/12", "12.0/12", f"{100 * (12 - rank) / rank:+.1f}", "%"]
    assert next(line for line in lines if line.startswith("4 ")).split() == ["4", f"{last:.1f}/12", "-", "-"]
    assert next(line for line in lines if line.startswith("extra ")).split()[1] == "-"
    # Only one of the two has features, and 50 images cap them.
    part = text[text.index("features: effective rank") :]
    assert f"{report.features['input'].effective_rank:.1f}/49" in part


def test_comparing_several_matches_stages_by_position():
    def stages(kind, widths):
        layers = [nn.Sequential(nn.Linear(9, 9), nn.Linear(9, width)) for width in widths]
        return SpectralReport(
            weights=weight_spectra(nn.ModuleDict({f"{kind}{i}": layer for i, layer in enumerate(layers, 1)})),
            metadata={"model": kind},
        )

    runs = [stages("layer", (5, 6)), stages("block", (7, 8, 9)), stages("layer", (5, 6))]
    brief = runs[0].compare(*runs[1:], brief=True)
    assert brief.startswith("A: layer\nB: block\nC: layer\n")
    row = next(line for line in brief.splitlines() if line.startswith("stage 2")).split()
    ranks = [list(run.weights.values())[3].effective_rank for run in runs]
    assert row[2:] == [f"{rank:.1f}/{most}" for rank, most in zip(ranks, (6, 8, 6), strict=True)]
    third = next(line for line in brief.splitlines() if line.startswith("stage 3")).split()
    assert third[2] == third[4] == "-"
    shares = [100 * sum(w.effective_rank / min(w.shape) for w in r.weights.values()) / len(r.weights) for r in runs]
    mean = next(line for line in brief.splitlines() if line.startswith("mean share")).split()
    assert mean[4::2] == [f"{share:.0f}" for share in shares]
    assert "block1.0" in runs[0].compare(*runs[1:])


def test_the_summary_holds_finite_scalars_under_stable_names(report):
    report.weights["dead"] = WeightSpectrum.from_matrix(torch.zeros(4, 3))
    summary = report.summary()
    assert all(type(value) is float and math.isfinite(value) for value in summary.values())
    assert summary["weights/relative_rank_min"] == 0
    assert summary["weights/0.weight/effective_rank"] == report.weights["0.weight"].effective_rank
    assert summary["features/representation/rankme"] == report.features["representation"].rankme
    # Twelve rows show eleven of twenty eigenvalues at most, which is no loss; a zero matrix has lost all of its three.
    assert summary["weights/non_positive"] == 3
