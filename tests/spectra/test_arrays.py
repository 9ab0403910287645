"""Spectra of NumPy arrays and lists are those of tensors; anything else is refused in one line."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_orthossl.spectra import (
    SketchedCovariance,
    StreamingCovariance,
    WeightSpectrum,
    alpha_req,
    condition_number,
    count_positive,
    covariance_eigenvalues,
    effective_rank,
    filter_correlation,
    lidar,
    normalized_eigenvalues,
    participation_ratio,
    plot_filter_correlation,
    plot_representations,
    plot_spectra,
    rankme,
    singular_values,
    spectral_report,
    stable_rank,
    weight_spectra,
)

MATRIX = np.random.default_rng(0).standard_normal((30, 12))
MEASURES = [effective_rank, rankme, stable_rank, condition_number, participation_ratio, alpha_req, count_positive]


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_take_arrays_and_lists(measure):
    values = singular_values(MATRIX)
    expected = measure(values)
    assert measure(values.numpy()) == measure(values.tolist()) == expected
    assert measure(values.numpy()[::-1]) == pytest.approx(expected)


def test_matrices_and_embeddings_as_arrays():
    tensor = torch.from_numpy(MATRIX)
    for function in (covariance_eigenvalues, normalized_eigenvalues, singular_values, filter_correlation):
        assert torch.equal(function(MATRIX), function(tensor))
        assert torch.equal(function(MATRIX.tolist()), function(tensor))
    views = MATRIX.reshape(5, 6, 12)
    assert lidar(views) == lidar(torch.from_numpy(views))
    assert WeightSpectrum.from_matrix(MATRIX).stable_rank == WeightSpectrum.from_matrix(tensor).stable_rank
    for make in (StreamingCovariance, lambda dim: SketchedCovariance(dim, top_k=3)):
        one, two = make(12), make(np.int64(12))
        one.update(tensor)
        two.update(MATRIX)
        assert torch.equal(one.eigenvalues(), two.eigenvalues())


def test_a_report_of_numpy_images_and_views():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(20, 6))
    images = np.random.default_rng(0).standard_normal((24, 3, 4, 4)).astype(np.float32)
    views = images.reshape(8, 3, 3, 4, 4)
    expected = spectral_report(model, torch.from_numpy(images), views=torch.from_numpy(views), batch_size=10)
    parts = [images[:11], images[11:]]
    dicts = [{"pixel_values": part} for part in parts]
    for form, form_of_views in ((images, views), (parts, [views[:3], views[3:]]), (dicts, views)):
        found = spectral_report(model, form, views=form_of_views, batch_size=10)
        for layer, spectrum in expected.features.items():
            torch.testing.assert_close(found.features[layer].eigenvalues, spectrum.eigenvalues, rtol=0, atol=1e-6)
            assert found.features[layer].lidar == (spectrum.lidar and pytest.approx(spectrum.lidar, rel=1e-4))


def test_figures_of_arrays(tmp_path):
    assert plot_filter_correlation({"a": MATRIX}, tmp_path / "a.png").exists()
    assert plot_representations(MATRIX, np.arange(30) % 3, tmp_path / "b.png", method="pca").exists()


MODEL = nn.Linear(4, 3)
IMAGES = np.zeros((4, 3, 8, 8), np.float32)
WRONG = [
    (lambda: effective_rank("abc"), TypeError, "a spectrum must be an array of numbers, got 'abc'"),
    (lambda: rankme(None), TypeError, "a spectrum must be an array of numbers, got None"),
    (lambda: rankme([1.0], epsilon="small"), TypeError, "epsilon must be a number, got 'small'"),
    (lambda: alpha_req([1.0] * 9, first=0), ValueError, "first must be at least 1, got 0"),
    (lambda: stable_rank({"a": 1}), TypeError, "got {'a': 1}"),
    (lambda: participation_ratio(1.0), ValueError, "non-empty vector of finite numbers, got shape ()"),
    (lambda: singular_values([1.0, 2.0]), ValueError, "matrix has shape (2,): pass (N, D)"),
    (lambda: covariance_eigenvalues(["a"]), TypeError, "matrix must be an array of numbers, got ['a']"),
    (lambda: lidar(MATRIX), ValueError, "views has shape (30, 12): pass (n >= 2, v >= 2, D)"),
    (lambda: lidar(MATRIX.reshape(5, 6, 12), delta=0), ValueError, "delta must be a finite number above 0, got 0"),
    (lambda: filter_correlation(None), TypeError, "matrix must be an array of numbers, got None"),
    (lambda: WeightSpectrum.from_matrix(MATRIX[0]), ValueError, "matrix has shape (12,): pass (input, output)"),
    (lambda: StreamingCovariance("512"), TypeError, "dim must be a whole number, got '512'"),
    (lambda: StreamingCovariance(0), ValueError, "dim must be at least 1, got 0"),
    (lambda: StreamingCovariance(4).update("x"), TypeError, "features must be an array of numbers"),
    (lambda: spectral_report("resnet18"), TypeError, "model must be a torch module, got 'resnet18'"),
    (lambda: spectral_report(None, IMAGES), TypeError, "model must be a torch module, got None"),
    (lambda: weight_spectra({}), TypeError, "model must be a torch module, got {}"),
    (lambda: spectral_report(MODEL, "images"), TypeError, "images must be normalized images (N, C, H, W) or batches"),
    (lambda: spectral_report(MODEL, 3), TypeError, "images must be normalized images"),
    (lambda: spectral_report(MODEL, IMAGES[0]), ValueError, "images has shape (3, 8, 8): pass (N, C, H, W)"),
    (lambda: spectral_report(MODEL, IMAGES.astype(np.uint8)), ValueError, "normalized, finite floats, got torch.uint8"),
    (lambda: spectral_report(MODEL, IMAGES, batch_size=2.5), TypeError, "batch_size must be a whole number, got 2.5"),
    (lambda: spectral_report(MODEL, IMAGES, projector="mlp"), TypeError, "projector must be a torch module"),
    (lambda: plot_spectra("report", "x.png"), TypeError, "reports must be a SpectralReport or a mapping of them"),
    (lambda: plot_filter_correlation({}, "x.png"), ValueError, "matrices is empty"),
    (lambda: plot_filter_correlation(MATRIX, "x.png", clusters=0), ValueError, "clusters must be at least 1, got 0"),
    (lambda: plot_representations(MATRIX, "labels", "x.png"), TypeError, "labels must be an array of numbers"),
]


@pytest.mark.parametrize(("call", "kind", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_the_wrong_kind_of_thing_is_refused_in_one_line(call, kind, message):
    with pytest.raises(kind, match=r"^[^\n]*$") as error:
        call()
    assert message in str(error.value)
