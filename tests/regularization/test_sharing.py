"""The penalty shared out over processes, against the whole one."""

import pytest
import timm
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.methods import Progress
from hf_orthossl.regularization import PENALTIES, OrthogonalityRegularizer, get_penalty
from hf_orthossl.regularization.batching import shares

MODELS = {
    "resnet": lambda: timm.create_model("resnet18", num_classes=0),
    "vit": lambda: timm.create_model("test_vit", num_classes=0),
    "groups": lambda: nn.Sequential(nn.Conv2d(8, 24, 3, groups=4), nn.ConvTranspose2d(24, 8, 2), nn.Conv2d(8, 8, 1)),
}


def value_and_gradients(model, regularizer, **share):
    model.zero_grad()
    penalty = regularizer(torch.Generator().manual_seed(5), **share)
    penalty.backward()
    return penalty.detach(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize(("name", "reduction"), [("resnet", "sum"), ("vit", "sum"), ("groups", "mean")])
def test_the_mean_of_all_shares_is_the_whole_penalty(name, reduction, kind):
    model = MODELS[name]()
    regularizer = OrthogonalityRegularizer(model, kind, reduction=reduction)
    value, gradients = value_and_gradients(model, regularizer)
    for processes in (2, 4):
        shared = [
            value_and_gradients(model, regularizer, process=process, processes=processes)
            for process in range(processes)
        ]
        torch.testing.assert_close(torch.stack([v for v, _ in shared]).mean(), value, rtol=1e-6, atol=0)
        for whole, *parts in zip(gradients, *(g for _, g in shared), strict=True):
            parts = [part for part in parts if part is not None]
            assert bool(parts) == (whole is not None)
            if parts:
                error = sum(parts) / processes - whole
                assert error.norm() <= 1e-6 * whole.norm()


@pytest.mark.parametrize("kind", PENALTIES)
def test_shares_cost_about_the_same(kind):
    regularizer = OrthogonalityRegularizer(timm.create_model("resnet50", num_classes=0), kind)
    costs = [regularizer.penalty.cost(matrix.shape) for matrix in regularizer.matrices]
    for processes in (2, 4):
        loads = [sum(costs[i] for i in items) for items in shares(costs, processes)]
        assert max(loads) <= 1.05 * sum(costs) / processes


def test_cost_counts_multiplications():
    # SO: G = XXᵀ and (G − I)X, each min²·max. SRIP: matrix–vector products, each min·max.
    costs = {kind: [get_penalty(kind)().cost(shape) for shape in ((10, 3), (3, 10))] for kind in PENALTIES}
    assert costs["so"] == costs["dso"] == costs["mc"] == [90, 90]
    assert costs["srip"] == costs["sketched_so"] == [30, 30]


@settings(max_examples=100, deadline=None)
@given(costs=st.lists(st.integers(0, 1000), max_size=30), processes=st.integers(1, 12))
def test_shares_are_a_balanced_partition(costs, processes):
    split = shares(costs, processes)
    assert len(split) == processes
    assert sorted(i for items in split for i in items) == list(range(len(costs)))
    loads = [sum(costs[i] for i in items) for items in split]
    # No load is above the mean by more than the last item put on it, or is a single item.
    ranked = sorted(costs, reverse=True) + [0] * (processes + 1)
    assert max(loads) <= max(ranked[0], sum(costs) / processes + ranked[processes])
    assert shares(costs, processes) == split


def test_a_process_without_a_matrix_has_zero_and_a_graph():
    layer = nn.Linear(3, 4)
    regularizer = OrthogonalityRegularizer(layer)
    penalty = regularizer(process=2, processes=3)
    assert penalty == 0
    penalty.backward()
    assert layer.weight.grad is None
    owner = sum(regularizer(process=p, processes=3) for p in range(3))
    torch.testing.assert_close(owner, 3 * regularizer())


def test_bad_shares():
    regularizer = OrthogonalityRegularizer(nn.Linear(3, 4), "srip")
    with pytest.raises(ValueError, match="process is 2: it must be from 0 to 1, with processes=2"):
        regularizer(process=2, processes=2)
    with pytest.raises(ValueError, match="process is 0: it must be"):
        regularizer(processes=0)


class Penalized(nn.Module):
    """A model whose loss carries its penalty; `spare` has no other gradient."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.Linear(6, 4))
        self.spare = nn.Linear(5, 7, bias=False)
        self.regularizer = OrthogonalityRegularizer(self, kind)

    def forward(self, x, process=0, processes=1):
        penalty = self.regularizer(torch.Generator().manual_seed(5), process=process, processes=processes)
        return self.body(x).square().mean() + 0.1 * penalty


def train_under_ddp(kind, options):
    rank, count = dist.get_rank(), dist.get_world_size()
    model = Penalized(kind)
    replica = DistributedDataParallel(model, **options)
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        replica(x.chunk(count)[rank], process=rank, processes=count).backward()
        optimizer.step()
    return [p.grad.clone() for p in model.parameters()], [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "options",
    [{}, {"find_unused_parameters": True}, {"static_graph": True}, {"gradient_as_bucket_view": True}],
    ids=lambda options: next(iter(options), "default"),
)
def test_ddp_gives_the_whole_gradient(two_processes, options):
    check_ddp(two_processes, "srip", options)


def test_ddp_with_more_processes_than_matrices(four_processes):
    # Four matrices of which one has nearly all of the cost.
    check_ddp(four_processes, "so", {})


def shared_parts(kind):
    torch.manual_seed(0)
    config = SSLConfig("resnet10t", method="simclr", regularizer=kind, gamma=0.5, image_size=32)
    model = SSLModel(config)
    model.begin_step(Progress(step=3, max_steps=10, steps_per_epoch=5, seed=7))
    views = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    whole = model.penalty().item()
    return model(views).parts["orthogonality"].item(), 0.5 * whole


def test_the_model_shares_its_penalty_out(two_processes):
    (first, whole), (second, same) = two_processes.run(shared_parts, "srip")
    assert whole == same
    assert (first + second) / 2 == pytest.approx(whole, rel=1e-6)
    assert min(first, second) > 0


def check_ddp(group, kind, options):
    model = Penalized(kind)
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()
    for gradients, weights in group.run(train_under_ddp, kind, options):
        for gradient, weight, parameter in zip(gradients, weights, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(weight, parameter, rtol=1e-5, atol=1e-6)
