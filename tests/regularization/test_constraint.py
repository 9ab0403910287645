"""The hard constraint: the nearest orthonormal matrices, in every layout, in place, on any process."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_orthossl.distributed.collectives import rank
from hf_orthossl.regularization import OrthogonalConstraint, select_matrices
from hf_orthossl.regularization.constraint import nearest_orthonormal


def network():
    """Return each way in which a parameter holds matrices; the depthwise kernel and the norm are left out."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2)
    grouped = nn.Conv2d(8, 12, 3, groups=2)
    layers = {"conv": nn.Conv2d(3, 5, 3), "grouped": grouped, "depthwise": nn.Conv2d(8, 8, 3, groups=8)}
    layers |= {"up": nn.ConvTranspose2d(12, 6, 2, groups=2), "qkv": nn.Linear(6, 18), "c_attn": Conv1D(18, 6)}
    return nn.ModuleDict(layers | {"attention": attention, "wide": nn.Linear(30, 4), "norm": nn.BatchNorm2d(4)})


def singular_values(module):
    return torch.cat([torch.linalg.svdvals(m.matrix().detach().double()) for m in select_matrices(module)])


def nearest_by_svd(W):
    U, _, V = torch.linalg.svd(W, full_matrices=False)
    return U @ V


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (3, 70, 90)])
@pytest.mark.parametrize("size", [1e-6, 1e-2, 0.2, 10.0])
def test_the_nearest_matrix_against_its_decomposition(shape, size):
    """Near, by Newton's iteration, and far, in float64; in float32 to its rounding."""
    generator = torch.Generator().manual_seed(0)
    start = nearest_by_svd(torch.randn(shape, generator=generator, dtype=torch.float64))
    W = start + size * torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1]
    assert torch.allclose(nearest_orthonormal(W), nearest_by_svd(W), rtol=0, atol=1e-12)
    assert torch.allclose(nearest_orthonormal(W.float()).double(), nearest_by_svd(W), rtol=0, atol=2e-5)
    assert nearest_orthonormal(W.bfloat16()).dtype == torch.bfloat16


def test_any_start_becomes_orthonormal():
    for W in (torch.zeros(6, 3), torch.ones(3, 6), 1e20 * torch.eye(4)):
        values = torch.linalg.svdvals(nearest_orthonormal(W))
        assert torch.allclose(values, torch.ones_like(values), atol=1e-5)


def test_a_step_follows_the_riemannian_gradient():
    """W − ηG, replaced, is W − η(G − W sym(WᵀG)) up to η²."""
    generator = torch.Generator().manual_seed(0)
    W = nearest_by_svd(torch.randn(9, 4, generator=generator, dtype=torch.float64))
    G = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    tangent = G - W @ (W.T @ G + G.T @ W) / 2
    distances = [(nearest_orthonormal(W - eta * G) - (W - eta * tangent)).norm() for eta in (1e-2, 1e-3)]
    assert distances[1] < distances[0] / 90


def test_every_selected_matrix_and_nothing_else():
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    constraint = OrthogonalConstraint(module)
    constraint.begin()
    assert len(constraint) == len(select_matrices(module)) == 16
    values = singular_values(module)
    assert torch.allclose(values, torch.ones_like(values), atol=1e-5)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {matrix.name.partition("[")[0] for matrix in constraint.matrices}
    old = torch.cat([before[name].flatten() for name in sorted(changed)])
    new = torch.cat([module.state_dict()[name].flatten() for name in sorted(changed)])
    assert constraint.moved == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-5)


def test_frozen_weights_and_a_copy():
    module = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    pair = copy.deepcopy((module, OrthogonalConstraint(module)))
    pair[0]["a"].weight.requires_grad_(False)
    frozen = pair[0]["a"].weight.clone()
    pair[1].apply()
    assert torch.equal(pair[0]["a"].weight, frozen)
    assert torch.allclose(torch.linalg.svdvals(pair[0]["b"].weight), torch.ones(4), atol=1e-5)
    assert not torch.allclose(torch.linalg.svdvals(module["b"].weight), torch.ones(4), atol=1e-2)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"0\.weight is computed from other parameters, so that it cannot be kept"):
        OrthogonalConstraint(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))))
    with pytest.raises(FloatingPointError, match="a weight is not finite after the optimizer's step"):
        nearest_orthonormal(torch.full((3, 3), float("nan")))


def _shared():
    module = network()
    OrthogonalConstraint(module).apply(process=rank(), processes=2)
    return module.state_dict()


def test_two_processes_share_the_work(two_processes):
    alone = network()
    OrthogonalConstraint(alone).apply()
    first, second = two_processes.run(_shared)
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, atol=1e-6), name
