"""Features, neighbours and their cache over two processes give what one process gives."""

from pathlib import Path

import pytest
import torch

from hf_orthossl import load_encoder
from hf_orthossl.data import ImageDataset, load_source
from hf_orthossl.distributed.collectives import rank
from hf_orthossl.evaluation import FeatureCache, KNNMonitor, LabelledFeatures, extract_features, knn_results, knn_scores


def encoder():
    torch.manual_seed(0)
    return load_encoder("resnet10t", pretrained=False, image_size=32)


def features_of(count: int, shared: bool):
    dataset = ImageDataset(load_source("digits", split=f"train[:{count}]"), image_size=32)
    found = extract_features(encoder(), dataset, shared=shared, batch_size=16)
    return found.representations, found.labels


@pytest.mark.parametrize("count", [37, 1])
def test_shared_features_are_those_of_one_process_in_order(count, two_processes):
    representations, labels = features_of(count, shared=False)
    for other, same in two_processes.run(features_of, count, True):
        assert torch.equal(same, labels)
        torch.testing.assert_close(other, representations, rtol=1e-5, atol=1e-5)


def scores_of(queries: int, shared: bool):
    generator = torch.Generator().manual_seed(1)
    bank, asked = torch.randn(50, 8, generator=generator), torch.randn(queries, 8, generator=generator)
    return knn_scores(bank, torch.arange(50) % 7, asked, num_classes=7, k=9, chunk=16, shared=shared)


@pytest.mark.parametrize("queries", [41, 1])
def test_shared_neighbours_vote_as_in_one_process(queries, two_processes):
    alone = scores_of(queries, False)
    for other in two_processes.run(scores_of, queries, True):
        torch.testing.assert_close(other, alone, rtol=1e-5, atol=1e-5)


def cached_results(folder: Path, other: Path, shared: bool):
    """kNN through a cache that only the main process can reach."""
    cache = FeatureCache(folder if rank() == 0 else other)
    splits = (load_source("digits", split=split) for split in ("train[:60]", "test[:31]"))
    features = LabelledFeatures.extract(encoder(), *splits, cache, shared=shared, batch_size=16)
    return features.test, [result.value for result in knn_results(features, k=5, shared=shared)]


def test_the_main_process_alone_keeps_features(two_processes, tmp_path):
    alone, values = cached_results(tmp_path / "alone", tmp_path / "alone", False)
    folder, other = tmp_path / "main", tmp_path / "other"
    for _ in range(2):  # extracted, then read
        for test, found in two_processes.run(cached_results, folder, other, True):
            torch.testing.assert_close(test, alone, rtol=1e-5, atol=1e-5)
            assert found == pytest.approx(values)
        assert len(list(folder.iterdir())) == 2
        assert not other.exists()


def monitored(shared: bool):
    monitor = KNNMonitor(load_source("digits"), None, image_size=32, images=50, progress=False)
    return [result.value for result in monitor.measure(encoder(), 0, shared=shared)]


def test_a_monitor_shares_its_images(two_processes):
    alone = monitored(False)
    assert two_processes.run(monitored, True) == [pytest.approx(alone)] * 2
