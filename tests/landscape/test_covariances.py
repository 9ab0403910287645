"""B and Σ from views: unbiased, whatever the batches, and with intervals that hold what they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf

from hf_orthossl.landscape import (
    StreamingViewCovariance,
    canonical_correlations,
    view_batches,
    view_covariances,
)

K = torch.tensor([0.9, 0.7, 0.5, 0.35, 0.2, 0.05], dtype=torch.float64)


def draw(n, v, k, generator, mixing=None):
    """Gaussian views `(n, v, D)` with canonical correlations k, in coordinates mixed by a matrix."""
    images = torch.randn(n, 1, len(k), generator=generator, dtype=torch.float64) * k.sqrt()
    noise = torch.randn(n, v, len(k), generator=generator, dtype=torch.float64) * (1 - k).sqrt()
    return (images + noise) if mixing is None else (images + noise) @ mixing


def loop_estimate(views, draws):
    """B as the mean over pairs of views of different kinds, Σ from B's own definition; in plain loops."""
    x = views.double().numpy()
    n, v, dim = x.shape
    kinds = v // draws
    centre = x.mean((0, 1))
    B, pairs = np.zeros((dim, dim)), 0
    for j in range(v):
        for k in range(v):
            if j % kinds != k % kinds:
                pairs += 1
                B += sum(np.outer(x[i, j] - centre, x[i, k] - centre) for i in range(n)) / (n - 1)
    within = sum(np.outer(x[i, j] - x[i].mean(0), x[i, j] - x[i].mean(0)) for i in range(n) for j in range(v))
    means = np.cov(x.mean(1).T, ddof=1).reshape(dim, dim)
    return B / pairs, means + within / (n * v)


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 7), st.sampled_from([(2, 1), (3, 1), (4, 2), (6, 2), (6, 3)]), st.integers(1, 4))
def test_the_split_is_that_of_a_plain_loop_over_pairs(n, layout, dim):
    v, draws = layout
    generator = torch.Generator().manual_seed(n + 10 * v + dim)
    # Kinds of views have means of their own: solarized ones are darker.
    views = torch.randn(n, v, dim, generator=generator, dtype=torch.float64)
    found = view_covariances([views], draws)
    B, Sigma = loop_estimate(views, draws)
    np.testing.assert_allclose(found.Sigma, Sigma, atol=1e-12)
    # A loop over pairs about the common mean divides what is between kinds by n − 1 and the estimate by n.
    kinds = views.reshape(n, draws, v // draws, dim).mean(1)
    T = v // draws
    spread = kinds - kinds.mean(1, keepdim=True)
    off = torch.einsum("ntd,nte->de", spread, spread) / (n * T * (T - 1)) * (n / (n - 1) - 1)
    np.testing.assert_allclose(found.B - off, B, atol=1e-10)
    np.testing.assert_allclose(found.C, found.Sigma - found.B)


def test_batches_do_not_matter():
    views = torch.randn(50, 4, 7, dtype=torch.float64) + 1000
    whole = view_covariances([views], draws=2)
    cut = view_covariances(views.split([1, 20, 29]), draws=2)
    torch.testing.assert_close(cut.B, whole.B, atol=1e-9, rtol=0)
    torch.testing.assert_close(cut.Sigma, whole.Sigma, atol=1e-9, rtol=0)
    torch.testing.assert_close(cut.mean, views.mean((0, 1)))


@pytest.mark.parametrize(("v", "draws"), [(2, 1), (4, 2), (3, 1)])
def test_unbiased(v, draws):
    """The mean of many estimates from 5 images each is the truth, within four of its own standard errors."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    k = torch.tensor([0.8, 0.4, 0.0], dtype=torch.float64)
    found = [view_covariances([draw(5, v, k, generator, mixing)], draws) for _ in range(3000)]
    for name, truth in (("B", mixing.T @ torch.diag(k) @ mixing), ("Sigma", mixing.T @ mixing)):
        estimates = torch.stack([getattr(one, name) for one in found])
        error = (estimates.mean(0) - truth).abs() / (estimates.std(0) / len(found) ** 0.5)
        assert error.max() < 4


def test_pairs_hold_views_of_different_kinds():
    """The second view of this recipe forgets the second pixel: no pair agrees on it, though like views do."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4000, 1, 1, 2, generator=generator, dtype=torch.float64)
    other = torch.randn(4000, 1, 1, 1, generator=generator, dtype=torch.float64).expand(-1, 2, 1, 1)
    first = images.expand(-1, 2, 1, 2)
    second = torch.cat([images[..., :1].expand(-1, 2, 1, 1), other], -1)
    views = torch.cat([first, second], 2).flatten(1, 2)  # draws × kinds
    found = view_covariances([views], draws=2)
    torch.testing.assert_close(found.B, torch.diag(torch.tensor([1.0, 0.0])).double(), atol=0.08, rtol=0)


def test_negative_part():
    views = draw(20, 2, torch.zeros(5, dtype=torch.float64), torch.Generator().manual_seed(0))
    found = view_covariances([views])
    values = torch.linalg.eigvalsh(found.B)
    assert values.min() < 0
    positive, cut = found.positive()
    torch.testing.assert_close(torch.linalg.eigvalsh(positive), values.clamp(min=0), atol=1e-12, rtol=0)
    assert cut == pytest.approx(float(-values[values < 0].sum() / values.abs().sum()))


def test_ledoit_wolf_is_scikit_learns():
    """Where both views of an image are the same, images are plain observations."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 30, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 2, 30)
    x -= x.mean(0)
    found = view_covariances([x[:, None].expand(-1, 2, -1)])
    shrunk, intensity = ledoit_wolf(x.numpy(), assume_centered=True)
    # scikit-learn divides by n, this project by n − 1.
    assert found.shrinkage == pytest.approx(intensity, rel=0.05)
    np.testing.assert_allclose(found.shrunk().Sigma * 59 / 60, shrunk, atol=0.05)
    assert float(found.shrunk().B.trace()) == pytest.approx(float(found.B.trace()))
    few = torch.linalg.eigvalsh(view_covariances([x[:10, None].expand(-1, 2, -1)]).shrunk().Sigma)
    assert few.min() > 1e-3


def coverage(repeats, n, v, draws, k=K):
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(len(k), len(k), generator=generator, dtype=torch.float64)
    inside, errors = [], []
    for seed in range(repeats):
        found = canonical_correlations(draw(n, v, k, generator, mixing), draws, seed=seed, resamples=200)
        inside.append((found.low <= k) & (k <= found.high))
        errors.append(torch.stack([found.values - k, found.sample - k]))
    return torch.stack(inside).double().mean(0), torch.stack(errors)


@pytest.mark.parametrize(("n", "v", "draws"), [(400, 2, 1), (400, 4, 2)])
def test_intervals_cover_the_truth(n, v, draws):
    """95 % intervals of every k hold it in 90 to 98 % of 200 repeats; and the estimates are not biased."""
    inside, errors = coverage(200, n, v, draws)
    assert 0.90 <= inside.min() <= inside.max() <= 0.98, inside
    assert errors[:, 0].mean(0).abs().max() < 0.01


def test_correction_takes_off_what_few_images_add():
    """The largest of 30 equal k is far too large in the sample of 300 images, and less so once corrected."""
    k = torch.full((30,), 0.2, dtype=torch.float64)
    _, errors = coverage(10, 300, 2, 1, k)
    corrected, sample = errors.mean(0)
    assert sample[0] > 0.2
    assert abs(corrected[0]) < 0.7 * sample[0]
    assert corrected.mean().abs() < 0.03


def test_directions_read_k_off_the_covariances():
    views = draw(500, 4, K, torch.Generator().manual_seed(0), torch.randn(6, 6, dtype=torch.float64))
    found = canonical_correlations(views)
    torch.testing.assert_close(found.filters @ found.Sigma @ found.filters.T, torch.eye(6).double(), atol=1e-8, rtol=0)
    values = torch.linspace(0.9, 0.1, 6).double()
    torch.testing.assert_close(found.filters @ found.B(values) @ found.filters.T, torch.diag(values), atol=1e-8, rtol=0)
    torch.testing.assert_close(found.Sigma, view_covariances([views]).Sigma)
    torch.testing.assert_close(found.filters @ view_covariances([views]).B @ found.filters.T, torch.diag(found.sample))


def test_constant_pixels_are_left_out():
    views = draw(100, 2, K, torch.Generator().manual_seed(0))
    found = canonical_correlations(torch.cat([views, torch.ones(100, 2, 3).double()], 2))
    assert found.values.shape == (6,)
    assert found.filters[:, 6:].abs().max() < 1e-6


def test_view_batches():
    images = torch.arange(10 * 3 * 2 * 2).reshape(10, 3, 2, 2).to(torch.uint8)
    seeds = []

    def views(batch, seed):
        seeds.append(seed)
        return [batch.float(), batch.float() + 0.5]

    made = list(view_batches(images, views, draws=2, batch_size=4))
    assert [batch.shape for batch in made] == [(4, 4, 12), (4, 4, 12), (2, 4, 12)]
    assert torch.equal(torch.cat(made)[:, 2], images.flatten(1).float())
    assert torch.equal(torch.cat(made)[:, 1], images.flatten(1).float() + 0.5)
    assert len(set(seeds)) == 6
    first = list(seeds)
    list(view_batches(images.split(4), views, draws=2))
    assert seeds[6:] == first
    list(view_batches(images.split(4), views, draws=2, seed=1))
    assert not set(seeds[12:]) & set(first)
    (encoded,) = view_batches(images, views, features=lambda view: view.flatten(1)[:, :5])
    assert encoded.shape == (10, 2, 5)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (torch.zeros(5, 1, 3), "at least 2 views"),
        (torch.zeros(5, 3), r"\(B, v, D\)"),
        (torch.zeros(1, 2, 3), "at least 2 for a covariance, got 1"),
        (torch.ones(5, 2, 3), "constant"),
        (torch.full((5, 2, 3), float("nan")), "NaN"),
        (torch.zeros(2, 2, 9000), "8,192.*image_size.*52.*encoder"),
    ],
)
def test_bad_views(views, message):
    with pytest.raises(ValueError, match=message) as error:
        view_covariances([views])
    assert "\n" not in str(error.value)


def test_bad_calls():
    with pytest.raises(ValueError, match="empty"):
        view_covariances([])
    with pytest.raises(ValueError, match="at least 4 for intervals"):
        canonical_correlations(torch.randn(3, 2, 2))
    with pytest.raises(ValueError, match="all views are equal"):
        canonical_correlations(torch.ones(5, 2, 2))
    with pytest.raises(ValueError, match="differ in size"):
        list(view_batches(torch.zeros(4, 3, 8, 8), lambda batch, seed: [batch, batch[..., :4, :4]]))
    covariance = StreamingViewCovariance(3)
    covariance.update(torch.randn(4, 2, 3))
    with pytest.raises(ValueError, match=r"\(B, 2, 3\)"):
        covariance.update(torch.randn(4, 3, 3))
