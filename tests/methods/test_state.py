"""What a method keeps between steps: target networks, queues, centres, prototypes, schedules."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.models.utils import update_momentum
from small_models import encoder_for, required
from torch import nn

from hf_orthossl.methods import METHODS, Progress, build_method
from hf_orthossl.methods.losses import sinkhorn
from hf_orthossl.methods.target_networks import EmbeddingQueue, TargetNetwork, cosine_momentum

SMALL = {"queue_size": 16}


def small(name, **more):
    return {**(SMALL if METHODS[name].has_queue else {}), **required(name), **more}


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_queue_is_a_list_of_the_latest(size, batches):
    """Against a plain list: same embeddings, oldest overwritten first."""
    queue = EmbeddingQueue(size, 3)
    history = [row.clone() for row in queue.bank]
    generator = torch.Generator().manual_seed(0)
    for count in batches:
        rows = torch.randn(count, 3, generator=generator)
        queue.enqueue(rows)
        history += list(F.normalize(rows, dim=1))
    latest = history[-size:]
    # The bank is a ring: its oldest entry stands at the cursor.
    unrolled = torch.cat([queue.bank[queue.cursor :], queue.bank[: queue.cursor]])
    torch.testing.assert_close(unrolled, torch.stack(latest))


def test_nearest_against_a_loop():
    queue = EmbeddingQueue(30, 4)
    queries = torch.randn(11, 4)
    found = queue.nearest(queries)
    for query, neighbour in zip(queries, found, strict=True):
        distances = [(F.normalize(query, dim=0) - entry).norm() for entry in queue.bank]
        assert torch.equal(neighbour, queue.bank[min(range(30), key=lambda i, d=distances: d[i])])


def test_target_follows_as_lightly_does():
    online, other = nn.Linear(4, 3), nn.Linear(4, 3)
    target = TargetNetwork(online)
    oracle = nn.Linear(4, 3)
    oracle.load_state_dict(target.stack[0].state_dict())
    for tau in (0.99, 0.5, 0.0, 1.0):
        target.follow(tau, other)
        update_momentum(other, oracle, tau)
        torch.testing.assert_close(target.stack[0].weight, oracle.weight, rtol=0, atol=1e-7)
        torch.testing.assert_close(target.stack[0].bias, oracle.bias, rtol=0, atol=1e-7)


def test_target_takes_no_gradient_and_moves_parameters_only(tiny_encoder):
    target = TargetNetwork(tiny_encoder)
    before = {name: buffer.clone() for name, buffer in target.named_buffers()}
    tiny_encoder(torch.randn(4, 3, 8, 8))  # changes the online running statistics
    target.follow(0.0, tiny_encoder)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in target.named_buffers())


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.0, 0.99), (0.5, 0.995), (1.0, 1.0), (1 / 3, 0.9925)],  # cos(π/3) = ½
)
def test_momentum_schedule_by_hand(fraction, expected):
    assert math.isclose(cosine_momentum(0.99, 1.0, fraction), expected, abs_tol=1e-12)


def test_dino_temperature_and_freeze_by_hand(tiny_encoder):
    config = {"warmup_teacher_epochs": 4.0, "freeze_last_layer_epochs": 2.0, "prototypes": 8}
    method = build_method("dino", tiny_encoder, config)
    for step, temperature, frozen in ((0, 0.04, True), (10, 0.0475, True), (20, 0.055, False), (40, 0.07, False)):
        method.begin_step(Progress(step, max_steps=100, steps_per_epoch=10))
        assert math.isclose(method.teacher_temperature, temperature, abs_tol=1e-12)
        method(tiny_encoder, [torch.randn(4, 3, 8, 8) for _ in range(2)]).loss.backward()
        method.before_optimizer_step()
        assert (method.head.last_layer.weight.grad is None) == frozen
        method.end_step(tiny_encoder)


def test_dino_centre_by_hand(tiny_encoder):
    method = build_method("dino", tiny_encoder, {"prototypes": 8, "center_momentum": 0.75})
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    teacher = torch.cat([method.target(view) for view in views])
    method(tiny_encoder, views)
    method.end_step(tiny_encoder)
    torch.testing.assert_close(method.center, 0.25 * teacher.mean(dim=0))


def test_swav_freezes_and_normalizes_prototypes(tiny_encoder):
    method = build_method("swav", tiny_encoder, {"freeze_prototypes_epochs": 1.0, "prototypes": 6})
    weight = method.prototypes.linear.weight
    for step, frozen in ((0, True), (5, False)):
        method.begin_step(Progress(step, 100, steps_per_epoch=5))
        method(tiny_encoder, [torch.randn(4, 3, 8, 8) for _ in range(2)]).loss.backward()
        method.before_optimizer_step()
        assert (weight.grad is None) == frozen
        weight.data.mul_(3)
        method.end_step(tiny_encoder)
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_sinkhorn_is_balanced_and_stable(scale):
    scores = scale * torch.randn(24, 6)
    assignment = sinkhorn(scores, 0.05, 200 if scale == 1.0 else 3)
    assert torch.isfinite(assignment).all()
    torch.testing.assert_close(assignment.sum(dim=1), torch.ones(24))
    if scale == 1.0:
        torch.testing.assert_close(assignment.sum(dim=0), torch.full((6,), 4.0), rtol=1e-2, atol=1e-2)


def states_after(name, encoder, steps, micro_batches, skipped=False):
    """A method's buffers and target after some optimizer steps, each batch split into micro-batches."""
    torch.manual_seed(1)
    method = build_method(name, encoder, small(name))
    # Running in eval mode leaves batch norm, which no split of the batch preserves, out of it.
    for module in [encoder, *method.modules()]:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, m=module: m
    encoder.eval()
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        method.begin_step(Progress(step, 10, 5))
        views = [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(2)]
        for parts in zip(*(view.chunk(micro_batches) for view in views), strict=True):
            method.begin_batch(len(parts[0]))
            method(encoder, list(parts))
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.mul_(1.01)
        method.end_step(encoder, skipped=skipped)
    return {key: value.clone() for key, value in method.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_state_does_not_depend_on_accumulation(name):
    encoder = encoder_for(name)
    whole = states_after(name, copy.deepcopy(encoder), steps=3, micro_batches=1)
    split = states_after(name, copy.deepcopy(encoder), steps=3, micro_batches=4)
    for key, value in whole.items():
        torch.testing.assert_close(split[key], value, msg=lambda text, key=key: f"{name} {key}: {text}")


@pytest.mark.parametrize("name", METHODS)
def test_a_skipped_step_changes_nothing(name):
    encoder = encoder_for(name)
    before = states_after(name, copy.deepcopy(encoder), steps=0, micro_batches=1)
    after = states_after(name, copy.deepcopy(encoder), steps=2, micro_batches=1, skipped=True)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.has_target or m.has_queue])
def test_state_moves_and_is_in_the_checkpoint(name):
    encoder = encoder_for(name)
    before = states_after(name, encoder, steps=0, micro_batches=1)
    after = states_after(name, encoder, steps=2, micro_batches=1)
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert {key for key in after if key.endswith("bank")} <= moved
    assert METHODS[name].has_queue == any(key.endswith("bank") for key in after)
    assert METHODS[name].has_target == any(key.startswith("target.") for key in moved)


def test_evaluation_does_not_stage(tiny_encoder):
    """A forward pass in eval mode (a monitor, say) must not end up in the queue."""
    method = build_method("nnclr", tiny_encoder, SMALL).eval()
    bank = method.queue.bank.clone()
    method(tiny_encoder.eval(), [torch.randn(4, 3, 8, 8) for _ in range(2)])
    assert not method._staged
    assert torch.equal(method.queue.bank, bank)


def test_an_images_random_numbers_depend_on_its_place_in_the_step(tiny_encoder):
    """Four micro-batches draw what a single batch of all their images would; each image, step and seed others."""

    def drawn(sizes, step=0, seed=1):
        method = build_method("simclr", tiny_encoder)
        method.begin_step(Progress(step, seed=seed))
        numbers = []
        for size in sizes:
            method.begin_batch(size)
            numbers += [generator.random(3).tolist() for generator in method.generators(size)]
        return numbers

    assert drawn([8]) == drawn([2, 2, 2, 2])
    everything = [
        number for one in (drawn([8]), drawn([8], step=1), drawn([8], seed=2)) for row in one for number in row
    ]
    assert len({*everything}) == len(everything)
