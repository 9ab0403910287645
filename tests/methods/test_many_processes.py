"""Every method on several processes against the same batch on one: losses, gradients and state, in float64."""

import pytest
import torch
from small_models import Run, assert_same_training, train

from hf_orthossl.distributed.collectives import rank
from hf_orthossl.distributed.gather import pooled_moments
from hf_orthossl.methods import EMBEDDING_REGULARIZERS, METHODS, THEORY_LOSSES
from hf_orthossl.methods.base import embedding_std
from hf_orthossl.methods.losses import sinkhorn

WITH_PREDICTOR = [name for name, method in METHODS.items() if method.has_predictor]


def assert_equal_on_all(records, expected):
    for record in records:
        assert_same_training(record, expected)


@pytest.mark.parametrize("name", [*METHODS, *THEORY_LOSSES])
def test_two_processes_are_one(name, two_processes):
    assert_equal_on_all(two_processes.run(train, Run(name)), train(Run(name)))


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_that_accumulate_are_one_that_does(name, two_processes):
    """Queues hold the keys in the order of the images, micro-batches before processes."""
    assert_equal_on_all(two_processes.run(train, Run(name, micro_batches=2)), train(Run(name, micro_batches=2)))


@pytest.mark.parametrize("name", WITH_PREDICTOR)
def test_whitening_takes_the_statistics_of_all_processes(name, two_processes):
    assert_equal_on_all(two_processes.run(train, Run(name, whitening=1.0)), train(Run(name, whitening=1.0)))


@pytest.mark.parametrize("layer", ["embedding", "representation"])
@pytest.mark.parametrize("kind", EMBEDDING_REGULARIZERS)
def test_embedding_regularizers_take_the_batch_of_all_processes(kind, layer, two_processes):
    run = Run("simclr", embedding=kind, layer=layer)
    assert_equal_on_all(two_processes.run(train, run), train(run))


@pytest.mark.parametrize("changes", [{"micro_batches": 2}, {"sharded": True}, {"gradient_cache": 2}])
def test_embedding_regularizers_with_accumulation_sharding_and_chunks(changes, two_processes):
    run = Run("byol", "plain", embedding="sigreg", regularizer="so", **changes)
    # Neither sharding nor chunks change what is computed.
    alone = {"micro_batches": run.micro_batches}
    expected = train(Run("byol", "plain", embedding="sigreg", regularizer="so", **alone))
    assert_equal_on_all(two_processes.run(train, run), expected)


@pytest.mark.parametrize("name", ["vicreg", "byol"])
def test_a_real_backbone_with_fused_activations(name, two_processes):
    run = Run(name, encoder="efficientnet", size=32)
    for record in two_processes.run(train, run):
        assert_same_training(record, train(run), tolerance=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_four_processes_are_one(name, four_processes):
    assert_equal_on_all(four_processes.run(train, Run(name, micro_batches=2)), train(Run(name, micro_batches=2)))


def test_unsynchronized_batch_norm_is_what_the_comparison_would_notice(two_processes):
    (one, _), whole = two_processes.run(_train_unsynchronized), train(Run("simclr"))
    assert (one["losses"][0] - whole["losses"][0]).abs() > 1e-3


def _train_unsynchronized():
    from unittest.mock import patch

    with patch("small_models.synchronize_batchnorm", lambda model: model):
        return train(Run("simclr"))


def _moments(numbers, sizes):
    own = numbers.split(sizes)[rank()]
    variance, mean = torch.var_mean(own, dim=0, correction=0)
    return pooled_moments(mean, variance, len(own)), embedding_std(own)


@pytest.mark.parametrize("sizes", [[5, 5], [1, 9]])
def test_moments_of_unequal_shares(sizes, two_processes):
    # Far from 0, where a difference of squares would have no digit left.
    numbers = torch.randn(10, 3) * 1e-2 + 100
    for (mean, variance, count), spread in two_processes.run(_moments, numbers, sizes):
        torch.testing.assert_close(mean.double(), numbers.double().mean(dim=0), rtol=1e-6, atol=0)
        torch.testing.assert_close(variance.double(), numbers.double().var(dim=0, correction=0), rtol=1e-2, atol=0)
        assert count == 10
        unit = torch.nn.functional.normalize(numbers.double(), dim=1)
        torch.testing.assert_close(spread.double(), unit.std(dim=0, correction=0).mean() * 3**0.5, rtol=1e-2, atol=0)


def _assignments(scores, sizes):
    return sinkhorn(scores.split(sizes)[rank()], 0.05, 3)


@pytest.mark.parametrize("sizes", [[6, 6], [11, 1], [0, 12]])
def test_balanced_assignments_of_unequal_shares(sizes, two_processes):
    scores = torch.randn(12, 5, dtype=torch.float64)
    found = torch.cat(two_processes.run(_assignments, scores, sizes))
    torch.testing.assert_close(found, sinkhorn(scores, 0.05, 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("regularizer", ["so", "srip"])
@pytest.mark.parametrize(
    "name",
    [name if name in ("simclr", "byol", "dino") else pytest.param(name, marks=pytest.mark.slow) for name in METHODS],
)
def test_two_processes_that_share_the_weights_out_are_one(name, regularizer, two_processes):
    """FSDP2, with the penalty on; target networks are sharded too."""
    for record in two_processes.run(train, Run(name, regularizer=regularizer, sharded=True)):
        assert_same_training(record, train(Run(name, regularizer=regularizer)))


def test_penalty_and_accumulation_on_two_processes(two_processes):
    run = Run("byol", micro_batches=2, regularizer="so")
    assert_equal_on_all(two_processes.run(train, run), train(run))
