"""The penalty of whole models, against a float64 loop over their matrices."""

import copy
import importlib

import pytest
import timm
import torch
from torch import nn

from hf_orthossl.regularization import OrthogonalityRegularizer, get_penalty, select_matrices

batching_module = importlib.import_module("hf_orthossl.regularization.batching")


class Mixed(nn.Module):
    """Equal and unequal shapes, fused, grouped and transposed weights."""

    def __init__(self):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.attention = nn.MultiheadAttention(6, 2)
        self.grouped = nn.Conv2d(4, 12, 3, groups=2)
        self.transposed = nn.ConvTranspose1d(4, 6, 2)
        self.wide = nn.Linear(5, 9)


def formed_gram(kind, W, start):
    sides = [W @ W.T, W.T @ W]
    excesses = [G - torch.eye(len(G), dtype=W.dtype) for G in sides]
    E = min(excesses, key=len)  # the first, WWᵀ, when both are equally large
    if kind == "so":
        return (E**2).sum()
    if kind == "dso":
        return sum((F**2).sum() for F in excesses)
    if kind == "mc":
        return E.abs().max()
    if kind == "sketched_so":
        return (E @ start.view(16, -1).T).square().sum() / 16
    u = E @ start
    v = E @ u
    return v.norm() / u.norm()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Mixed()


@pytest.mark.parametrize("limit", [0, 100, 1 << 20])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["so", "sketched_so", "srip", "dso", "mc"])
def test_value_and_gradient_do_not_depend_on_batching(model, monkeypatch, kind, reduction, limit):
    monkeypatch.setitem(batching_module._TOGETHER, "cpu", limit)
    regularizer = OrthogonalityRegularizer(model, kind, reduction=reduction)
    penalty = regularizer(torch.Generator().manual_seed(3))
    penalty.backward()

    oracle = copy.deepcopy(model).double()
    oracle.zero_grad()
    matrices = select_matrices(oracle)
    sizes = [min(m.shape) for m in matrices]
    generator = torch.Generator().manual_seed(3)
    if kind == "sketched_so":
        sizes = [16 * size for size in sizes]
        drawn = 2 * torch.randint(2, (sum(sizes),), generator=generator, dtype=torch.float32) - 1
    else:
        drawn = torch.randn(sum(sizes), generator=generator)
    starts = drawn.double().split(sizes)
    values = [formed_gram(kind, m.matrix(), start) for m, start in zip(matrices, starts, strict=True)]
    expected = sum(values) / (len(values) if reduction == "mean" else 1)
    expected.backward()

    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-5, atol=0)
    for (name, p), q in zip(model.named_parameters(), oracle.parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None, name
        else:
            torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-5)


def test_double_weights_stay_double_next_to_float_ones(model):
    model.wide.double()
    penalty = OrthogonalityRegularizer(model)()
    assert penalty.dtype == torch.float64
    penalty.backward()
    assert model.wide.weight.grad.dtype == torch.float64
    assert model.linears[0].weight.grad.dtype == torch.float32


def test_descending_the_penalty_makes_weights_orthonormal(model):
    regularizer = OrthogonalityRegularizer(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        regularizer().backward()
        optimizer.step()
    for matrix in regularizer.matrices:
        singular = torch.linalg.svdvals(matrix.matrix())
        torch.testing.assert_close(singular, torch.ones_like(singular), rtol=0, atol=1e-3)


def test_float32_under_autocast(model):
    regularizer = OrthogonalityRegularizer(model)
    expected = regularizer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(regularizer(), expected)


def test_follows_a_replaced_parameter_and_a_copied_owner(model):
    class Owner:
        def __init__(self, module):
            self.module = module
            self.regularizer = OrthogonalityRegularizer(module, include="wide.*")

    owner = Owner(model)
    twin = copy.deepcopy(owner)
    twin.module.wide.weight = nn.Parameter(torch.eye(9, 5))
    assert twin.regularizer() == 0
    torch.testing.assert_close(owner.regularizer(), get_penalty("so")()(model.wide.weight.T))


def test_values_and_describe(model):
    regularizer = OrthogonalityRegularizer(model, "srip", iterations=200)
    state = torch.get_rng_state()
    values = regularizer.values()
    assert torch.equal(torch.get_rng_state(), state)
    assert list(values) == regularizer.names
    for matrix in regularizer.matrices:
        W = matrix.matrix().detach().double()
        G = min(W.T @ W, W @ W.T, key=len)
        exact = torch.linalg.matrix_norm(G - torch.eye(len(G)), 2).item()
        assert values[matrix.name] == pytest.approx(exact, rel=1e-3)
    table = regularizer.describe().splitlines()
    body = table[2:-2]
    assert [line.split()[0] for line in body] == regularizer.names
    assert [line.split()[1:4] for line in body][-1] == ["5", "×", "9"]
    assert "in_proj_weight[k]" in table[6]
    assert f"{sum(values.values()):.6g}" in table[-1]
    assert f"sum of {len(regularizer)} matrices" in table[-1]


def test_clip_from_transformers():
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    regularizer = OrthogonalityRegularizer(model)
    penalty = regularizer()
    penalty.backward()
    weights = [m.weight for m in model.modules() if type(m) in (nn.Linear, nn.Conv2d)]
    expected = sum(formed_gram("so", w.detach().double().flatten(1).T, start=None) for w in weights)
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-5, atol=0)
    touched = {id(p) for p in model.parameters() if p.grad is not None}
    assert touched == {id(w) for w in weights}


def test_frozen_weights_count_but_get_no_gradient(model):
    whole = OrthogonalityRegularizer(model)()
    model.wide.requires_grad_(False)
    penalty = OrthogonalityRegularizer(model)()
    torch.testing.assert_close(penalty, whole)
    penalty.backward()
    assert model.wide.weight.grad is None
    assert model.linears[0].weight.grad is not None


def test_a_channels_last_model_has_the_same_penalty():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet")
    expected = OrthogonalityRegularizer(model)()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    penalty = OrthogonalityRegularizer(last)()
    torch.testing.assert_close(penalty, expected)
    penalty.backward()
    assert last.layer1[0].conv2.weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_bad_input(model):
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got str 'resnet18': pass load_encoder"):
        OrthogonalityRegularizer("resnet18")
    with pytest.raises(ValueError, match="penalty 'sripp' is unknown: did you mean 'srip'"):
        OrthogonalityRegularizer(model, "sripp")
    with pytest.raises(ValueError, match="penalty 'so' has no option 'iterations': choose from include, exclude"):
        OrthogonalityRegularizer(model, "so", iterations=4)
    with pytest.raises(ValueError, match="reduction 'average' is unknown: choose from sum, mean"):
        OrthogonalityRegularizer(model, reduction="average")
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        OrthogonalityRegularizer(model, "srip", iterations=0)
