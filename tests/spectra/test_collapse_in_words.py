"""What does not vary is said in words; what a norm removes, a sample hides or rounding adds is no collapse."""

import math

import pytest
import torch
from torch import nn

from hf_orthossl.evaluation.knn import knn_scores
from hf_orthossl.hub.leaderboard.page.charts import Point, scatter
from hf_orthossl.landscape import forecast
from hf_orthossl.spectra import (
    FeatureSpectrum,
    StreamingCovariance,
    measures,
    normalized_eigenvalues,
    plot_spectra,
    spectral_report,
)


class Net(nn.Module):
    """Two linear layers, with a LayerNorm between."""

    def __init__(self, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.layer1, self.layer2 = nn.Linear(12, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        nn.init.uniform_(self.norm.weight, 0.5, 2)

    def forward(self, images):
        return self.norm(self.layer2(self.layer1(images.flatten(1))))


@pytest.fixture
def images():
    return torch.randn(50, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def test_equal_images_are_named_as_the_cause(images, tmp_path):
    report = spectral_report(Net(), images[:1].expand(9, -1, -1, -1), batch_size=4)
    text = " ".join(report.collapse())
    assert "representations of all 9 images are equal: they have no variance, and have collapsed completely" in text
    assert "The images themselves are equal" in text
    assert "None of the 2 weight matrices is zero or constant" in text
    assert report.features["representation"].effective_rank == 0
    assert all(math.isfinite(value) for value in report.summary().values())
    plot_spectra({"a": report, "b": report}, tmp_path / "spectra.png")


def test_the_layer_at_which_images_become_equal_is_named(images):
    model = Net()
    nn.init.zeros_(model.layer2.weight)
    text = " ".join(spectral_report(model, images).collapse())
    assert "The images still differ at layer1, and no longer at layer2." in text
    assert "1 of the 2 weight matrices is zero: layer2." in text


def test_the_direction_that_a_layernorm_removes_is_no_collapse(images):
    report = spectral_report(Net(), images)
    found = report.features["representation"]
    assert (found.num_positive, found.most_positive, found.removed_by_norm) == (5, 5, 1)
    assert report.collapse() == []
    assert "1 of the 6 dimensions has no variance by construction" in report.table()
    # A sixth output that copies the fifth is a lost direction.
    model = Net()
    model.norm = nn.Identity()
    with torch.no_grad():
        model.layer2.weight[5], model.layer2.bias[5] = model.layer2.weight[4], model.layer2.bias[4]
    report = spectral_report(model, images)
    assert report.features["representation"].removed_by_norm == 0
    assert "representation in 1 of 6" in " ".join(report.collapse())


def test_rounding_is_not_variance():
    assert normalized_eigenvalues(torch.full((7, 5), 0.1, dtype=torch.float64)).max() == 0
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(16, generator=generator).expand(60, -1) * (
        1 + 1e-7 * torch.randn(60, 16, generator=generator)
    )
    covariance = StreamingCovariance(16)
    covariance.update(features)
    assert FeatureSpectrum.from_covariance(covariance).num_positive == 0
    # In float64 the same differences are real.
    covariance = StreamingCovariance(16)
    covariance.update(features.double() * (1 + 1e-6 * torch.randn(60, 16, generator=generator).double()))
    assert FeatureSpectrum.from_covariance(covariance).num_positive == 16


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-170, 1e200])
def test_measures_are_defined_at_their_limits(value):
    spectrum, most = [value, value], 0 if value == 0 else 2
    for measure in (measures.effective_rank, measures.stable_rank, measures.participation_ratio):
        assert measure(spectrum) == pytest.approx(most)
    assert measures.condition_number(spectrum) == (1 if value else math.inf)
    assert measures.alpha_req(spectrum) is None


def test_equal_representations_get_the_most_frequent_class():
    bank, labels = torch.full((5, 4), 0.3), torch.tensor([1, 0, 2, 2, 2])
    noise = 1 + 1e-7 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    scores = knn_scores(bank, labels, 0.3 * noise, num_classes=3, k=2)
    assert scores.argmax(1).tolist() == [2, 2, 2]


def test_a_forecast_of_what_does_not_vary(tmp_path):
    def views(images, seed):
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed % 2**31))
        return [images + strength * noise, images - strength * noise]

    strength = 0.0
    nothing = forecast(torch.zeros(20, 3, 2, 2), views, same_kind=True)
    assert (nothing.directions, nothing.surviving) == (0, 0)
    assert "complete collapse" in nothing.summary()
    nothing.plot(tmp_path / "forecast.png")
    assert type(nothing).load(nothing.save(tmp_path / "forecast.json")) == nothing
    strength = 0.1
    equal = forecast(torch.zeros(20, 3, 2, 2), views, same_kind=True)
    assert equal.surviving == 0 < equal.directions
    assert not any(equal.correlations)


def test_a_collapsed_encoder_has_a_place_in_the_scatter():
    points = [Point(0.0, 0.1, 0, "collapsed", "#"), Point(40.0, 0.9, 1, "healthy", "#")]
    assert "collapsed" in scatter(points, "effective rank", "top-1 accuracy")
