import sys
from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA
from torch import nn

from hf_orthossl import load_encoder
from hf_orthossl.spectra import (
    filter_correlation,
    plot_filter_correlation,
    plot_representations,
    plot_spectra,
    spectral_report,
)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to be looked into."""
    figures, save = [], Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def _model(seed, dead=False):
    torch.manual_seed(seed)
    model = nn.Module()
    model.layer1, model.layer2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 9, 3)
    if dead:
        model.layer2.weight.data[4:] = 0
    model.forward = lambda images: model.layer2(model.layer1(images))
    return model


@pytest.fixture
def reports():
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"healthy": spectral_report(_model(0), images), "collapsed": spectral_report(_model(1, dead=True), images)}


def _panels(figure):
    return {axes.get_title().splitlines()[0]: axes for axes in figure.axes if axes.lines}


def test_panels_overlay_the_runs_and_dash_what_is_not_all_positive(reports, drawn, tmp_path):
    path = plot_spectra(reports, tmp_path / "new" / "spectra.png")
    assert Image.open(path).size[0] > 900
    panels = _panels(drawn[0])
    # One weight and one feature panel share the name of layer1; the latter is later.
    assert list(panels) == ["layer1", "layer2", "input pixels", "layer2 = representation"]
    healthy, collapsed = panels["layer2 = representation"].lines
    assert (healthy.get_linestyle(), collapsed.get_linestyle()) == ("-", "--")
    spectra = [reports[name].features["representation"] for name in ("healthy", "collapsed")]
    labels = [f"{spectrum.effective_rank:.1f} ({count} of 9)" for spectrum, count in zip(spectra, (9, 4), strict=True)]
    assert [line.get_label() for line in panels["layer2 = representation"].lines] == labels
    spectrum = spectra[1]
    np.testing.assert_array_equal(collapsed.get_ydata(), spectrum.eigenvalues[:4].numpy())
    np.testing.assert_array_equal(collapsed.get_xdata(), [1, 2, 3, 4])
    for axes in panels.values():
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert {axes.get_xlabel() for axes in panels.values()} == {"index"}
    assert panels["input pixels"].get_ylabel() == "normalized eigenvalue"
    key = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert key == ["healthy", "collapsed", "every possible direction has variance", "some have none"]


def test_the_cap_of_few_images_is_said_and_is_no_collapse(reports, drawn, tmp_path):
    """40 images show at most 39 of the 192 directions of pixels; all of them vary."""
    plot_spectra(reports["healthy"], tmp_path / "spectra.png")
    assert drawn[0].subfigs[1]._suptitle.get_text() == "Features of 40 images, which can show at most 39 directions"
    (line,) = _panels(drawn[0])["input pixels"].lines
    assert (line.get_linestyle(), len(line.get_xdata())) == ("-", 39)
    sketched = spectral_report(_model(0), torch.randn(200, 3, 8, 8), max_dim=100, layers=["input"])
    plot_spectra(sketched, tmp_path / "spectra.png")
    (line,) = _panels(drawn[1])["input pixels"].lines
    rank = sketched.features["input"].effective_rank
    assert (line.get_linestyle(), line.get_label()) == ("-", f"≥ {rank:.{0 if rank >= 100 else 1}f} (leading 96)")
    assert drawn[1].subfigs[1]._suptitle.get_text() == "Features of 200 images"


def test_layers_with_equal_spectra_share_a_panel(drawn, tmp_path):
    encoder = load_encoder("resnet10t", image_size=32, channels=[8, 8, 8, 8])
    report = spectral_report(encoder, torch.randn(20, 3, 32, 32))
    plot_spectra(report, tmp_path / "spectra.png")
    titles = [axes.get_title() for axes in drawn[0].axes if axes.get_title()][4:]
    assert titles == ["input pixels", "layer1", "layer2", "layer3", "layer4 = representation"]
    other = replace(report, features={**report.features, "layer4": report.features["layer3"]})
    plot_spectra({"a": report, "b": other}, tmp_path / "spectra.png")
    assert {"layer4", "representation"} <= set(_panels(drawn[1]))


def test_no_text_of_the_figure_overlaps_another(reports, drawn, tmp_path):
    plot_spectra(reports, tmp_path / "spectra.png")
    figure = drawn[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    axes = [a for a in figure.axes if a.lines]
    texts = [t for a in axes for t in (a.title, a.xaxis.label, a.yaxis.label)] + [s._suptitle for s in figure.subfigs]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    boxes += [figure.legends[0].get_window_extent(renderer)] + [a.get_window_extent(renderer) for a in axes]
    overlapping = [(i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes[:i]) if a.overlaps(b)]
    assert overlapping == []


def test_a_report_draws_itself_even_from_its_file_and_of_weights_only(reports, tmp_path):
    report = type(reports["healthy"]).load(reports["healthy"].save(tmp_path))
    assert report.plot(tmp_path / "spectra.pdf").read_bytes().startswith(b"%PDF")
    report.features = {}
    assert b"<svg" in report.plot(str(tmp_path / "weights.svg")).read_bytes()


def test_different_architectures_are_matched_by_position(reports, drawn, tmp_path):
    other = spectral_report(nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 2)])}))
    plot_spectra({"conv": reports["healthy"], "linear": other}, tmp_path / "spectra.png")
    assert len(_panels(drawn[0])["stage 2"].lines) == 2


def test_unreadable_figures_are_refused(reports, tmp_path):
    with pytest.raises(ValueError, match="reports must be 1 to 7"):
        plot_spectra({str(i): reports["healthy"] for i in range(8)}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no spectra"):
        plot_spectra(type(reports["healthy"])(), tmp_path / "x.png")
    with pytest.raises(ValueError, match="doc"):
        plot_spectra(reports, tmp_path / "x.doc")


def test_filter_correlation_is_numpys():
    matrix = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    oracle = np.abs(np.corrcoef(matrix.double().numpy(), rowvar=False))
    np.testing.assert_allclose(filter_correlation(matrix), oracle, atol=1e-12)
    matrix[:, 2] = 0.1
    correlation = filter_correlation(matrix)
    assert correlation[2].tolist() == [0, 0, 1, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="finite"):
        filter_correlation(torch.full((3, 3), float("nan")))


def test_biclustering_gathers_redundant_filters(drawn, tmp_path):
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(0, 4, (60,), generator=generator)
    matrix = torch.randn(200, 4, generator=generator)[:, kinds] + 0.3 * torch.randn(200, 60, generator=generator)
    plot_filter_correlation({"redundant": matrix}, tmp_path / "filters.png", clusters=4)
    plain, clustered = (np.asarray(axes.images[0].get_array()) for axes in drawn[0].axes[:2])
    np.testing.assert_allclose(plain, filter_correlation(matrix))
    np.testing.assert_allclose(np.sort(plain, None), np.sort(clustered, None))
    # Four blocks have three borders, where neighbours differ; in order of index most neighbours do.
    assert (np.diagonal(clustered, 1) < 0.5).sum() == 3
    assert (np.diagonal(plain, 1) < 0.5).sum() > 30
    assert drawn[0].axes[0].get_title() == "redundant\nthe 60 filters in their order"
    assert "absolute correlation between two filters" in drawn[0].get_supxlabel()


@pytest.mark.parametrize("outputs", [2, 3, 10])
def test_heat_maps_of_few_dead_or_orthogonal_filters_are_drawn(outputs, tmp_path):
    matrix = torch.eye(12)[:, :outputs].clone()
    matrix[:, 0] = 0
    assert plot_filter_correlation(matrix, tmp_path / "filters.png").exists()
    with pytest.raises(ValueError, match="single output"):
        plot_filter_correlation(torch.randn(5, 1), tmp_path / "x.png")


def test_the_map_of_representations_is_their_pca_by_class(drawn, tmp_path):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    points = torch.randn(90, 8, generator=generator) + 4 * torch.eye(8)[labels]
    plot_representations(points, labels, tmp_path / "map.png", class_names=["cat", "dog", "owl"], method="pca")
    axes = drawn[0].axes[0]
    oracle = PCA(2).fit(points.double().numpy())
    expected = oracle.transform(points.double().numpy())
    shown = np.concatenate([np.asarray(collection.get_offsets()) for collection in axes.collections])
    expected = np.concatenate([expected[labels == label] for label in range(3)])
    np.testing.assert_allclose(np.abs(shown), np.abs(expected), atol=1e-8)
    assert axes.get_xlabel() == f"component 1 ({100 * oracle.explained_variance_ratio_[0]:.0f} % of variance)"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["cat", "dog", "owl"]


def test_umap_is_used_where_it_is_installed(drawn, monkeypatch, tmp_path):
    class Umap:
        def __init__(self, random_state):
            pass

        def fit_transform(self, points):
            return points[:, :2] * 10

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    plot_representations({"a": torch.rand(6, 4), "b": torch.rand(6, 4)}, [0, 1] * 3, tmp_path / "map.png")
    assert [axes.get_xlabel() for axes in drawn[0].axes] == ["UMAP 1", "UMAP 1"]
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r"pip install 'hf-orthossl\[umap\]'"):
        plot_representations(torch.rand(6, 4), [0, 1] * 3, tmp_path / "map.png", method="umap")
    plot_representations(torch.rand(6, 1), [0, 1] * 3, tmp_path / "map.png")
    assert drawn[1].axes[0].get_xlabel().startswith("component 1 (100 %")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labels": [0, 1]}, "must be finite and"),
        ({"labels": [0]}, "labels must be"),
        ({"labels": [-1, 0, 1, 0]}, "labels must be"),
        ({"class_names": ["a"]}, "class_names has 1 names, labels go up to 1"),
        ({"method": "tsne"}, "'pca' or 'umap', got 'tsne'"),
    ],
)
def test_a_map_that_cannot_be_is_refused(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plot_representations(
            **{"representations": torch.rand(4, 3), "labels": [0, 1, 0, 1], "path": tmp_path / "x.png", **kwargs}
        )


def test_drawing_leaves_pyplot_alone(reports, tmp_path):
    backend = matplotlib.rcParams._get_backend_or_none()
    plot_spectra(reports, tmp_path / "x.png")
    assert matplotlib.rcParams._get_backend_or_none() == backend
