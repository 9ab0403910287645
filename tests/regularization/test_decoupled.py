"""The decoupled step against its formula in float64, its promise for any singular value, and what it leaves alone."""

import copy

import pytest
import timm
import torch
from layouts import MoreLayouts
from live_memory import LiveMemory
from torch import nn
from torch.nn.utils import parametrizations

from hf_orthossl import OrthogonalityRegularizer, Penalty, SSLConfig, SSLModel, register_penalty
from hf_orthossl.regularization import PENALTIES, get_penalty

KINDS = ("so", "scaled_so")


def formula(kind, W, strength):
    """One step of one matrix `(input, output)`, written out."""
    X = W if W.shape[0] <= W.shape[1] else W.T
    n, G, identity = len(X), X @ X.T, torch.eye(len(X), dtype=W.dtype)
    if kind == "so":
        step = min(strength, 0.5 / max(1.0, G.abs().sum(1).max().item()))
        new = X - step * (G - identity) @ X
    else:
        H = n * G / G.trace()
        step = min(strength, 1 / (3 * H.abs().sum(1).max().item() - 1))
        new = X - step * (H - (H @ H).trace() / n * identity) @ X
    return new if W.shape[0] <= W.shape[1] else new.T


def with_singular_values(values, larger, generator=None, dtype=torch.float64):
    generator = generator or torch.Generator().manual_seed(0)
    n = len(values)
    U, V = (torch.linalg.qr(torch.randn(size, n, generator=generator, dtype=torch.float64)).Q for size in (n, larger))
    return (U * values.double() @ V.T).to(dtype)


@pytest.mark.parametrize("strength", [0.01, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_against_the_formula(kind, dtype, strength):
    torch.manual_seed(0)
    module = MoreLayouts().to(dtype)
    regularizer = OrthogonalityRegularizer(module, kind)
    value = regularizer().detach()
    before = [matrix.matrix().detach().double().clone() for matrix in regularizer.matrices]
    others = {name: p.clone() for name, p in module.named_parameters() if p.ndim < 2}
    places = [p.data_ptr() for p in module.parameters()]
    torch.testing.assert_close(regularizer.step(strength), value, rtol=1e-5, atol=0)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for matrix, W in zip(regularizer.matrices, before, strict=True):
        expected = formula(kind, W, strength)
        assert (matrix.matrix() - expected).norm() <= tolerance * expected.norm(), matrix.name
        assert (matrix.matrix() - W).norm() > 1e-4 * W.norm(), matrix.name
    assert [p.data_ptr() for p in module.parameters()] == places
    assert all(torch.equal(module.get_parameter(name), value) for name, value in others.items())


def test_the_step_is_a_quarter_of_the_gradient():
    """Of scaled SO times the mean eigenvalue, so that a scaled matrix makes a scaled step."""
    W = torch.randn(12, 7, dtype=torch.float64, requires_grad=True)
    for kind, scale in (("so", 1.0), ("scaled_so", W.square().sum().item() / 7)):
        layer = nn.Linear(12, 7, bias=False).double()
        layer.weight.data = W.detach().T.clone()
        (gradient,) = torch.autograd.grad(get_penalty(kind)().value(W), W)
        OrthogonalityRegularizer(layer, kind).step(1e-4)
        torch.testing.assert_close(layer.weight.T, W - 1e-4 / 4 * scale * gradient, rtol=1e-10, atol=1e-12)
    large = nn.Linear(12, 7, bias=False).double()
    large.weight.data = 1e5 * W.detach().T
    OrthogonalityRegularizer(large, "scaled_so").step(1e-4)
    torch.testing.assert_close(large.weight / 1e5, layer.weight, rtol=1e-10, atol=1e-12)


SPECTRA = {
    "1e-4 to 1e4": torch.logspace(-4, 4, 9),
    "all tiny": torch.logspace(-4, -3, 9),
    "all huge": torch.logspace(3, 4, 9),
    "one huge": torch.tensor([1e4] + 8 * [1.0]),
    "one tiny": torch.tensor([1e-4] + 8 * [1.0]),
    "orthonormal": torch.ones(9),
    "around 1": torch.linspace(0.9, 1.1, 9),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strength", [0.05, 0.5, 1e6])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_every_singular_value_approaches_1_from_its_side(spectrum, strength, dtype):
    layer = nn.Linear(20, 9, bias=False).to(dtype)
    layer.weight.data = with_singular_values(SPECTRA[spectrum], 20, dtype=dtype)
    regularizer = OrthogonalityRegularizer(layer)
    singular = torch.linalg.svdvals(layer.weight.detach().double())
    for _ in range(200):
        regularizer.step(strength)
        now = torch.linalg.svdvals(layer.weight.detach().double())
        # A singular value is only known to the rounding of the largest.
        rounding = 200 * torch.finfo(dtype).eps * singular.max()
        assert (now <= singular.clamp(min=1) + rounding).all()
        assert (now >= singular.clamp(max=1) - rounding).all()
        singular = now
    if strength >= 0.5 and "1e4" not in spectrum:
        torch.testing.assert_close(singular, torch.ones(9, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("strength", [0.05, 0.5, 1e6])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_ratios_of_singular_values_approach_1_and_the_scale_stays(spectrum, strength):
    layer = nn.Linear(20, 9, bias=False).double()
    layer.weight.data = 3 * with_singular_values(SPECTRA[spectrum], 20)
    regularizer = OrthogonalityRegularizer(layer, "scaled_so")
    singular, norm = torch.linalg.svdvals(layer.weight.detach()), layer.weight.detach().norm()
    for _ in range(60):
        regularizer.step(strength)
        now = torch.linalg.svdvals(layer.weight.detach())
        rounding = 1e-12 * singular[0] / singular[-1]
        assert (now[:-1] / now[1:] <= (singular[:-1] / singular[1:]) * (1 + rounding) + rounding).all()
        assert now.isfinite().all()
        singular = now
    # The norm grows by the squares of the steps, of which the bound leaves little.
    assert 1 - 1e-9 <= layer.weight.detach().norm() / norm <= 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_become_orthogonal(kind):
    regularizer = OrthogonalityRegularizer(MoreLayouts(), kind)
    start = regularizer().item()
    for _ in range(100):
        value = regularizer.step(0.2).item()
    assert value < 1e-5 * start


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_needs_the_memory_of_one_matrix_and_its_gram_matrix(kind):
    module = nn.Sequential(*(nn.Linear(300, 200, bias=False) for _ in range(4)))
    regularizer = OrthogonalityRegularizer(module, kind)
    with LiveMemory() as memory:
        regularizer.step(0.1)
    # What is counted includes the four weights, once their step has begun.
    assert memory.peak <= 4 * (4 * 300 * 200 + 300 * 200 + 200**2 + 2000)


def test_a_zero_matrix_stays_and_half_precision_is_computed_in_float32():
    layer = nn.Linear(6, 4, bias=False)
    nn.init.zeros_(layer.weight)
    for kind in KINDS:
        OrthogonalityRegularizer(layer, kind).step(0.5)
        assert torch.equal(layer.weight, torch.zeros(4, 6))
    half = nn.Linear(300, 40, bias=False).bfloat16()
    exact = copy.deepcopy(half).float()
    with torch.autocast("cpu"):
        for module in (half, exact):
            OrthogonalityRegularizer(module).step(0.1)
    torch.testing.assert_close(half.weight.float(), exact.weight, rtol=2**-7, atol=2e-5)


def test_frozen_weights_stay_as_they_are():
    module = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    module[0].weight.requires_grad_(False)
    regularizer = OrthogonalityRegularizer(module)
    before = module[0].weight.clone()
    value = regularizer(trained_only=True).detach()
    torch.testing.assert_close(regularizer.step(0.3), value)
    assert torch.equal(module[0].weight, before)
    module[1].weight.requires_grad_(False)
    assert regularizer.step(0.3) == 0


def test_a_weight_standardized_convolution_is_stepped_as_it_is_read():
    conv = timm.layers.StdConv2d(4, 6, 3)
    expected = formula("so", conv.weight.detach().flatten(1).T.clone(), 0.1)
    OrthogonalityRegularizer(conv).step(0.1)
    torch.testing.assert_close(conv.weight.flatten(1).T, expected)


def test_what_has_no_step_is_refused():
    for kind in sorted(set(PENALTIES) - set(KINDS)):
        with pytest.raises(ValueError, match=rf"penalty {kind!r} has no decoupled step: choose from scaled_so, so,"):
            OrthogonalityRegularizer(nn.Linear(3, 3), kind).step(0.1)
        with pytest.raises(ValueError, match=rf"penalty {kind!r} has no decoupled step: choose from scaled_so, so,"):
            SSLConfig(regularizer=kind, penalty_mode="decoupled")
    for wrap in (parametrizations.weight_norm, torch.nn.utils.weight_norm):
        computed = nn.Sequential(nn.Linear(3, 3), wrap(nn.Linear(3, 3)))
        with pytest.raises(ValueError, match=r"^1\.weight is computed from other parameters.* pass exclude="):
            OrthogonalityRegularizer(computed).step(0.1)
        OrthogonalityRegularizer(computed, exclude="1.weight").step(0.1)
    for strength in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="it must be 0 or more"):
            OrthogonalityRegularizer(nn.Linear(3, 3)).step(strength)


class Stepping(Penalty):
    """Half the strength of SO."""

    name = "test_stepping"
    title = "a penalty of one's own"
    default_gamma = 1e-4

    def value(self, W, vectors=None):
        return get_penalty("so")().value(W)

    def decoupled_step(self, G, strength):
        return get_penalty("so")().decoupled_step(G, strength / 2)


def test_a_penalty_of_one_s_own(monkeypatch):
    with pytest.raises(ValueError, match="Stepping has a decoupled_step and default_strength is 0"):
        register_penalty(Stepping)
    monkeypatch.setattr(Stepping, "default_strength", 0.2)
    monkeypatch.setattr("hf_orthossl.regularization.penalties.base.PENALTIES", PENALTIES)
    monkeypatch.setitem(PENALTIES, "test_stepping", Stepping)
    layer = nn.Linear(5, 4, bias=False)
    same = copy.deepcopy(layer)
    OrthogonalityRegularizer(layer, "test_stepping").step(0.1)
    OrthogonalityRegularizer(same).step(0.05)
    assert torch.equal(layer.weight, same.weight)
    assert SSLConfig(regularizer="test_stepping", penalty_mode="decoupled").strength == 0.2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"penalty_mode": "decopled"}, "penalty_mode is 'decopled': did you mean 'decoupled'?"),
        ({"strength": 0.1}, "strength is 0.1, but penalty_mode is loss"),
        ({"penalty_mode": "decoupled", "gamma": 1e-3}, "gamma is 0.001, but penalty_mode is decoupled"),
        ({"penalty_mode": "decoupled", "regularizer": None}, "there is no penalty: pass regularizer so"),
        ({"penalty_mode": "decoupled", "strength": 0.6}, r"strength is 0.6: it must lie in \[0, 0.5\]"),
        ({"penalty_mode": "decoupled", "strength": float("nan")}, "strength is nan: it must lie"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        SSLConfig(**settings)


def test_settings_survive_a_file_and_a_model_refuses_computed_weights(tmp_path):
    config = SSLConfig(regularizer="scaled_so", penalty_mode="decoupled", strength=0.2)
    config.save_pretrained(tmp_path)
    again = SSLConfig.from_pretrained(tmp_path)
    assert (again.penalty_mode, again.strength, again.gamma) == ("decoupled", 0.2, None)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), parametrizations.weight_norm(nn.Linear(3, 3)))
    network.num_features = 3
    with pytest.raises(ValueError, match="is computed from other parameters"):
        SSLModel(SSLConfig(penalty_mode="decoupled", image_size=8), encoder=network)
