"""Synchronized batch norm against torch's on the whole batch, in values, gradients and running statistics."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn

from hf_orthossl.distributed.collectives import all_reduce_mean, rank, world_size
from hf_orthossl.distributed.sync_batchnorm import synchronize_batchnorm

SHAPES = {nn.BatchNorm1d: (10, 5), nn.BatchNorm2d: (10, 5, 3, 4), nn.BatchNorm3d: (10, 5, 2, 3, 2)}
SHAPES[BatchNormAct2d] = SHAPES[nn.BatchNorm2d]

CASES = {
    "1d": (nn.BatchNorm1d, {}),
    "2d": (nn.BatchNorm2d, {}),
    "3d": (nn.BatchNorm3d, {}),
    "act": (BatchNormAct2d, {}),
    "act without": (BatchNormAct2d, {"apply_act": False}),
    "not affine": (nn.BatchNorm1d, {"affine": False}),
    "cumulative": (nn.BatchNorm2d, {"momentum": None}),
    "untracked": (nn.BatchNorm2d, {"track_running_stats": False}),
    "large ε": (nn.BatchNorm2d, {"eps": 0.1, "momentum": 0.3}),
}


def layer_of(kind, settings, dtype):
    torch.manual_seed(0)
    layer = kind(5, **settings).to(dtype)
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


def outcome(kind, settings, batches, weights, device="cpu", dtype=None):
    """What the layer gives on this process's share of the batches, and its gradients summed over processes."""
    layer = layer_of(kind, settings, torch.float64).to(device, dtype or batches.dtype)
    if world_size() > 1:
        synchronize_batchnorm(layer)
    outputs, gradients = [], []
    for batch, weight in zip(batches.to(device), weights.to(device), strict=True):
        x = batch.clone().requires_grad_()
        y = layer(x)
        (y * weight).sum().backward()
        outputs.append(y.detach().cpu())
        gradients.append(x.grad.cpu())
    shared = [world_size() * all_reduce_mean(p.grad).cpu() for p in layer.parameters()]
    layer.eval()
    state = {key: value.cpu() for key, value in layer.state_dict().items()}
    # Without running statistics eval mode takes the batch at hand, on one process as on any.
    evaluated = layer(batches[0].to(device)).detach().cpu() if layer.track_running_stats else batches[0, :0]
    return torch.stack(outputs), torch.stack(gradients), shared, state, evaluated


def share(kind, settings, batches, weights, sizes, device="cpu", dtype=None):
    batches, weights = (rows.split(sizes, 1)[rank()] for rows in (batches, weights))
    return outcome(kind, settings, batches, weights, device, dtype)


def compare(parts, whole, sizes, **tolerance):
    for i in range(2):
        torch.testing.assert_close(torch.cat([part[i] for part in parts], dim=1), whole[i], **tolerance)
    for part, first in zip(parts, (0, sizes[0]), strict=True):
        torch.testing.assert_close(part[2], whole[2], **tolerance)
        torch.testing.assert_close(part[3], whole[3], **tolerance)
        torch.testing.assert_close(part[4], whole[4][first : first + len(part[4])], **tolerance)


@pytest.mark.parametrize("sizes", [[5, 5], [3, 7], [1, 9]])
@pytest.mark.parametrize("case", CASES)
def test_shares_of_a_batch_are_normalized_like_the_whole(case, sizes, two_processes):
    kind, settings = CASES[case]
    batches, weights = torch.randn(2, 3, *SHAPES[kind], dtype=torch.float64)
    batches = 2 * batches + 3
    whole = outcome(kind, settings, batches, weights)
    parts = two_processes.run(share, kind, settings, batches, weights, sizes)
    compare(parts, whole, sizes, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("dtype", "parameters", "mean", "tolerance"),
    [
        (torch.float32, torch.float32, 1000, 2e-4),
        (torch.bfloat16, torch.float32, 10, 0.05),  # as under autocast
        (torch.bfloat16, torch.bfloat16, 10, 0.05),
    ],
)
def test_lower_precision_far_from_zero(dtype, parameters, mean, tolerance, two_processes):
    """A mean far above the spread: a difference of squares would have no digit left."""
    batches, weights = torch.randn(2, 3, 10, 5, 3, 4, dtype=torch.float64)
    batches = (batches + mean).to(dtype)
    kind, sizes = nn.BatchNorm2d, [4, 6]
    whole = outcome(kind, {}, batches.double(), weights.to(dtype).double())
    parts = two_processes.run(share, kind, {}, batches, weights.to(dtype), sizes, "cpu", parameters)
    for part, values, gradients in zip(parts, whole[0].split(sizes, 1), whole[1].split(sizes, 1), strict=True):
        assert part[0].dtype == part[1].dtype == dtype
        assert part[2][0].dtype == parameters
        assert ((part[0].double() - values).abs() <= tolerance * (1 + values.abs())).all()
        assert ((part[1].double() - gradients).abs() <= tolerance * (1 + gradients.abs())).all()


def test_conversion_keeps_names_tensors_hooks_and_one_process_results():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), BatchNormAct2d(5), nn.SyncBatchNorm(5), nn.GroupNorm(1, 5)
    )
    images = torch.randn(4, 3, 6, 6)
    plain = copy.deepcopy(model[:3])
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert synchronize_batchnorm(synchronize_batchnorm(model)) is model
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert isinstance(model[1], nn.BatchNorm2d)
    assert isinstance(model[2], BatchNormAct2d)
    assert type(model[3]) is nn.SyncBatchNorm
    torch.testing.assert_close(model[:3](images), plain(images), rtol=0, atol=0)
    assert calls == [1]
    copied = copy.deepcopy(model[:3]).eval()
    torch.testing.assert_close(copied(images), plain.eval()(images), rtol=0, atol=0)


def test_a_layer_with_a_computation_of_its_own_is_refused():
    with pytest.raises(ValueError, match="0 is a SplitBatchNorm2d"):
        synchronize_batchnorm(nn.Sequential(SplitBatchNorm2d(4)))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu(case, two_processes):
    kind, settings = CASES[case]
    batches, weights = torch.randn(2, 3, *SHAPES[kind], dtype=torch.float64)
    whole = outcome(kind, settings, batches, weights)
    parts = two_processes.run(share, kind, settings, batches, weights, [5, 5], "cuda")
    compare(parts, whole, [5, 5], rtol=1e-9, atol=1e-9)
