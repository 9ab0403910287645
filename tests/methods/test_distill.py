"""Distillation: its losses by loops, what the teacher sees, whole training steps by hand, and teachers refused."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_models import required
from tiny_teacher import tiny_teacher, write_teacher
from torch import nn

from hf_orthossl.configuration import SSLConfig
from hf_orthossl.distributed.sync_batchnorm import synchronize_batchnorm
from hf_orthossl.encoders import load_encoder
from hf_orthossl.methods import Progress, build_method
from hf_orthossl.methods.distill import TARGETS, distance_relation, matching, resampled, similarity_relation
from hf_orthossl.methods.teachers import Teacher
from hf_orthossl.modeling import SSLModel


def vectors(batch, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, width, generator=generator, dtype=torch.float64)


def assert_same_function(ours, theirs, argument):
    """Value and gradient."""
    (first, g), (second, h) = (
        (value, torch.autograd.grad(value, argument)[0]) for value in (ours(argument), theirs(argument))
    )
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(g, h, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_matching_by_a_loop(share):
    teacher = 2 * vectors(7, 5, seed=1)

    def loop(student):
        total = 0
        for s, t in zip(student, teacher, strict=True):
            cos = (s @ t) / (s.norm() * t.norm())
            smooth = sum(0.5 * d**2 if d.abs() < 1 else d.abs() - 0.5 for d in s - t) / len(s)
            total = total + share * (1 - cos) + (1 - share) * smooth
        return total / len(student)

    assert_same_function(lambda s: matching(s, teacher, share), loop, vectors(7, 5).requires_grad_())


def test_distances_by_a_loop():
    teacher = vectors(6, 9, seed=1)

    def loop(student):
        pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
        own, other = (torch.stack([(v[i] - v[j]).norm() for i, j in pairs]) for v in (student, teacher))
        own, other = own / own.mean(), other / other.mean()
        return sum(0.5 * d**2 if d.abs() < 1 else d.abs() - 0.5 for d in own - other) / len(pairs)

    assert_same_function(lambda s: distance_relation(s, teacher), loop, vectors(6, 4).requires_grad_())


def test_similarities_by_a_loop():
    teacher = vectors(6, 9, seed=1)

    def loop(student):
        total = 0
        for i in range(6):
            own, other = (torch.stack([v[i] @ v[j] for j in range(6)]) for v in (student, teacher))
            total = total + (own / own.norm() - other / other.norm()).square().sum()
        return total / 36

    assert_same_function(lambda s: similarity_relation(s, teacher), loop, vectors(6, 4).requires_grad_())


@pytest.mark.parametrize("relation", [distance_relation, similarity_relation])
def test_relations_of_equal_images_are_finite(relation):
    student = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    loss = relation(student, torch.ones(4, 5, dtype=torch.float64))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_resampling_is_torchs():
    tokens = torch.randn(2, 8, 5, 3, dtype=torch.float64)
    expected = F.interpolate(tokens.movedim(3, 1), (4, 2), mode="bilinear", antialias=True).movedim(1, 3)
    torch.testing.assert_close(resampled(tokens, 4, 2), expected, rtol=1e-12, atol=1e-12)


def test_a_teacher_sees_the_pixels_of_the_view_as_it_expects_them(tiny_encoder):
    """Against Pillow, from the same pixels, at the teacher's size and by its normalization."""
    teacher = Teacher(tiny_teacher(), tiny_encoder)
    teacher.encoder.set_normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    tiny_encoder.mean, tiny_encoder.std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    pixels = np.random.default_rng(0).random((3, 40, 40), dtype=np.float32)
    view = (torch.from_numpy(pixels) - torch.tensor(tiny_encoder.mean)[:, None, None]) / torch.tensor(tiny_encoder.std)[
        :, None, None
    ]
    seen = teacher.see(view[None], tiny_encoder)[0]
    for channel in range(3):
        small = np.asarray(Image.fromarray(pixels[channel]).resize((16, 16), Image.Resampling.BICUBIC)).clip(0, 1)
        expected = (torch.from_numpy(small) - teacher.encoder.mean[channel]) / teacher.encoder.std[channel]
        torch.testing.assert_close(seen[channel], expected, rtol=0, atol=2e-5)
    # Of its own size nothing is resampled.
    same = teacher.see(view[None, :, :16, :16], tiny_encoder)[0]
    torch.testing.assert_close(same[1], (torch.from_numpy(pixels[1, :16, :16]) - 0.2) / 0.6, rtol=0, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_steps_by_hand(target):
    """A vision transformer taught by another one with other patches: five steps of encoder and projectors."""
    config = {"teacher": tiny_teacher(), "target": target, "hidden_dim": 10, "cosine_share": 0.75}
    encoder = load_encoder("test_vit", image_size=24, patch_size=4, embed_dim=12, depth=1, num_heads=2).double()
    encoder.set_normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    method = build_method("distill", encoder, config).double()
    student, heads = copy.deepcopy(encoder), [copy.deepcopy(method.projector), copy.deepcopy(method.token_projector)]
    heads = [head for head in heads if head is not None]
    teacher = load_encoder(tiny_teacher(), pretrained=True).double().eval()
    generator = torch.Generator().manual_seed(3)
    steps = [[torch.rand(6, 3, 24, 24, generator=generator, dtype=torch.float64) for _ in range(2)] for _ in range(5)]
    views = [[(view - numbers((0.4, 0.5, 0.6))) / numbers((0.2, 0.3, 0.4)) for view in step] for step in steps]

    optimizer = torch.optim.SGD([p for part in (student, *heads) for p in part.parameters()], lr=0.05, momentum=0.9)
    for pixels, normalized in zip(steps, views, strict=True):
        optimizer.zero_grad()
        for image, view in zip(pixels, normalized, strict=True):
            small = F.interpolate(image, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
            with torch.no_grad():
                seen = (small - numbers(teacher.mean)) / numbers(teacher.std)
                tokens = teacher.backbone.forward_features(seen)
                wanted = teacher.backbone.forward_head(tokens)
            h = student.backbone.forward_features(view)
            representation = student.backbone.forward_head(h)
            if target == "relational":
                loss = distance_relation(representation, wanted)
            else:
                loss = matching(heads[0](representation), wanted, 0.75)
            if target == "tokens":
                # Grids of 6×6 and 4×4.
                prefix = student.backbone.num_prefix_tokens
                own = heads[1](h[:, prefix:]).mT.unflatten(2, (6, 6))
                own = F.interpolate(own, (4, 4), mode="bilinear", antialias=True).flatten(2).mT
                loss = loss + matching(own, tokens[:, teacher.backbone.num_prefix_tokens :], 0.9)
            (loss / 2).backward()
        optimizer.step()

    optimizer = torch.optim.SGD([*encoder.parameters(), *method.parameters()], lr=0.05, momentum=0.9)
    for step, normalized in enumerate(views):
        method.begin_step(Progress(step, max_steps=5))
        optimizer.zero_grad()
        method(encoder, normalized).loss.backward()
        optimizer.step()
    for ours, theirs in zip(
        [*encoder.parameters(), *method.parameters()],
        [p for part in (student, *heads) for p in part.parameters()],
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("student", ["test_vit", "test_resnet"])
def test_tokens_in_chunks_are_tokens(student):
    """The gradient cache, of a vision transformer and of a network whose last stage is a map."""
    config = {"teacher": tiny_teacher(), "target": "tokens", "hidden_dim": 10}
    model = SSLModel(SSLConfig(backbone=student, image_size=32, method="distill", method_config=config)).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()  # a chunk has statistics of its own
    views = [torch.randn(5, 3, 32, 32, dtype=torch.float64)]
    found = []
    for model.gradient_cache in (None, 2):
        model.zero_grad()
        loss = model(views).loss
        loss.backward()
        found.append((loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def numbers(values):
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def test_nothing_of_the_model_reaches_the_teacher():
    """Its batch norms keep their statistics, and neither optimizer nor checkpoint nor synchronization knows it."""
    teacher = tiny_teacher("test_resnet", image_size=64)
    model = SSLModel(
        SSLConfig(backbone="resnet10t", image_size=32, method="distill", method_config={"teacher": teacher})
    )
    inner = model.method.teacher.encoder
    before = {key: value.clone() for key, value in inner.state_dict().items()}
    norms = [type(module) for module in inner.modules()]
    synchronize_batchnorm(model).train().float()
    model([torch.randn(4, 3, 32, 32)] * 2).loss.backward()
    assert [type(module) for module in inner.modules()] == norms
    assert not any(module.training for module in inner.modules())
    torch.testing.assert_close(dict(inner.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in inner.parameters())
    owned = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    assert not owned & {id(tensor) for tensor in [*inner.parameters(), *inner.buffers()]}
    assert copy.deepcopy(model).method.teacher is model.method.teacher


def test_a_saved_model_has_its_teacher_again(tmp_path):
    config = SSLConfig(backbone="resnet10t", image_size=32, method="distill", method_config=required("distill"))
    model = SSLModel(config).eval()
    model.save_pretrained(tmp_path)
    views = [torch.randn(3, 3, 32, 32)]
    assert torch.equal(SSLModel.from_pretrained(tmp_path).eval()(views).loss, model(views).loss)


def test_teachers_that_are_refused(tiny_encoder, tmp_path):
    def refused(said, student=tiny_encoder, **config):
        with pytest.raises(ValueError, match=said) as caught:
            build_method("distill", student, config)
        assert "\n" not in str(caught.value)
        assert "pretrained=False" not in str(caught.value)

    refused("teacher is empty")
    refused("teacher: .*did you mean 'resnet18'", teacher="resnt18")
    refused("no such folder", teacher=str(tmp_path / "none"))
    refused("has no pretrained weights", teacher="resnet18_cifar")
    grey = write_teacher(tmp_path / "grey", "test_vit", image_size=16, patch_size=4, channels=1)
    refused("takes images of 1 channels, and the images have 3", teacher=grey)
    pickled = write_teacher(tmp_path / "pickled", image_size=16, patch_size=4)
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    refused("only pickled weights", teacher=pickled)
    again = load_encoder(tiny_teacher(), pretrained=True)
    refused("has the weights that the student starts from", student=again, teacher=tiny_teacher())
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    config = SSLConfig(method="distill", method_config={"teacher": tiny_teacher(), "target": "tokens"}, image_size=8)
    with pytest.raises(ValueError, match="target is tokens, and backbone 'Sequential' has neither patch tokens nor"):
        SSLModel(config, flat)
