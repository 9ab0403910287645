"""Whole training steps (heads, loss, backward, SGD, EMA) against the same steps assembled from lightly's modules."""

import copy
from unittest.mock import patch

import torch
from lightly.loss import DINOLoss, NegativeCosineSimilarity, VISRegLoss, visreg_loss
from lightly.loss.lejepa_loss import LeJEPALoss
from lightly.models.modules import heads
from lightly.models.utils import update_momentum
from lightly_in_float64 import ExactNormal, with_exact_buffers
from torch import nn

from hf_orthossl.methods import Progress, build_method
from hf_orthossl.methods.embedding_regularizers.base import unit_directions
from hf_orthossl.methods.target_networks import cosine_momentum

STEPS, RATE = 5, 0.05


def copy_linears(source: nn.Module, target: nn.Module) -> None:
    """Copies the weights of linear and norm layers from one stack to another with the same order of layers."""
    kinds = (nn.Linear, nn.BatchNorm1d)
    ours = [m for m in source.modules() if isinstance(m, kinds)]
    theirs = [m for m in target.modules() if isinstance(m, kinds)]
    for a, b in zip(ours, theirs, strict=True):
        assert a.weight is None or a.weight.shape == b.weight.shape
        with torch.no_grad():
            if a.weight is not None:
                b.weight.copy_(a.weight)
            if a.bias is not None and b.bias is not None:
                b.bias.copy_(a.bias)
            elif a.bias is not None:
                a.bias.zero_()  # a bias before batch norm that the other side leaves out


def assert_stacks_equal(source: nn.Module, target: nn.Module) -> None:
    ours = [m for m in source.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    theirs = [m for m in target.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=1e-6)


def batches():
    generator = torch.Generator().manual_seed(3)
    for step in range(STEPS):
        yield step, [torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]


def with_crops(views):
    """Two views, and two local ones."""
    return [*views, *(view[..., 1:7, 2:8] for view in views)]


def train_ours(method, encoder, views_of=lambda views: views):
    trained = [p for p in [*encoder.parameters(), *method.parameters()] if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE, momentum=0.9)
    for step, views in batches():
        method.begin_step(Progress(step, max_steps=STEPS, steps_per_epoch=2))
        optimizer.zero_grad()
        method(encoder, views_of(views)).loss.backward()
        method.before_optimizer_step()
        optimizer.step()
        method.end_step(encoder)


def test_byol_steps(tiny_encoder):
    encoder = tiny_encoder.double()
    method = build_method("byol", encoder, {"hidden_dim": 16, "output_dim": 6}).double()
    backbone = copy.deepcopy(encoder)
    projector = heads.BYOLProjectionHead(12, 16, 6).double()
    predictor = heads.BYOLPredictionHead(6, 16, 6).double()
    copy_linears(method.projector, projector)
    copy_linears(method.predictor, predictor)
    copy_linears(method.target.stack[1], heads.BYOLProjectionHead(12, 16, 6).double())  # zeroes its unused biases
    target_backbone, target_projector = copy.deepcopy(backbone), copy.deepcopy(projector)

    parameters = [*backbone.parameters(), *projector.parameters(), *predictor.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9)
    criterion = NegativeCosineSimilarity()
    for step, views in batches():
        optimizer.zero_grad()
        predictions = [predictor(projector(backbone(view))) for view in views]
        with torch.no_grad():
            targets = [target_projector(target_backbone(view)) for view in views]
        # 2 − 2·cos per direction, summed: twice lightly's value plus a constant.
        loss = 2 * (criterion(predictions[0], targets[1]) + criterion(predictions[1], targets[0]))
        loss.backward()
        optimizer.step()
        tau = cosine_momentum(0.99, 1.0, step / STEPS)
        update_momentum(backbone, target_backbone, tau)
        update_momentum(projector, target_projector, tau)

    train_ours(method, encoder)
    assert_stacks_equal(encoder, backbone)
    assert_stacks_equal(method.projector, projector)
    assert_stacks_equal(method.predictor, predictor)
    assert_stacks_equal(method.target, nn.ModuleList([target_backbone, target_projector]))


def test_simsiam_steps(tiny_encoder):
    encoder = tiny_encoder.double()
    method = build_method("simsiam", encoder, {"hidden_dim": 16, "output_dim": 10, "predictor_dim": 5}).double()
    backbone = copy.deepcopy(encoder)
    # The head of lightly's CIFAR-10 benchmark: two layers, batch norm after both.
    projector = heads.ProjectionHead(
        [(12, 16, nn.BatchNorm1d(16), nn.ReLU()), (16, 10, nn.BatchNorm1d(10), None)]
    ).double()
    predictor = heads.SimSiamPredictionHead(10, 5, 10).double()
    copy_linears(method.projector, projector)
    copy_linears(method.predictor, predictor)

    parameters = [*backbone.parameters(), *projector.parameters(), *predictor.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9)
    criterion = NegativeCosineSimilarity()
    for _, views in batches():
        optimizer.zero_grad()
        z = [projector(backbone(view)) for view in views]
        p = [predictor(embedding) for embedding in z]
        loss = 0.5 * (criterion(p[0], z[1].detach()) + criterion(p[1], z[0].detach()))
        loss.backward()
        optimizer.step()

    train_ours(method, encoder)
    assert_stacks_equal(encoder, backbone)
    assert_stacks_equal(method.projector, projector)
    assert_stacks_equal(method.predictor, predictor)


def test_dino_steps(tiny_encoder):
    encoder = tiny_encoder.double()
    config = {"hidden_dim": 16, "bottleneck_dim": 6, "prototypes": 9, "freeze_last_layer_epochs": 1.0}
    method = build_method("dino", encoder, config).double()
    backbone = copy.deepcopy(encoder)
    head = heads.DINOProjectionHead(12, 16, 6, 9, freeze_last_layer=1).double()
    with torch.no_grad():
        for ours, theirs in zip(
            [m for m in method.head.mlp if isinstance(m, nn.Linear)],
            [m for m in head.layers if isinstance(m, nn.Linear)],
            strict=True,
        ):
            theirs.weight.copy_(ours.weight)
            theirs.bias.copy_(ours.bias)
        head.last_layer.weight_v.copy_(method.head.last_layer.weight)
    teacher_backbone, teacher_head = copy.deepcopy(backbone), heads.DINOProjectionHead(12, 16, 6, 9).double()
    teacher_head.load_state_dict(head.state_dict())

    parameters = [p for p in [*backbone.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9)
    # The temperatures are float32 numbers there: 1/16 and 1/8 are the same in both precisions.
    criterion = DINOLoss(output_dim=9, student_temp=0.125).double()
    method.config.student_temperature = 0.125
    method.config.teacher_temperature = 0.0625
    for step, views in batches():
        optimizer.zero_grad()
        with torch.no_grad():
            teacher = [teacher_head(teacher_backbone(view)) for view in views]
        student = [head(backbone(view)) for view in views]
        criterion(teacher, student, teacher_temp=0.0625).backward()
        head.cancel_last_layer_gradients(current_epoch=step // 2)
        optimizer.step()
        tau = cosine_momentum(0.9995, 1.0, step / STEPS)
        update_momentum(backbone, teacher_backbone, tau)
        update_momentum(head, teacher_head, tau)

    train_ours(method, encoder)
    assert_stacks_equal(encoder, backbone)
    assert_stacks_equal(method.head.mlp, head.layers)
    torch.testing.assert_close(method.head.last_layer.weight, head.last_layer.weight_v, rtol=0, atol=1e-6)
    torch.testing.assert_close(method.center, criterion.center.flatten(), rtol=0, atol=1e-6)
    assert_stacks_equal(method.target.stack[0], teacher_backbone)


def steps_of_lightly(method, encoder, criterion, begin):
    """Train a copy of encoder and projector with the loss of global and local views that lightly computes."""
    backbone = copy.deepcopy(encoder)
    projector = heads.LeJEPAProjectionHead(12, hidden_dim=16, output_dim=6).double()
    copy_linears(method.projector, projector)
    optimizer = torch.optim.SGD([*backbone.parameters(), *projector.parameters()], lr=RATE, momentum=0.9)
    for step, views in batches():
        optimizer.zero_grad()
        # Views of one size together, as the authors' code has them.
        both = [torch.cat(with_crops(views)[pair]) for pair in (slice(0, 2), slice(2, 4))]
        global_proj, local_proj = (projector(backbone(images)).view(2, 8, 6) for images in both)
        with begin(Progress(step, max_steps=STEPS, steps_per_epoch=2).generator("cpu")):
            criterion(local_proj=local_proj, global_proj=global_proj).backward()
        optimizer.step()
    return backbone, projector


def test_lejepa_steps(tiny_encoder):
    encoder = tiny_encoder.double()
    config = {"hidden_dim": 16, "output_dim": 6, "sigreg_weight": 0.2, "slices": 32, "t_max": 3.0}
    method = build_method("lejepa", encoder, config).double()
    criterion = LeJEPALoss(lambda_param=0.2, sigreg_num_vectors=32)
    sigreg = with_exact_buffers(criterion.sigreg)

    def begin(generator):
        directions = unit_directions(6, 32, generator, sigreg.t)
        return patch.object(sigreg, "_generate_unit_vectors", lambda *_: directions)

    backbone, projector = steps_of_lightly(method, encoder, criterion, begin)
    train_ours(method, encoder, with_crops)
    assert_stacks_equal(encoder, backbone)
    assert_stacks_equal(method.projector, projector)


def test_visreg_steps(tiny_encoder):
    encoder = tiny_encoder.double()
    config = {"hidden_dim": 16, "output_dim": 6, "sketching_weight": 0.7, "slices": 32, "shape_weight": 2.0}
    method = build_method("visreg", encoder, config).double()
    criterion = VISRegLoss(lambda_param=0.7, num_slices=32, lambda_shape=2.0, eps=1e-6)

    def begin(generator):
        drawn = torch.randn(6, 32, generator=generator).double()
        return patch.object(visreg_loss.torch, "randn", lambda *_, **__: drawn)

    with patch.object(visreg_loss, "Normal", ExactNormal):
        backbone, projector = steps_of_lightly(method, encoder, criterion, begin)
    train_ours(method, encoder, with_crops)
    assert_stacks_equal(encoder, backbone)
    assert_stacks_equal(method.projector, projector)
