"""A forecast of data whose B and Σ are known: counts, thresholds, remedies, its file, words and figures."""

import json

import pytest
import torch
from PIL import Image

from hf_orthossl.landscape import Forecast, LinearLandscape, forecast, plot_directions

SIDE = 2
DIM = 3 * SIDE**2
# Pixel by pixel: the share that the views below leave alone.
K = torch.linspace(0.95, 0.1, DIM)


def images_of(count, seed=0):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


class Noise:
    """Views whose pixels keep known shares k of their unit variance."""

    def __init__(self, k=K, kinds=2):
        self.k, self.kinds = k.reshape(3, SIDE, SIDE), kinds

    def __call__(self, images, seed):
        generator = torch.Generator().manual_seed(seed % 2**32)
        noise = (torch.randn(images.shape, generator=generator) for _ in range(self.kinds))
        return [self.k.sqrt() * images + (1 - self.k).sqrt() * part for part in noise]


@pytest.fixture(scope="module")
def found():
    labels = (images_of(4000)[:, 0, 0, 0] > 0).long()
    variants = {"everything": Noise(torch.full((DIM,), 0.97)), "nothing": Noise()}
    settings = {"loss": "infonce", "alpha": 2.0, "dim": 10, "labels": labels, "variants": variants}
    result = forecast(images_of(4000), Noise(), **settings)
    result.metadata = {"unit": "pixels"}
    return result


def test_what_is_forecast_is_what_the_truth_gives(found):
    truth = LinearLandscape(torch.diag(K).double(), torch.eye(DIM).double())
    minimum = truth.minimum("infonce", alpha=2.0, dim=10)
    torch.testing.assert_close(torch.tensor(found.correlations), K, atol=0.03, rtol=0)
    assert abs(found.surviving - minimum.surviving) <= 1
    assert found.surviving_low <= found.surviving <= found.surviving_high
    assert found.threshold == pytest.approx(0.5)
    assert found.alpha_to_collapse == pytest.approx(1 / (1 - 0.95), rel=0.2)
    torch.testing.assert_close(torch.tensor(found.eigenvalues[:3]), minimum.eigenvalues[:3].float(), atol=0, rtol=0.5)
    assert (found.dimension, found.directions, found.views_per_image, found.num_images) == (DIM, DIM, 4, 4000)
    assert found.variance_share == pytest.approx(1)
    # Every pixel has the same variance.
    assert found.dead_variance == pytest.approx((DIM - found.surviving) / DIM, abs=0.03)


def test_directions_are_the_pixels(found):
    assert found.safest[0].index == 0
    assert found.safest[0].alive
    # The safest pattern is the pixel that augmentation leaves alone most; the images at its ends are bright and dark.
    safest = found.patterns[len(found.endangered)]
    assert int(safest.abs().argmax()) == 0
    values = images_of(4000)[found.safest[0].examples, 0, 0, 0] * safest[0].sign()
    assert values[:3].max() < -1.5
    assert values[3:].min() > 1.5
    dead = [direction for direction in found.endangered if not direction.alive]
    assert len(dead) == DIM - found.surviving
    assert max(direction.k for direction in dead) <= 0.5
    variances = [direction.variance for direction in dead]
    assert variances == sorted(variances, reverse=True)


def test_labels_and_variants(found):
    # The label is the first pixel, which survives.
    assert found.label_signal["kind"] == "benign"
    assert found.label_signal["lost"] < 0.02
    everything, nothing = found.left_out
    assert everything.surviving == 10  # as many as there are outputs
    assert everything.total == pytest.approx(0.97 * DIM, abs=0.2)
    assert nothing.surviving == found.left_out_base.surviving == found.surviving
    assert nothing.total == pytest.approx(found.left_out_base.total)


def test_harmful_collapse():
    labels = (images_of(3000)[:, 2, 1, 1] > 0).long()  # the pixel with the smallest k
    found = forecast(images_of(3000), Noise(), loss="infonce", alpha=2.0, labels=labels)
    assert found.label_signal["kind"] == "harmful"
    assert forecast(images_of(100), Noise(), labels=torch.full((100,), -1)).label_signal is None
    assert forecast(images_of(100), Noise(), labels=torch.full((100,), -1)).classes is None
    assert forecast(images_of(100), Noise(), labels=torch.zeros(100).long()).label_signal is None


def test_classes_that_keep_and_lose_their_direction():
    """Class 1 is bright in the pixel that survives, class 2 in the one that collapses, and class 3 in none."""
    images = images_of(4000)
    labels = torch.full((4000,), 0)
    labels[images[:, 0, 0, 0] > 1.2] = 1
    labels[images[:, 2, 1, 1] > 1.2] = 2
    labels[torch.arange(4000) % 100 == 0] = 3
    labels[:50] = -1
    names = ["plain", "kept", "lost", "random"]
    settings = {"loss": "infonce", "alpha": 2.0, "labels": labels.numpy(), "class_names": names}
    found = forecast(images.numpy(), Noise(), **settings)
    fates = {one.name: one for one in found.classes}
    assert list(fates) == names
    for label, name in enumerate(names):
        assert fates[name].share == pytest.approx(float((labels == label).sum() / 3950))
    assert (fates["kept"].survives, fates["lost"].survives) == (True, False)
    # The filter of a class reads its own pixel, whose k is known.
    assert fates["kept"].k == pytest.approx(float(K[0]), abs=0.05)
    assert fates["lost"].k == pytest.approx(float(K[-1]), abs=0.1)
    assert fates["kept"].captured > 0.95
    assert fates["lost"].captured < 0.05
    line = next(line for line in found.summary().splitlines() if line.startswith("classes"))
    assert "of 4 keep the direction" in line
    assert f"lost ({fates['lost'].share:.2g} of images, k {fates['lost'].k:.2f})" in line
    numbers = forecast(images, Noise(), loss="infonce", alpha=2.0, labels=labels)
    assert [one.name for one in numbers.classes] == ["0", "1", "2", "3"]


def test_gamma_and_temperature_keep_what_they_promise():
    settings = {"loss": "quartic", "alpha": 3.0}
    plain = forecast(images_of(2000), Noise(), **settings)
    assert 0 < plain.surviving < DIM
    above = forecast(images_of(2000), Noise(), **settings, gamma=1.02 * plain.gamma_to_revive)
    assert above.surviving == DIM
    assert above.surviving_low is None
    assert forecast(images_of(2000), Noise(), **settings, gamma=0.9 * plain.gamma_to_revive).surviving < DIM

    cosine = forecast(images_of(2000), Noise(), loss="normalized", temperature=0.5)
    assert cosine.gamma_to_revive is None
    below = forecast(images_of(2000), Noise(), loss="normalized", temperature=0.99 * cosine.temperature_to_revive)
    above = forecast(images_of(2000), Noise(), loss="normalized", temperature=1.01 * cosine.temperature_to_revive)
    assert (below.surviving, above.surviving) == (DIM, DIM - 1)


def test_outputs_cut():
    found = forecast(images_of(1000), Noise(), loss="infonce", alpha=2.0, dim=3)
    assert found.surviving == 3
    assert found.cut_by_dim >= 2
    assert f"{found.cut_by_dim} more would" in found.summary()


def test_reduction_keeps_the_leading_directions():
    scale = torch.linspace(3, 0.1, DIM).reshape(3, SIDE, SIDE)

    def views(images, seed):
        return [scale * view for view in Noise()(images, seed)]

    found = forecast(images_of(3000), views, max_dim=4)
    assert (found.directions, found.dimension) == (4, DIM)
    variances = scale.flatten().square()
    assert found.variance_share == pytest.approx(float(variances[:4].sum() / variances.sum()), abs=0.02)
    torch.testing.assert_close(torch.tensor(found.correlations), K[:4], atol=0.05, rtol=0)
    # As many directions as a fifth of the images.
    assert forecast(images_of(20), views).directions == 4


def test_many_pixels_take_the_quick_way():
    """128 dimensions of which 8 are asked for: subspace iteration finds what a full decomposition does."""
    mixing = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0))).Q
    variances = torch.arange(1, 129).float() ** -1.5

    def views(images, seed):
        noise = torch.randn(len(images), 128, generator=torch.Generator().manual_seed(seed % 2**32))
        return [((images.flatten(1)[:, :1].expand(-1, 128) * 0 + noise) * variances.sqrt()) @ mixing] * 2

    found = forecast(images_of(3000), views, max_dim=8, features=lambda view: view)
    assert found.variance_share == pytest.approx(float(variances[:8].sum() / variances.sum()), abs=0.01)
    assert found.dimension == 128


def test_same_seed_same_forecast():
    first, second, other = (forecast(images_of(60), Noise(), seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert first.correlations != other.correlations


def test_images_in_batches_and_progress():
    titles = []

    def progress(batches, title):
        titles.append(title)
        return batches

    whole = forecast(images_of(300), Noise(), same_kind=True)
    cut = forecast(images_of(300).split(256), Noise(), same_kind=True, variants={"x": Noise()}, progress=progress)
    assert cut.correlations == whole.correlations
    assert titles == ["covariances", "canonical correlations", "without x"]


def test_file(found, tmp_path):
    path = found.save(tmp_path / "deep" / "forecast.json")
    content = json.loads(path.read_text())
    assert content["schema_version"] == 1
    assert content["surviving"] == found.surviving
    assert content["endangered"][0]["k"] == found.endangered[0].k
    assert "patterns" not in content
    loaded = Forecast.load(path)
    assert loaded == found
    assert loaded.summary() == found.summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema_version=2), "schema_version 2"),
        (lambda c: c.pop("surviving"), "surviving"),
        (lambda c: c.update(unknown=1), "unknown"),
        (lambda c: c.update(correlations=[2.0]), "correlations"),
        (lambda c: c.update(measured=[-1.0]), "measured"),
        (lambda c: c.update(left_out=[{"without": "crop"}]), "not a forecast"),
        (lambda c: c.update(classes=[{"name": "a"}]), "not a forecast"),
        (lambda c: c.update(low="abc"), "low|not a forecast"),
    ],
)
def test_broken_files(found, tmp_path, change, message):
    path = found.save(tmp_path / "forecast.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Forecast.load(path)


def test_no_forecast_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="orthossl forecast"):
        Forecast.load(tmp_path / "forecast.json")
    (tmp_path / "forecast.json").write_text("[")
    with pytest.raises(ValueError, match="not a JSON file"):
        Forecast.load(tmp_path / "forecast.json")


def test_words(found):
    text = found.summary()
    assert f"{found.surviving} of 12 directions" in text
    assert "4,000 images × 4 views, 12 pixels" in text
    assert "a direction needs k above 0.5" in text
    assert "benign" in text
    assert "no everything" in text
    assert "alignment weight α 2" in text
    complete = forecast(images_of(500), Noise(), loss="infonce", alpha=100.0).summary()
    assert "complete collapse: 12 directions with 100%" in complete
    assert "nothing:" in forecast(images_of(500), Noise(torch.full((DIM,), 0.9))).summary()


def test_figures(found, tmp_path):
    found.measured = [1.0, 0.5, 0.25, 0.0]
    with Image.open(found.plot(tmp_path / "a" / "forecast.png")) as figure:
        assert figure.width > 2 * figure.height
    found.measured = None
    pictures = (images_of(4000).sigmoid() * 255).to(torch.uint8)
    for number, options in enumerate(
        ({"images": pictures, "shape": (3, 2, 2)}, {"images": pictures}, {"shape": (3, 2, 2)})
    ):
        with Image.open(plot_directions(found, tmp_path / f"{number}.png", **options)) as figure:
            assert figure.width > 800
    with pytest.raises(ValueError, match="no patterns to draw"):
        plot_directions(found, tmp_path / "x.png")
    # Complete collapse has no spectrum to draw, and a penalty no threshold.
    forecast(images_of(100), Noise(), loss="infonce", alpha=100.0).plot(tmp_path / "c.png")
    forecast(images_of(100), Noise(), alpha=2.0, gamma=0.5, dim=3).plot(tmp_path / "g.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha must be .* above 0, got 0"),
        ({"loss": "normalized", "temperature": -1.0}, "temperature must be .* above 0, got -1"),
        ({"loss": "quadratic"}, "did you mean 'quartic'"),
        ({"dim": 13}, "dim must be at most D = 12.*got 13"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"max_dim": 0}, "max_dim must be at least 1, got 0"),
        ({"views_per_image": 1}, "views_per_image must be at least 2, got 1"),
        ({"views_per_image": 3}, "multiple of 2.*got 3"),
        ({"labels": torch.zeros(3)}, "one label per image"),
        ({"labels": torch.full((40,), 0.5)}, "whole class numbers"),
        ({"labels": torch.arange(40), "class_names": ["a"]}, "class_names must have a name for label 39"),
        ({"images": images_of(1)}, "at least 4|at least 2"),
        ({"images": images_of(3)}, "at least 4"),
        ({"images": images_of(0)}, "empty"),
        ({"images": torch.full((9, 3, 2, 2), torch.nan)}, "NaN"),
        ({"features": lambda view: view.flatten(1) * torch.inf}, "encoder's weights"),
    ],
)
def test_bad_input(options, message):
    options = {"images": images_of(40), "views": Noise()} | options
    with pytest.raises(ValueError, match=message) as error:
        forecast(options.pop("images"), options.pop("views"), **options)
    assert "\n" not in str(error.value)
