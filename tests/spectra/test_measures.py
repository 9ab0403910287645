import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_orthossl.spectra import (
    alpha_req,
    condition_number,
    count_positive,
    effective_rank,
    lidar,
    participation_ratio,
    rankme,
    stable_rank,
)

spectra = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30)


@settings(deadline=None, max_examples=50)
@given(spectra)
def test_ranks_follow_their_papers(values):
    sigma, vector = np.array(values), torch.tensor(values, dtype=torch.float64)
    p = sigma / sigma.sum()
    assert effective_rank(vector) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-10)
    q = p + 1e-7
    assert rankme(vector) == pytest.approx(np.exp(-(q * np.log(q)).sum()), rel=1e-10)
    assert stable_rank(vector) == pytest.approx((sigma**2).sum() / sigma.max() ** 2, rel=1e-10)
    assert participation_ratio(vector) == pytest.approx(sigma.sum() ** 2 / (sigma**2).sum(), rel=1e-10)
    assert condition_number(vector) == pytest.approx(sigma.max() / sigma.min(), rel=1e-10)


def test_rankme_of_a_matrix_is_garridos():
    z = np.random.default_rng(0).normal(size=(200, 12)) @ np.diag(0.5 ** np.arange(12)) + 0.3
    sigma = np.linalg.svd(z, compute_uv=False)
    p = sigma / np.abs(sigma).sum() + 1e-7
    assert rankme(torch.from_numpy(sigma)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)


@pytest.mark.parametrize("measure", [effective_rank, rankme, stable_rank, participation_ratio])
@pytest.mark.parametrize("count", [1, 8, 100])
def test_equal_values_have_full_rank_and_scale_does_not_matter(measure, count):
    assert measure(torch.full((count,), 3e-5)) == pytest.approx(count, rel=1e-3)


def test_zeros_are_zero_rank_and_infinite_condition():
    zeros = torch.zeros(5)
    for measure in (effective_rank, rankme, stable_rank, participation_ratio, count_positive):
        assert measure(zeros) == 0
    assert alpha_req(zeros) is None
    assert condition_number(zeros) == math.inf
    assert condition_number(torch.tensor([2.0, 0.0])) == math.inf
    assert effective_rank(torch.tensor([2.0, 2.0, 0.0])) == pytest.approx(2)


@pytest.mark.parametrize("broken", [torch.tensor([]), torch.tensor([1.0, math.nan]), torch.ones(2, 2)])
def test_what_is_no_spectrum_is_refused(broken):
    with pytest.raises(ValueError, match="vector of finite numbers"):
        effective_rank(broken)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_alpha_of_a_power_law_is_its_exponent(alpha):
    assert alpha_req(7 * torch.arange(1, 301, dtype=torch.float64) ** -alpha) == pytest.approx(alpha, rel=1e-10)


@pytest.mark.parametrize("count", [7, 60, 400])
def test_alpha_is_the_weighted_least_squares_slope(count):
    eigenvalues = np.sort(np.random.default_rng(count).gamma(0.5, size=count))[::-1]
    j = np.arange(4, min(count, 100) + 1)
    # numpy.polyfit weighs residuals before squaring, hence the root.
    slope, _ = np.polyfit(np.log(j), np.log(eigenvalues[3:100]), 1, w=np.sqrt(1 / j))
    assert alpha_req(torch.from_numpy(eigenvalues.copy())) == pytest.approx(-slope, rel=1e-8)


def test_alpha_leaves_out_rounding_noise_and_needs_three_points():
    spectrum = torch.arange(1, 31, dtype=torch.float64) ** -1.5
    noisy = torch.cat([spectrum, torch.full((50,), 1e-18, dtype=torch.float64)])
    assert alpha_req(noisy) == pytest.approx(1.5, rel=1e-10)
    assert alpha_req(spectrum[:5]) is None
    assert alpha_req(spectrum[:6]) == pytest.approx(1.5, rel=1e-10)


def test_positive_eigenvalues_are_counted_as_numpy_counts_rank():
    rng = np.random.default_rng(1)
    for samples, dim, rank in ((20, 60, 60), (200, 60, 60), (200, 60, 7)):
        x = rng.normal(size=(samples, rank)) @ rng.normal(size=(rank, dim))
        centred = x - x.mean(0)
        eigenvalues = torch.from_numpy(np.linalg.eigvalsh(np.cov(x, rowvar=False)))
        assert count_positive(eigenvalues, max(x.shape)) == np.linalg.matrix_rank(centred)


@pytest.mark.parametrize(("images", "views", "dim"), [(40, 3, 6), (5, 10, 12), (2, 2, 1)])
def test_lidar_follows_its_paper(images, views, dim):
    rng = np.random.default_rng(images)
    e = rng.normal(size=(images, 1, dim)) * np.linspace(3, 0.1, dim) + 0.5 * rng.normal(size=(images, views, dim))
    mu = e.reshape(-1, dim).mean(0)
    between, within = np.zeros((dim, dim)), 1e-4 * np.eye(dim)
    for x in e:
        between += np.outer(x.mean(0) - mu, x.mean(0) - mu) / images
        for view in x:
            within += np.outer(view - x.mean(0), view - x.mean(0)) / (images * views)
    root = np.linalg.inv(scipy.linalg.sqrtm(within).real)
    eigenvalues = np.clip(np.linalg.eigvalsh(root @ between @ root), 0, None)
    p = eigenvalues / eigenvalues.sum() + 1e-7
    assert lidar(torch.from_numpy(e)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_lidar_sees_collapse():
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(200, 1, 10, generator=generator) + 0.1 * torch.randn(200, 4, 10, generator=generator)
    collapsed = healthy.clone()
    collapsed[..., 2:] = 0
    assert lidar(healthy) > 9
    assert lidar(collapsed) < 2.1
    assert lidar(torch.full((10, 3, 4), 0.7)) == 0.0


def test_lidar_refuses_single_views_and_divergence():
    with pytest.raises(ValueError, match="views has shape"):
        lidar(torch.randn(10, 1, 4))
    with pytest.raises(ValueError, match="diverged"):
        lidar(torch.full((10, 2, 4), math.nan))
