"""Every method's loss and its gradient against an oracle: lightly where it has one, else a closed form in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import (
    BarlowTwinsLoss,
    DCLLoss,
    DCLWLoss,
    DINOLoss,
    KoLeoLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    SwaVLoss,
    VICRegLoss,
)
from lightly.loss.lejepa_loss import lejepa_invariance_loss
from lightly.models.modules import NNMemoryBankModule, SwaVPrototypes
from small_models import encoder_for, required

from hf_orthossl.methods import METHODS, build_method
from hf_orthossl.methods.losses import cosine, koleo, nt_xent
from hf_orthossl.methods.mean_prediction import prediction_term
from hf_orthossl.methods.mocov2plus import queue_contrast
from hf_orthossl.methods.mocov3 import batch_contrast

BATCHES = (2, 7, 32)


def embeddings(batch, dim=10, count=2):
    generator = torch.Generator().manual_seed(batch)
    return [torch.randn(batch, dim, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def assert_same(ours, oracle, inputs, tolerance=1e-10):
    """Value and gradient of two losses of the same inputs."""
    expected = torch.autograd.grad(oracle.sum(), inputs, allow_unused=True)
    found = torch.autograd.grad(ours, inputs, allow_unused=True)
    torch.testing.assert_close(ours, oracle.squeeze(), rtol=tolerance, atol=tolerance)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent(batch, temperature):
    z = embeddings(batch)
    # lightly's similarities go through float32 masks only, values stay float64.
    assert_same(nt_xent(*z, temperature), NTXentLoss(temperature)(*z), z)


@pytest.mark.parametrize("batch", BATCHES)
def test_simclr_uses_its_temperature(batch, tiny_encoder):
    z = embeddings(batch)
    method = build_method("simclr", tiny_encoder, {"temperature": 0.3})
    assert_same(method.loss(*z), NTXentLoss(0.3)(*z), z)


@pytest.mark.parametrize("batch", BATCHES)
def test_dcl(batch, tiny_encoder):
    z = embeddings(batch)
    method = build_method("dcl", tiny_encoder, {"temperature": 0.2})
    assert_same(method.loss(*z), DCLLoss(0.2)(*z), z)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_dclw(batch, tiny_encoder):
    z = embeddings(batch)
    method = build_method("dclw", tiny_encoder, {"temperature": 0.2, "sigma": 0.7})
    assert_same(method.loss(*z), DCLWLoss(0.2, sigma=0.7)(*z), z)


@pytest.mark.parametrize("batch", BATCHES)
def test_barlow_twins(batch, tiny_encoder):
    z = embeddings(batch)
    method = build_method("barlowtwins", tiny_encoder, {"redundancy_weight": 0.01})
    assert_same(method.loss(*z), BarlowTwinsLoss(lambda_param=0.01)(*z), z)


@pytest.mark.parametrize("batch", BATCHES)
def test_vicreg(batch, tiny_encoder):
    z = embeddings(batch)
    method = build_method(
        "vicreg", tiny_encoder, {"invariance_weight": 5, "variance_weight": 3, "covariance_weight": 2}
    )
    # lightly halves the variance term.
    assert_same(method.loss(*z), VICRegLoss(lambda_param=5, mu_param=6, nu_param=2)(*z), z)


@pytest.mark.parametrize("batch", BATCHES)
def test_negative_cosine_of_byol_and_simsiam(batch):
    p, z = embeddings(batch)
    assert_same(-cosine(p, z), NegativeCosineSimilarity()(p, z.detach()), [p, z])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("views", [2, 5])
def test_swav(batch, views, tiny_encoder):
    scores = embeddings(batch, dim=6, count=views)
    scores = [F.normalize(s, dim=1).detach().requires_grad_() for s in scores]
    method = build_method("swav", tiny_encoder, {"temperature": 0.2, "sinkhorn_epsilon": 0.1})
    oracle = SwaVLoss(temperature=0.2, sinkhorn_iterations=3, sinkhorn_epsilon=0.1)
    assert_same(method.loss(scores), oracle(scores[:2], scores[2:]), scores)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("views", [2, 4])
def test_dino(batch, views, tiny_encoder):
    student = embeddings(batch, count=views)
    teacher = [s.detach() + 0.1 for s in student[:2]]
    method = build_method("dino", tiny_encoder, {"prototypes": 10}).double()
    method.center.copy_(torch.linspace(-0.3, 0.3, 10))
    oracle = DINOLoss(output_dim=10).double()
    oracle.center.copy_(method.center)
    # lightly turns the temperature into a float32 tensor, which is where the tolerance comes from.
    assert_same(method.loss(teacher, student), oracle(teacher, student, teacher_temp=0.07), student, tolerance=1e-6)


@pytest.mark.parametrize("batch", BATCHES)
def test_koleo(batch):
    (z,) = embeddings(batch, count=1)
    assert_same(koleo(z), KoLeoLoss()(z), [z])
    # The paper's formula, without ε.
    unit = [row / row.norm() for row in z.detach()]
    nearest = [min((a - b).norm() for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    torch.testing.assert_close(koleo(z).detach(), -torch.stack(nearest).log().mean(), rtol=1e-6, atol=1e-6)


def test_koleo_of_equal_opposite_and_single_embeddings():
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(koleo(opposite), -torch.tensor(2.0, dtype=torch.float64).log())
    equal = torch.ones(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(koleo(equal), equal)
    assert math.isfinite(koleo(equal).item())
    assert torch.isfinite(gradient).all()
    with pytest.raises(ValueError, match="the batch has 1 image: the distance to the nearest neighbour needs 2 or mo"):
        koleo(opposite[:1])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("global_views", [1, 2, 5])
def test_prediction_of_the_global_views_mean(batch, global_views):
    z = embeddings(batch, count=5)
    oracle = lejepa_invariance_loss(all_proj=torch.stack(z), global_proj=torch.stack(z[:global_views]))
    assert_same(prediction_term(z, global_views), oracle, z)


@pytest.mark.parametrize("batch", BATCHES)
def test_one_direction_of_mocov2plus(batch):
    q, k = embeddings(batch)
    bank = F.normalize(torch.randn(64, 10, dtype=torch.float64), dim=1)
    oracle = NTXentLoss(0.2, memory_bank_size=(64, 10))
    oracle.memory_bank.bank = bank.clone()
    oracle.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    assert_same(queue_contrast(q, k.detach(), bank, 0.2), oracle(q, k.detach()), [q])


@pytest.mark.parametrize("batch", BATCHES)
def test_mocov3_closed_form(batch):
    q, k = embeddings(batch)
    temperature = 0.2
    total = 0
    for i in range(batch):
        scores = [
            torch.dot(q[i], k[j].detach()) / (q[i].norm() * k[j].detach().norm()) / temperature for j in range(batch)
        ]
        total = total + torch.log(sum(torch.exp(s) for s in scores)) - scores[i]
    assert_same(batch_contrast(q, k, temperature), 2 * temperature * total / batch, [q])


@pytest.mark.parametrize("batch", BATCHES)
def test_nnclr_against_lightly(batch, tiny_encoder):
    """The whole loss and its gradient in the encoder: look-up, pairing of views, predictor; then what is enqueued."""
    method = build_method("nnclr", tiny_encoder, {"queue_size": 40, "hidden_dim": 8, "output_dim": 5}).double()
    encoder = tiny_encoder.double()
    views = [torch.randn(batch, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    bank = NNMemoryBankModule((40, 5))
    bank.bank = method.queue.bank.clone()
    bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    z = [method.projector(encoder(view)) for view in views]
    p = [method.predictor(embedding) for embedding in z]
    criterion = NTXentLoss(0.5)
    oracle = 0.5 * (criterion(bank(z[0], update=False), p[1]) + criterion(bank(z[1], update=False), p[0]))
    assert_same(method(encoder, views).loss, oracle, list(encoder.parameters()), tolerance=1e-8)
    method.end_step(encoder)
    torch.testing.assert_close(method.queue.bank[:batch], F.normalize(z[1], dim=1))


@pytest.mark.parametrize("batch", BATCHES)
def test_nnbyol_closed_form(batch, tiny_encoder):
    """The whole loss, from representations on, against neighbours found by a loop."""
    method = build_method("nnbyol", tiny_encoder, {"queue_size": 20, "hidden_dim": 8, "output_dim": 5}).double()
    encoder = tiny_encoder.double()
    views = [torch.randn(batch, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    loss = method(encoder, views).loss

    bank = method.queue.bank.double()
    p = [method.predictor(method.projector(encoder(view))) for view in views]
    z = [method.target(view) for view in views]
    expected = 0
    for i, j in ((0, 1), (1, 0)):
        for row in range(batch):
            unit = z[j][row] / z[j][row].norm()
            best = max(range(len(bank)), key=lambda m, unit=unit: float(unit @ bank[m]))
            cos = p[i][row] @ bank[best] / (p[i][row].norm() * bank[best].norm())
            expected = expected + (2 - 2 * cos) / batch
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_float32_and_finite_under_autocast(name):
    small = {"queue_size": 8} if METHODS[name].has_queue else {}
    encoder = encoder_for(name)
    method = build_method(name, encoder, small | required(name))
    views = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(encoder, views).loss
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())


def test_contrastive_losses_inside_autocast_equal_those_outside():
    z = [e.detach().float() for e in embeddings(32)]
    expected = nt_xent(*z, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nt_xent(*z, 0.1)
    assert torch.equal(found, expected)


def test_vicreg_refuses_what_has_no_variance(tiny_encoder):
    method = build_method("vicreg", tiny_encoder, {})
    with pytest.raises(ValueError, match=r"have the shapes \(4, 6\) and \(4, 5\): they must be equal"):
        method.loss(torch.randn(4, 6), torch.randn(4, 5))
    with pytest.raises(ValueError, match="the batch has 1 image: the variance over a batch needs 2 or more"):
        method.loss(torch.randn(1, 6), torch.randn(1, 6))


def test_prototypes_are_lightly_s(tiny_encoder):
    torch.manual_seed(0)
    method = build_method("swav", tiny_encoder, {"output_dim": 6, "prototypes": 5})
    oracle = SwaVPrototypes(6, 5)
    oracle.heads[0].load_state_dict(method.prototypes.linear.state_dict())
    z = F.normalize(torch.randn(4, 6), dim=1)
    torch.testing.assert_close(method.prototypes(3 * z), oracle(z))
    assert build_method("swav", tiny_encoder, {"prototype_bias": False}).prototypes.linear.bias is None
