"""Which losses may be accumulated over small batches, and full-batch gradients at the memory of small ones."""

import copy

import pytest
import torch
from live_memory import LiveMemory
from small_models import STEPS, Run, assert_same_training, small_model, train, views_of_step
from timm.layers import BatchNormAct2d, DropPath
from torch import nn

from hf_orthossl.methods import (
    EMBEDDING_REGULARIZERS,
    METHODS,
    THEORY_LOSSES,
    ChunkedEncoder,
    Progress,
    get_method,
)

COUPLED = ["simclr", "barlowtwins", "vicreg"]


def gradient(name, micro_batches, embedding=None):
    """Of the second step, so that queues, centres and target networks hold something of the first."""
    model = small_model(Run(name, "plain", embedding=embedding))
    # The method's own loss, without what batch norm in its heads makes of the batch.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    for step in range(2):
        model.zero_grad()
        model.begin_step(Progress(step, STEPS, steps_per_epoch=1))
        for parts in zip(*(view.chunk(micro_batches) for view in views_of_step(step)), strict=True):
            (model(list(parts)).loss / micro_batches).backward()
        model.before_optimizer_step()
        if step == 0:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.mul_(1.1)  # the same step for both
        model.end_step()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", [*METHODS, *THEORY_LOSSES])
def test_accumulation_is_the_large_batch_exactly_where_the_method_says_so(name):
    whole, split = gradient(name, 1), gradient(name, 4)
    difference = (split - whole).norm() / whole.norm()
    if get_method(name).batch_coupled:
        assert difference > 1e-3
    else:
        assert difference < 1e-10


@pytest.mark.parametrize("kind", EMBEDDING_REGULARIZERS)
def test_accumulation_changes_what_an_embedding_regularizer_computes(kind):
    """BYOL alone is the large batch exactly. Two parts, as W-MSE needs more images than dimensions."""
    whole, split = gradient("byol", 1, kind), gradient("byol", 2, kind)
    assert (split - whole).norm() / whole.norm() > 1e-4


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [1, 5])
def test_gradient_caching_is_the_full_batch(name, size):
    assert_same_training(train(Run(name, "plain", gradient_cache=size)), train(Run(name, "plain")))


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("sharded", [False, True])
def test_gradient_caching_on_two_processes(name, sharded, two_processes):
    for record in two_processes.run(train, Run(name, "plain", gradient_cache=3, sharded=sharded)):
        assert_same_training(record, train(Run(name, "plain")))


@pytest.mark.parametrize("name", COUPLED)
def test_gradient_caching_with_synchronized_batch_norm(name, two_processes):
    # Chunk c of the whole is then chunk c of both processes together.
    expected = two_processes.run(train, Run(name, gradient_cache=4))
    assert_same_training(expected[0], expected[1])
    whole = [torch.cat([view[:4], view[8:12], view[4:8], view[12:]]) for view in views_of_step(0)]
    model = small_model(Run(name))
    model.gradient_cache = 8
    loss = model(whole).loss
    torch.testing.assert_close(loss.detach(), expected[0]["losses"][0], rtol=1e-9, atol=1e-9)


class Stochastic(nn.Module):
    """Batch norms of every kind of momentum, and random depth."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3), BatchNormAct2d(6), nn.BatchNorm2d(6, momentum=None), DropPath(0.5), nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False)
        )  # fmt: skip

    def forward(self, images):
        return self.layers(images)


def test_recomputing_draws_the_same_and_moves_running_statistics_once():
    """Against the chunks one by one, with nothing recomputed."""
    encoder = Stochastic().double()
    images, weights = torch.randn(10, 3, 8, 8, dtype=torch.float64), torch.randn(10, 5, dtype=torch.float64)
    plain = copy.deepcopy(encoder)

    torch.manual_seed(1)
    cached = ChunkedEncoder(encoder, 4)(images)
    (cached * weights).sum().backward()
    torch.manual_seed(1)
    expected = torch.cat([plain(chunk) for chunk in images.split([4, 3, 3])])
    (expected * weights).sum().backward()

    torch.testing.assert_close(cached, expected, rtol=0, atol=0)
    for ours, theirs in zip(encoder.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(encoder.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert [m.momentum for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] == [0.1, None, 0.1]


def peak_bytes(gradient_cache):
    model = small_model(Run("simclr", "plain"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.gradient_cache = gradient_cache
    views = [torch.randn(64, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    with LiveMemory() as memory:
        memory.known.update(view.untyped_storage() for view in views)
        model(views).loss.backward()
    return memory.peak


def test_memory_falls_with_the_chunk():
    whole, cached = peak_bytes(None), [peak_bytes(size) for size in (32, 16, 8)]
    # Activations of two views of 64 images, against those of one view of a chunk.
    assert whole > 8e6
    for size, peak in zip((32, 16, 8), cached, strict=True):
        assert peak < 1.5 * whole * size / 128


def test_a_chunk_of_no_image_is_refused():
    model = small_model(Run("simclr"))
    model.gradient_cache = 0
    with pytest.raises(ValueError, match="gradient_cache is 0"):
        model(views_of_step(0))
