"""Spectra of features whose images are shared out over processes: those of one process with all images."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_orthossl.distributed.collectives import rank, shard_range
from hf_orthossl.spectra import SpectralReport, spectral_report
from hf_orthossl.spectra.covariance import SketchedCovariance, StreamingCovariance

DIM = 24


def samples(count: int) -> torch.Tensor:
    # A mean far from 0, that differs from sample to sample: what cancels, or is taken twice, shows.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, DIM, generator=generator, dtype=torch.float64) * torch.arange(1, DIM + 1)
    return rows + 1e3 + torch.arange(count)[:, None]


def combined(kind: str, count: int, uneven: bool):
    covariance = StreamingCovariance(DIM) if kind == "exact" else SketchedCovariance(DIM, top_k=12)
    own = shard_range(count)
    if uneven:
        own = range(count - 2) if rank() == 0 else range(count - 2, count)
    for part in samples(count)[own.start : own.stop].split(5):
        covariance.update(part)
    covariance.combine()
    return covariance.eigenvalues(), covariance.uncentred_eigenvalues(), covariance.total_variance, covariance.count


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(("kind", "count"), [("exact", 200), ("exact", 30), ("exact", 20), ("sketch", 200)])
def test_a_covariance_of_two_processes_is_numpys_of_all(kind, count, uneven, two_processes):
    rows = samples(count).numpy()
    oracle = np.linalg.eigvalsh(np.cov(rows, rowvar=False))[::-1]
    moments = np.linalg.eigvalsh(rows.T @ rows)[::-1]
    shown = len(oracle) if kind == "exact" else 12
    for centred, uncentred, variance, seen in two_processes.run(combined, kind, count, uneven):
        assert seen == count
        assert variance == pytest.approx(oracle.sum(), rel=1e-12)
        np.testing.assert_allclose(centred, oracle[:shown], rtol=0, atol=1e-10 * oracle[0])
        np.testing.assert_allclose(uncentred, moments[:shown], rtol=0, atol=1e-10 * moments[0])


class Pooled(nn.Module):
    """Its representation is its last stage averaged: the two share a covariance."""

    def __init__(self, changed: bool):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.changed = nn.Conv2d(3, 6, 3, stride=2).double(), changed
        self.stage_names = ["stem"]

    def stages(self, images):
        stem = self.stem(images).relu()
        representation = stem.mean((2, 3), dtype=torch.float64)
        # On one process of two only.
        return {"stem": stem, "representation": representation * (2 if self.changed and images[0, 0, 0, 0] < 0 else 1)}


def report_of(count: int, changed: bool, shared: bool) -> SpectralReport:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64)
    images[:, 0, 0, 0] = torch.linspace(1, -1, count)
    views = torch.randn(count, 3, 3, 8, 8, generator=generator, dtype=torch.float64)
    own = shard_range(count) if shared else range(count)
    return spectral_report(
        Pooled(changed),
        images[own.start : own.stop],
        views=views[own.start : own.stop],
        batch_size=5,
        shared=shared,
    )


@pytest.mark.parametrize("changed", [False, True])
def test_a_shared_report_is_that_of_one_process(changed, two_processes):
    alone = report_of(40, changed, False)
    for other in two_processes.run(report_of, 40, changed, True):
        assert other.metadata == alone.metadata
        assert list(other.features) == list(alone.features)
        for layer, expected in alone.features.items():
            found = other.features[layer]
            top = float(expected.eigenvalues[0])
            np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=0, atol=1e-10 * top)
            assert found.num_images == 40
            assert found.lidar == (expected.lidar and pytest.approx(expected.lidar, rel=1e-9))
            assert found.rankme == pytest.approx(expected.rankme, rel=1e-9)


def too_few():
    with pytest.raises(ValueError, match="images must be at least as many as the processes"):
        report_of(1, False, True)


def test_an_empty_share_is_told_on_all_processes(two_processes):
    two_processes.run(too_few)
