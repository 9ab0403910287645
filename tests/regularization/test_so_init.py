"""SO towards the start: value and gradient against the formula in float64, its zeros, and its state."""

import copy

import pytest
import timm
import torch
from torch import nn

from hf_orthossl import OrthogonalityRegularizer, SSLConfig, SSLModel
from hf_orthossl.regularization import get_penalty
from hf_orthossl.training.callbacks import OrthogonalityCallback

so_init, so = get_penalty("so_init")(), get_penalty("so")()
SHAPES = [(7, 4), (4, 7), (5, 5), (1, 6), (200, 90), (90, 200)]


def by_formula(W, start):
    W, start = W.double(), start.double()
    tall = W.shape[-2] > W.shape[-1]
    G, G0 = (W.mT @ W, start.mT @ start) if tall else (W @ W.mT, start @ start.mT)
    return (G - G0).square().sum((-2, -1))


def gradient(value, W):
    return torch.autograd.grad(value.sum(), W)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_value_and_gradient(shape, dtype):
    start = torch.randn(3, *shape).to(dtype)
    W = (start + 0.1 * torch.randn(3, *shape).to(dtype)).requires_grad_()
    value = so_init(W, reference=so_init.reference(start))
    exact = W.detach().double().requires_grad_()
    expected = by_formula(exact, start)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 1e-4}[dtype]
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=0)
    wanted = gradient(expected, exact)
    error = (gradient(value, W).double() - wanted).norm() / wanted.norm()
    assert error < max(tolerance, 5e-3 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_zero_at_the_start_and_after_a_rotation(shape):
    start = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    reference = so_init.reference(start.detach())
    value = so_init(start, reference=reference)
    assert value == 0
    assert not gradient(value, start).any()
    side = max(shape)
    rotation = torch.linalg.qr(torch.randn(side, side, dtype=torch.float64)).Q
    turned = rotation @ start if shape[0] > shape[1] else start @ rotation
    assert so_init(turned, reference=reference) < 1e-18 * side**4


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_with_an_orthonormal_start_it_is_so(shape):
    start = torch.linalg.qr(torch.randn(max(shape), min(shape), dtype=torch.float64)).Q
    start = start if shape[0] > shape[1] else start.mT
    W = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    ours, theirs = so_init(W, reference=so_init.reference(start)), so(W)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(ours, W), gradient(theirs, W), rtol=1e-10, atol=1e-12)


def moved(module):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return module


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_of_a_module_the_start_is_its_construction(name):
    """With grouped, stacked and fused weights; `deepcopy` and moves of the module keep the start."""
    module = timm.create_model(name, num_classes=0).double()
    regularizer = OrthogonalityRegularizer(module, "so_init")
    start = [matrix.matrix().detach().clone() for matrix in regularizer.matrices]
    assert regularizer() < 1e-20
    moved(module)
    expected = sum(by_formula(m.matrix(), w) for m, w in zip(regularizer.matrices, start, strict=True))
    torch.testing.assert_close(regularizer(), expected, rtol=1e-10, atol=0)
    wanted = torch.autograd.grad(expected, list(module.parameters()), allow_unused=True)
    module.zero_grad()
    torch.testing.assert_close(regularizer.add_gradients(2.0).detach(), expected.detach(), rtol=1e-10, atol=0)
    for parameter, exact in zip(module.parameters(), wanted, strict=True):
        if exact is not None:
            torch.testing.assert_close(parameter.grad, 2 * exact, rtol=1e-8, atol=1e-10)
    both = copy.deepcopy({"module": module, "regularizer": regularizer})
    moved(module)
    torch.testing.assert_close(both["regularizer"](), expected, rtol=1e-10, atol=0)
    assert both["regularizer"].references is not regularizer.references


def test_processes_share_it():
    module = timm.create_model("test_vit", num_classes=0).double()
    regularizer = OrthogonalityRegularizer(module, "so_init")
    moved(module)
    shares = [regularizer(process=process, processes=3) for process in range(3)]
    torch.testing.assert_close(sum(shares) / 3, regularizer(), rtol=1e-12, atol=0)


def test_a_saved_model_keeps_the_start(tmp_path):
    model = SSLModel(SSLConfig(image_size=32, regularizer="so_init", method_config={"hidden_dim": 8}))
    moved(model.encoder)
    value = model.penalty().item()
    assert value > 0
    model.save_pretrained(tmp_path)
    loaded = SSLModel.from_pretrained(tmp_path)
    assert loaded.penalty().item() == value
    copied = copy.deepcopy(model)
    moved(model.encoder)
    assert copied.penalty().item() == value
    assert copied.penalty_references is copied.regularizer.references


def test_a_callback_cannot_take_the_start_from_a_checkpoint():
    from types import SimpleNamespace

    args = SimpleNamespace(ddp_find_unused_parameters=False, ddp_static_graph=False)
    callback = OrthogonalityCallback("so_init")
    with pytest.raises(ValueError, match="keeps the weights of the start, which a checkpoint of this Trainer does not"):
        callback.on_train_begin(args, SimpleNamespace(global_step=3, log_history=[]), None, model=nn.Linear(3, 2))
