"""Embedding regularizers: value and gradient against lightly's losses, the papers' algorithms or closed forms."""

import math
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import FroSSLLoss, KoLeoLoss, MMCRLoss, WMSELoss, visreg_loss
from lightly.loss.lejepa_loss import SIGReg as LightlySIGReg
from lightly.loss.vicreg_loss import covariance_loss, variance_loss
from lightly_in_float64 import ExactNormal, with_exact_buffers
from small_models import Run, small_model, views_of_step
from tiny_encoder import TinyEncoder

from hf_orthossl import EmbeddingRegularizer, SSLConfig, SSLModel, register_embedding_regularizer
from hf_orthossl.methods import EMBEDDING_REGULARIZERS as KINDS
from hf_orthossl.methods import METHODS, hyper
from hf_orthossl.methods.embedding_regularizers.base import unit_directions

TOLERANCE = 1e-10


def generator():
    return torch.Generator().manual_seed(7)


def embeddings(batch=12, width=5, views=3):
    """Views that differ, off centre and of another scale in each dimension."""
    source = torch.Generator().manual_seed(batch)
    shared = torch.randn(batch, width, generator=source, dtype=torch.float64) * torch.linspace(0.3, 2, width) + 0.4
    noise = torch.randn(views, batch, width, generator=source, dtype=torch.float64)
    return [(shared + 0.5 * part).requires_grad_() for part in noise]


def assert_same(kind, views, oracle, tolerance=TOLERANCE):
    """Compare the value, and the gradient with respect to every view, with those of the oracle."""
    ours = kind(views, generator())
    torch.testing.assert_close(ours, oracle, rtol=tolerance, atol=tolerance)
    found, expected = (torch.autograd.grad(loss, views) for loss in (ours, oracle))
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def directions_of(width, slices):
    return unit_directions(width, slices, generator(), torch.zeros(1, dtype=torch.float64))


def test_all_kinds_are_compared_here():
    assert set(KINDS) == {"sigreg", "visreg", "vicreg", "koleo", "frossl", "mmcr", "wmse"}


def papers_sigreg(z, A, t):
    """Algorithm 1 of LeJEPA, with complex numbers."""
    normal = torch.exp(-0.5 * t**2)
    empirical = (1j * (z @ A).unsqueeze(2) * t).exp().mean(0)
    error = (empirical - normal).abs().square() * normal
    return (torch.trapezoid(error, t, dim=1) * len(z)).mean()


@pytest.mark.parametrize("batch", [2, 12])
@pytest.mark.parametrize(("t_max", "points"), [(5.0, 9), (5.0, 17), (3.0, 5)])
def test_sigreg_is_the_papers_algorithm(batch, t_max, points):
    views = embeddings(batch)
    t = torch.linspace(-t_max, t_max, 2 * points - 1, dtype=torch.float64)
    oracle = torch.stack([papers_sigreg(z, directions_of(5, 20), t) for z in views]).mean()
    assert_same(KINDS["sigreg"](slices=20, points=points, t_max=t_max), views, oracle)


def test_sigreg_against_lightly():
    views = embeddings()
    oracle = with_exact_buffers(LightlySIGReg(knots=17, t_max=3.0, num_vectors=20))
    with patch.object(oracle, "_generate_unit_vectors", lambda *_: directions_of(5, 20)):
        assert_same(KINDS["sigreg"](slices=20, t_max=3.0), views, oracle(torch.stack(views)))


def test_sigreg_of_normal_numbers_is_small_and_of_collapsed_ones_is_not():
    kind = KINDS["sigreg"]()
    normal = kind([torch.randn(500, 256, generator=generator())], generator())
    # Its mean for normal samples: the integral of (1 − exp(−t²))·exp(−t²/2), whatever their number.
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    assert abs(float(normal) - expected) < 0.1
    assert kind([torch.zeros(500, 8)], generator()) > 100


@pytest.mark.parametrize("batch", [2, 12])
def test_visreg_against_lightly(batch):
    views = embeddings(batch)
    together = torch.stack(views)
    drawn = torch.randn(5, 20, generator=generator()).double()
    with patch.object(visreg_loss, "Normal", ExactNormal), patch.object(torch, "randn", lambda *_, **__: drawn):
        shape = visreg_loss.visreg_shape_loss(together, num_slices=20, eps=0.01)
    oracle = 2 * visreg_loss.visreg_scale_loss(together) + 3 * shape + 0.5 * visreg_loss.visreg_center_loss(together)
    assert_same(
        KINDS["visreg"](slices=20, scale_weight=2, shape_weight=3, centre_weight=0.5, epsilon=0.01), views, oracle
    )


def test_a_dimension_without_variance_has_a_gradient_that_is_finite():
    """Of a representation behind a ReLU, some dimensions are 0 for all images."""
    for name, kind in KINDS.items():
        views = [torch.cat([z.detach(), torch.zeros(12, 1)], dim=1).float().requires_grad_() for z in embeddings()]
        options = {"epsilon": 0.01} if name == "wmse" else {}
        loss = kind(**options)(views, generator())
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, views)), name


@pytest.mark.parametrize("batch", [2, 12])
def test_vicreg_against_lightly(batch):
    views = embeddings(batch)
    oracle = sum(3 * variance_loss(z) + 0.5 * covariance_loss(z) for z in views) / 3
    assert_same(KINDS["vicreg"](variance_weight=3, covariance_weight=0.5), views, oracle)


@pytest.mark.parametrize("batch", [2, 12])
def test_koleo_against_lightly(batch):
    views = embeddings(batch)
    assert_same(KINDS["koleo"](), views, sum(KoLeoLoss()(z) for z in views) / 3)


def test_koleo_is_the_mean_logarithm_of_nearest_distances():
    (z,) = embeddings(views=1)
    unit = z / z.norm(dim=1, keepdim=True)
    total = 0
    for i in range(len(z)):
        total = total - min((unit[i] - unit[j]).norm() for j in range(len(z)) if j != i).log()
    assert_same(KINDS["koleo"](epsilon=1e-15), [z], total / len(z), tolerance=1e-8)


@pytest.mark.parametrize("batch", [3, 12])
def test_frossl_against_lightly(batch):
    """Fewer images than dimensions, and more."""
    views = embeddings(batch)
    assert_same(KINDS["frossl"](), views, FroSSLLoss(invariance_weight=0.0)(views) / 3)


def test_frossl_at_its_least_and_its_greatest():
    flat, single = torch.eye(4, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    assert float(KINDS["frossl"]()([flat], generator())) == pytest.approx(-math.log(4))
    assert float(KINDS["frossl"]()([single], generator())) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("batch", [3, 12])
@pytest.mark.parametrize("local_weight", [0.0, 0.3])
def test_mmcr_against_lightly(batch, local_weight):
    """The paper's embeddings have unit length, which lightly leaves to its caller."""
    views = embeddings(batch, views=4)
    unit = torch.stack([F.normalize(z, dim=1) for z in views], dim=1)
    assert_same(KINDS["mmcr"](local_weight=local_weight), views, MMCRLoss(local_weight)(unit[:, :2], unit[:, 2:]))


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("count", [2, 3])
def test_wmse_against_lightly(epsilon, count):
    views = embeddings(views=count)
    oracle = WMSELoss(5, eps=epsilon, w_size=12, num_samples=count).double()
    assert_same(KINDS["wmse"](epsilon=epsilon), views, oracle(torch.cat(views)))


def test_wmse_in_sub_batches_against_lightly():
    views, source = embeddings(24), generator()
    drawn = iter([torch.randperm(24, generator=source) for _ in range(2)])
    oracle = WMSELoss(5, w_size=12, w_iter=2, num_samples=3).double()
    with patch.object(torch, "randperm", lambda _: next(drawn)):
        expected = oracle(torch.cat(views))
    assert_same(KINDS["wmse"](sub_batch=12, iterations=2), views, expected)


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_and_autocast_change_nothing(name):
    """The term of bfloat16 embeddings is that of the same numbers in float32."""
    views = [z.detach().bfloat16() for z in embeddings()]
    expected = KINDS[name]()([z.float() for z in views], generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = KINDS[name]()(views, generator())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "batch", "views", "said"),
    [
        ("sigreg", {}, 1, 2, "a batch of all processes has 1 embeddings of width 5: it needs 2 or more"),
        ("wmse", {}, 5, 2, r"5 embeddings of width 5: it needs 6 or more.*--embedding_config epsilon=0.01"),
        ("wmse", {"sub_batch": 5}, 12, 2, "sub_batch is 5 and embeddings have a width of 5: it must be 6 or more"),
        ("wmse", {}, 12, 1, "compares 2 views of an image, and the method embeds 1"),
    ],
)
def test_too_small_batches_are_refused(name, options, batch, views, said):
    with pytest.raises(ValueError, match=said):
        KINDS[name](**options)(embeddings(batch, views=views), generator())


def test_embeddings_that_cannot_be_whitened_are_refused():
    with pytest.raises(ValueError, match=r"wmse cannot whiten 12 embeddings of width 5.*epsilon=0.01"):
        KINDS["wmse"]()([torch.ones(12, 5), torch.ones(12, 5)], generator())


@pytest.mark.parametrize("layer", ["embedding", "representation"])
def test_the_model_adds_its_weight_times_the_term_of_the_layer(layer):
    run = Run("simclr", embedding="koleo", layer=layer)
    model, plain, views = small_model(run), small_model(Run("simclr")), views_of_step(0)
    output, without = model(views), plain(views)
    rows = without.embeddings if layer == "embedding" else without.representations
    term = 0.5 * sum(KoLeoLoss()(z) for z in rows) / 2
    torch.testing.assert_close(output.parts["embedding_koleo"], term.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.loss, without.loss + term, rtol=1e-10, atol=1e-10)
    output.loss.backward()
    (without.loss + term).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_any_method_has_embeddings_to_regularize(name):
    """Its gradient reaches the encoder, from every view that the method embeds."""
    model = small_model(Run(name, embedding="frossl"))
    output = model(views_of_step(0))
    assert all(z.requires_grad and z.ndim == 2 for z in model.regularized(output))
    term = model.embedding_regularizer(model.regularized(output), generator())
    gradients = torch.autograd.grad(term, [*model.encoder.parameters()], allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in gradients)


def test_embeddings_without_gradient_are_refused():
    model = small_model(Run("simclr", embedding="koleo"))
    output = model.method.output
    detached = patch.object(model.method, "output", lambda loss, h, z: output(loss, h, [row.detach() for row in z]))
    with detached, pytest.raises(ValueError, match="the embedding that method 'simclr' returns has no gradient"):
        model(views_of_step(0))


@dataclass
class Spread(EmbeddingRegularizer):
    """Of a user's own."""

    name = "test_spread"
    title = "spread"
    default_weight = 0.25

    power: int = hyper(2, "power of the mean", at_least=1)

    def value(self, views, generator):
        return sum((z.mean(dim=0) ** self.power).sum() for z in views)


def test_a_regularizer_of_the_users_own():
    try:
        register_embedding_regularizer(Spread)
        register_embedding_regularizer(Spread)  # a cell of a notebook that is run again
        config = SSLConfig(embedding_regularizer="test_spread", embedding_config={"power": 4})
        assert config.embedding_weight == 0.25
        model = SSLModel(config, TinyEncoder())
        assert "embedding_test_spread" in model([torch.randn(4, 3, 8, 8) for _ in range(2)]).parts
    finally:
        KINDS.pop("test_spread")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": ""}, "has no name"),
        ({"name": "koleo"}, "the name 'koleo' is taken by hf_orthossl"),
        ({"title": ""}, "has no title"),
        ({"default_weight": 0.0}, "has no default weight"),
        ({"value": EmbeddingRegularizer.value}, "has no value"),
    ],
)
def test_a_wrong_class_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        register_embedding_regularizer(type("Wrong", (Spread,), changes))
    with pytest.raises(TypeError, match=r"derive a class from hf_orthossl.EmbeddingRegularizer"):
        register_embedding_regularizer(dict)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda self, views, generator: views[0].mean(dim=0), r"value returned shape \(3,\): return a scalar"),
        (lambda self, views, generator: 1.0, "value returned float"),
        (lambda self, views, generator: views[0].detach().mean(), "value has no gradient"),
    ],
)
def test_a_wrong_value_is_refused_before_training(value, said):
    with pytest.raises(ValueError, match=said):
        type("Wrong", (Spread,), {"value": value})().check()
