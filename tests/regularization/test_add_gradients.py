"""Gradients put in place matrix by matrix, against a backward pass of the penalty."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations

from hf_orthossl.regularization import PENALTIES, OrthogonalityRegularizer


class Layers(nn.Module):
    """Fused, grouped, tiny equal, frozen, half-precision and computed weights."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)
        self.grouped = nn.Conv2d(4, 12, 3, groups=2).to(memory_format=torch.channels_last)
        self.equal = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.equal[1].requires_grad_(False)
        self.half = nn.Linear(6, 9).to(torch.bfloat16)
        self.computed = parametrizations.weight_norm(nn.Linear(7, 4))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Layers()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", PENALTIES)
def test_same_as_a_backward_pass(model, kind, reduction):
    twin = copy.deepcopy(model)
    expected = OrthogonalityRegularizer(model, kind, reduction=reduction)(torch.Generator().manual_seed(3))
    regularizer = OrthogonalityRegularizer(twin, kind, reduction=reduction)
    for _ in range(2):  # into no gradient, and on top of one
        (0.3 * expected).backward(retain_graph=True)
        with torch.no_grad():
            value = regularizer.add_gradients(0.3, torch.Generator().manual_seed(3))
        assert not value.requires_grad
        torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=0)
        ours, reference = gradients(twin), gradients(model)
        assert ours.keys() == reference.keys()
        assert "equal.1.weight" not in ours
        for name, gradient in reference.items():
            torch.testing.assert_close(ours[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
            assert ours[name].stride() == gradient.stride()


def test_weights_that_another_layer_makes():
    """As a hypernetwork does: only the graph knows whose parameters they come from."""
    torch.manual_seed(0)
    source, layer = nn.Linear(6, 3), nn.Linear(6, 3)
    regularizer = OrthogonalityRegularizer(layer)
    del layer._parameters["weight"]
    for penalize in (lambda: regularizer().backward(), regularizer.add_gradients):
        source.weight.grad = None
        layer.weight = 2 * source.weight
        penalize()
        W = source.weight.detach().double()
        expected = 2 * 4 * (4 * W @ W.T - torch.eye(3)) @ (2 * W)
        torch.testing.assert_close(source.weight.grad.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", PENALTIES)
def test_shares_average_to_the_whole(model, kind):
    regularizer = OrthogonalityRegularizer(model, kind)
    value = regularizer.add_gradients(1.0, torch.Generator().manual_seed(3))
    whole = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    shares = [
        regularizer.add_gradients(1 / 4, torch.Generator().manual_seed(3), process=process, processes=4)
        for process in range(4)
    ]
    torch.testing.assert_close(torch.stack(shares).mean(), value)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name])


def test_a_process_without_a_matrix_adds_nothing():
    layer = nn.Linear(3, 4)
    value = OrthogonalityRegularizer(layer).add_gradients(process=2, processes=3)
    assert value == 0
    assert layer.weight.grad is None


def test_hooks_of_the_weights_are_not_called(model):
    """DDP's would take the step's gradients for complete."""
    calls = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(calls.append)
    OrthogonalityRegularizer(model).add_gradients()
    assert not calls
    OrthogonalityRegularizer(model)().backward()
    assert calls


def test_no_gram_matrix_outlives_its_turn():
    """Of an encoder of many equal matrices, the graph holds one's at a time; a loss's holds all."""
    encoder = timm.create_model("test_vit", num_classes=0)
    regularizer = OrthogonalityRegularizer(encoder)
    whole = sum(min(m.shape) ** 2 for m in regularizer.matrices)
    held, peak = set(), 0

    class Packed:
        def __init__(self, tensor):
            self.tensor = tensor
            if tensor.shape[-1] == tensor.shape[-2] and tensor.data_ptr() not in owned:
                held.add((id(self), tensor.numel()))

        def __del__(self):
            held.discard((id(self), self.tensor.numel()))

    def pack(tensor):
        nonlocal peak
        packed = Packed(tensor)
        peak = max(peak, sum(size for _, size in held))
        return packed

    owned = {p.data_ptr() for p in encoder.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
        regularizer().backward()
        assert peak >= whole
        peak = 0
        regularizer.add_gradients()
    assert peak < whole / 4
