import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_orthossl.spectra import FeatureSpectrum, SketchedCovariance, StreamingCovariance, covariance


def _samples(count, dim, seed, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mixing + offset


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1),
    st.integers(1, 12),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 1.0, 1e4]),
)
def test_uneven_batches_give_numpys_covariance(sizes, dim, seed, offset):
    samples = _samples(sum(sizes), dim, seed, offset)
    streaming = StreamingCovariance(dim)
    for batch in samples.split(sizes):
        streaming.update(batch)
    oracle = np.atleast_2d(np.cov(samples.numpy(), rowvar=False))
    scale = np.abs(oracle).max()
    # Both round the mean, by which they centre.
    atol = 1e-10 * scale + 1e-15 * offset * scale**0.5
    np.testing.assert_allclose(streaming.covariance().numpy(), oracle, rtol=0, atol=atol)
    assert streaming.total_variance == pytest.approx(np.trace(oracle), rel=1e-10)
    assert streaming.count == sum(sizes)
    moment = samples.T @ samples
    torch.testing.assert_close(streaming.second_moment(), moment, rtol=0, atol=1e-10 * float(moment.max()))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=4).filter(lambda s: sum(s) > 1), st.integers(0, 2**31))
def test_shares_of_several_processes_merge_to_the_whole(sizes, seed):
    samples = _samples(sum(sizes), 5, seed, offset=3.0)
    merged = StreamingCovariance(5)
    for share in samples.split(sizes):
        one = StreamingCovariance(5)
        one.update(share)
        merged.merge(one)
    oracle = np.cov(samples.numpy(), rowvar=False)
    np.testing.assert_allclose(merged.covariance().numpy(), oracle, rtol=0, atol=1e-10 * np.abs(oracle).max())
    torch.testing.assert_close(merged.mean, samples.mean(0))


def test_dimensions_beyond_one_block_give_numpys_covariance(monkeypatch):
    monkeypatch.setattr(covariance, "_BLOCK", 16)
    samples = _samples(90, 50, seed=1)
    streaming = StreamingCovariance(50)
    for batch in samples.split(40):
        streaming.update(batch)
    oracle = np.cov(samples.numpy(), rowvar=False)
    np.testing.assert_allclose(streaming.covariance().numpy(), oracle, rtol=0, atol=1e-10 * np.abs(oracle).max())
    np.testing.assert_allclose(
        streaming.eigenvalues().numpy(), np.linalg.eigvalsh(oracle)[::-1], rtol=0, atol=1e-8 * np.abs(oracle).max()
    )


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 1, 5], [12, 8], [20, 1, 19], [40, 40]])
def test_fewer_and_more_samples_than_dimensions_give_the_same_spectra(sizes):
    """Up to as many samples as dimensions they are kept, and the smaller matrix is decomposed."""
    samples = _samples(sum(sizes), 20, seed=4, offset=2.0)
    streaming = StreamingCovariance(20)
    for batch in samples.split(sizes):
        streaming.update(batch)
    oracle = np.linalg.eigvalsh(np.cov(samples.numpy(), rowvar=False))[::-1]
    np.testing.assert_allclose(streaming.eigenvalues(), oracle.clip(min=0), rtol=0, atol=1e-10 * oracle.max())
    squares = np.linalg.svd(samples.numpy(), compute_uv=False) ** 2
    squares = np.pad(squares, (0, 20 - len(squares)))
    np.testing.assert_allclose(streaming.uncentred_eigenvalues(), squares, rtol=0, atol=1e-10 * squares.max())
    assert len(streaming.eigenvalues()) == len(streaming.uncentred_eigenvalues()) == 20


def test_samples_kept_and_samples_multiplied_out_merge():
    samples = _samples(60, 20, seed=5, offset=1.0)
    few, many = StreamingCovariance(20), StreamingCovariance(20)
    few.update(samples[:9])
    many.update(samples[9:55])
    few.merge(many)
    few.update(samples[55:])
    oracle = np.linalg.eigvalsh(np.cov(samples.numpy(), rowvar=False))[::-1]
    np.testing.assert_allclose(few.eigenvalues(), oracle, rtol=0, atol=1e-10 * oracle.max())


def test_half_precision_features_are_accumulated_in_float64():
    samples = (_samples(64, 6, seed=2) + 50).to(torch.bfloat16)
    streaming = StreamingCovariance(6)
    for batch in samples.split(10):
        streaming.update(batch)
    np.testing.assert_allclose(streaming.covariance(), np.cov(samples.double().numpy(), rowvar=False), rtol=1e-10)


@pytest.fixture
def decaying():
    """2,000 samples of 400 dimensions, eigenvalues about j^-2, off the origin."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(400, 400, generator=generator, dtype=torch.float64)).Q
    scales = torch.arange(1, 401, dtype=torch.float64) ** -1.0
    return (torch.randn(2000, 400, generator=generator, dtype=torch.float64) * scales) @ basis + 2.0


def test_the_sketch_finds_the_leading_eigenvalues_and_the_exact_trace(decaying):
    sketch, exact = SketchedCovariance(400, top_k=50), StreamingCovariance(400)
    for batch in decaying.split(300):
        sketch.update(batch)
        exact.update(batch)
    assert sketch.total_variance == pytest.approx(exact.total_variance, rel=1e-12)
    found, truth = sketch.eigenvalues(), exact.eigenvalues()[:50]
    assert (found <= truth * (1 + 1e-9)).all()
    torch.testing.assert_close(found[:5], truth[:5], rtol=0.01, atol=0)
    torch.testing.assert_close(found, truth, rtol=0.4, atol=0)
    uncentred = exact.uncentred_eigenvalues()[:5]
    torch.testing.assert_close(sketch.uncentred_eigenvalues()[:5], uncentred, rtol=0.01, atol=0)
    estimate, full = FeatureSpectrum.from_covariance(sketch), FeatureSpectrum.from_covariance(exact)
    assert 1 < estimate.effective_rank < full.effective_rank
    assert 1 < estimate.rankme < full.rankme
    assert estimate.participation_ratio == pytest.approx(full.participation_ratio, rel=0.01)


def test_the_sketch_is_exact_below_its_rank_and_merges():
    samples = _samples(40, 300, seed=3, offset=1.0)
    whole, shares = SketchedCovariance(300, top_k=45), SketchedCovariance(300, top_k=45)
    whole.update(samples)
    for share in samples.split(15):
        one = SketchedCovariance(300, top_k=45)
        one.update(share)
        shares.merge(one)
    oracle = np.linalg.eigvalsh(np.cov(samples.numpy(), rowvar=False))[::-1][:45]
    for sketch in (whole, shares):
        np.testing.assert_allclose(sketch.eigenvalues().numpy(), oracle, rtol=0, atol=1e-9 * oracle[0])


def test_constant_features_have_a_zero_spectrum():
    for streaming in (StreamingCovariance(6), SketchedCovariance(6, top_k=2)):
        streaming.update(torch.ones(9, 6))
        assert float(streaming.eigenvalues().max()) == 0.0
        assert streaming.total_variance == 0.0


def test_misuse_is_refused_in_plain_words():
    streaming = StreamingCovariance(4)
    with pytest.raises(ValueError, match=r"features has shape \(3, 5\): pass \(n, 4\)"):
        streaming.update(torch.randn(3, 5))
    streaming.update(torch.randn(1, 4))
    with pytest.raises(ValueError, match="at least 2 for a covariance, got 1"):
        streaming.covariance()
    with pytest.raises(ValueError, match="StreamingCovariance of dimension 4"):
        streaming.merge(StreamingCovariance(5))
    with pytest.raises(ValueError, match="StreamingCovariance of dimension 4"):
        streaming.merge(SketchedCovariance(4, top_k=2))
    with pytest.raises(ValueError, match="top_k"):
        SketchedCovariance(10, top_k=6)
    for broken in (streaming, SketchedCovariance(4, top_k=1)):
        broken.update(torch.full((3, 4), float("nan")))
        with pytest.raises(ValueError, match="diverged"):
            broken.eigenvalues()
