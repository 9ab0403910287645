"""Penalties on CUDA: nothing that waits for the device, in CUDA graphs, with TF32; what can be, checked without one."""

import copy
import importlib
from collections import Counter

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_orthossl.regularization import PENALTIES, OrthogonalityRegularizer

batching_module = importlib.import_module("hf_orthossl.regularization.batching")
matrices_module = importlib.import_module("hf_orthossl.regularization.matrices")
gpu = pytest.mark.gpu


def layers():
    return nn.Sequential(
        nn.Conv2d(16, 200, 3), nn.Linear(40, 40), nn.Linear(40, 40), nn.MultiheadAttention(12, 2), nn.Linear(300, 150)
    )


class Calls(TorchDispatchMode):
    """Counts the operations, and notes the devices of what they give."""

    def __init__(self):
        super().__init__()
        self.names, self.devices = Counter(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, FakeTensor)]
        if made and not function.is_view and "view" not in str(function):
            self.names[str(function)] += 1
        self.devices |= {tensor.fake_device.type for tensor in made}
        return result


@pytest.mark.parametrize("kind", PENALTIES)
def test_no_value_decides_what_is_done(kind, monkeypatch):
    """Tensors without values go through value and gradient: what reads one, and would wait for the device, fails."""
    monkeypatch.setitem(batching_module._TOGETHER, "cpu", batching_module._TOGETHER["cuda"])
    monkeypatch.setattr(matrices_module, "_BLOCK", 1 << 30)
    with FakeTensorMode():
        model = layers()
        regularizer = OrthogonalityRegularizer(model, kind)
        regularizer().backward()
        regularizer.add_gradients(0.1)
        with pytest.raises(RuntimeError):
            model[1].weight.sum().item()


@pytest.mark.parametrize("kind", PENALTIES)
def test_everything_is_made_on_the_device_of_the_weights(kind):
    with FakeTensorMode():
        with torch.device("cuda"):
            regularizer = OrthogonalityRegularizer(layers(), kind)
        with torch.no_grad(), Calls() as calls:
            regularizer()
    assert calls.devices - {"meta"} == {"cuda"}  # fake tensors are computed on "meta"


def test_few_operations_for_many_layers():
    """Each of a ResNet-50's 53 matrices would take a product, a subtraction and a norm with its square by itself."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = timm.create_model("resnet50", num_classes=0)
        regularizer = OrthogonalityRegularizer(model)
        with torch.no_grad(), Calls() as calls:
            regularizer()
    assert len(regularizer) == 53
    assert sum(calls.names.values()) < 0.6 * 4 * 53, calls.names


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", PENALTIES)
def test_value_and_gradient_equal_float64_on_the_cpu(kind, dtype):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = layers().to(dtype)
    exact = copy.deepcopy(model).double()
    expected = OrthogonalityRegularizer(exact, kind)(torch.Generator().manual_seed(3))
    expected.backward()
    model.cuda()
    value = OrthogonalityRegularizer(model, kind)(torch.Generator().manual_seed(3))
    value.backward()
    assert value.device.type == "cuda"
    torch.testing.assert_close(value.double().cpu(), expected.detach(), rtol=1e-5, atol=0)
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        if q.grad is not None:
            error = (p.grad.double().cpu() - q.grad).norm() / q.grad.norm()
            assert error < (1e-4 if dtype == torch.float32 else torch.finfo(dtype).eps)


@gpu
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", PENALTIES)
def test_a_cuda_graph_replays_it(kind, in_place):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = layers().cuda()
    regularizer = OrthogonalityRegularizer(model, kind)

    def step():
        for parameter in model.parameters():
            parameter.grad.zero_()
        if in_place:
            return regularizer.add_gradients()
        penalty = regularizer()
        penalty.backward()
        return penalty.detach()

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    graph.replay()
    first = value.clone()
    gradients = [p.grad.clone() for p in model.parameters()]
    graph.replay()
    if regularizer.penalty.num_vectors:
        assert first.isfinite()
        assert value != first  # every replay draws its own vectors
        return
    torch.testing.assert_close(value, first)
    torch.testing.assert_close(first, step())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@gpu
@pytest.mark.parametrize("kind", ["so", "sketched_so", "srip"])
def test_tf32_where_the_user_allows_it(kind, monkeypatch):
    """Ten bits of mantissa: the value moves, by less than a thousandth or two."""
    model = layers().cuda()
    values = {}
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", allowed)
        values[allowed] = OrthogonalityRegularizer(model, kind)(torch.Generator().manual_seed(0)).item()
    assert values[True] == pytest.approx(values[False], rel=2e-3)
    assert values[True] != values[False]


@gpu
@pytest.mark.parametrize("kind", PENALTIES)
def test_nothing_waits_for_the_device(kind):
    model = layers().cuda()
    regularizer = OrthogonalityRegularizer(model, kind)
    generator = torch.Generator("cuda").manual_seed(0)
    regularizer(generator).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        regularizer(generator).backward()
        regularizer.add_gradients(0.1, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
