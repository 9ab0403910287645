"""iBOT and DINOv2 against lightly's modules and the papers' formulas, in float64; their masks, teachers and inputs."""

import copy
import shutil
import types

import lightly.models.utils
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules.heads import DINOProjectionHead
from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
from lightly.models.utils import random_block_mask_image, update_momentum
from small_models import encoder_for
from survival_runs import tiny_model, train
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from hf_orthossl.cli import main
from hf_orthossl.encoders import load_encoder
from hf_orthossl.methods import METHODS, Progress, build_method
from hf_orthossl.methods.masking import block_mask
from hf_orthossl.methods.target_networks import cosine_momentum

SMALL = {"hidden_dim": 16, "bottleneck_dim": 6, "prototypes": 9}
SMALL_OF = {"ibot": SMALL, "dinov2": SMALL | {"patch_bottleneck_dim": 5, "patch_prototypes": 7}}
STEPS, RATE = 5, 0.05

both = pytest.mark.parametrize("name", ["ibot", "dinov2"])


def views_of(step: int, local: int = 1) -> list[torch.Tensor]:
    """Two global views of 8 images, and local ones of half the size."""
    generator = torch.Generator().manual_seed(step)
    sides = [8, 8] + [4] * local
    return [torch.randn(8, 3, side, side, generator=generator, dtype=torch.float64) for side in sides]


def built(name: str, **config):
    """A method in float64 whose mask token is not zero, and its encoder."""
    torch.manual_seed(0)
    encoder = encoder_for(name)
    method = build_method(name, encoder, SMALL_OF[name] | config).double()
    torch.nn.init.normal_(method.mask_token)
    return method, encoder.double()


@pytest.fixture
def in_float64():
    """lightly's temperatures and weights of patches have torch's default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def lightly_head(ours) -> DINOProjectionHead:
    """lightly's head with the weights of ours."""
    linear = [layer for layer in ours.mlp if isinstance(layer, torch.nn.Linear)]
    widths = linear[0].in_features, linear[0].out_features, linear[-1].out_features
    settings = {"freeze_last_layer": 1, "norm_last_layer": ours.lengths is None}
    head = DINOProjectionHead(*widths, ours.last_layer.out_features, **settings).double()
    theirs = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    for a, b in zip(linear, theirs, strict=True):
        b.load_state_dict(a.state_dict())
    with torch.no_grad():
        head.last_layer.weight_v.copy_(ours.last_layer.weight)
    return head


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("norm_last_layer", [True, False])
@pytest.mark.parametrize("shared_head", [True, False])
def test_ibot_steps(shared_head, norm_last_layer, in_float64):
    """Encoder, heads, both losses and centres, teacher and SGD, with a local view; masks are ours.

    lightly moves the centre of patches by the masked ones, as DINOv2's code does. Algorithm 1 of the paper and the code
    of iBOT take all of the teacher's patches, and so do we.
    """
    switches = {"shared_head": shared_head, "norm_last_layer": norm_last_layer}
    method, encoder = built("ibot", **switches, patch_teacher_temperature=0.06)
    student = MaskedVisionTransformerTIMM(
        copy.deepcopy(encoder.backbone), method.mask_token.detach().clone()[None, None], "skip", True, "skip"
    ).double()
    student.mask_token = torch.nn.Parameter(student.mask_token)
    heads = torch.nn.ModuleList(lightly_head(head) for head in method.projectors)
    teacher, teacher_heads = copy.deepcopy(student), torch.nn.ModuleList(lightly_head(h) for h in method.projectors)
    class_loss = DINOLoss(output_dim=9)
    patch_loss = IBOTPatchLoss(output_dim=9)
    move_patch_center, patch_loss.center.update = patch_loss.center.update, lambda masked: None

    trained = [p for module in (student, heads) for p in module.parameters() if p.requires_grad]
    theirs = torch.optim.SGD(trained, lr=RATE, momentum=0.9)
    ours = torch.optim.SGD([p for m in (encoder, method) for p in m.parameters() if p.requires_grad], RATE, 0.9)
    for step in range(STEPS):
        method.begin_step(Progress(step, max_steps=STEPS, steps_per_epoch=2))
        views = views_of(step)
        masks = torch.cat([masked.mask for masked in method.draw_masks(views[:2], (4, 4))])
        prefix = torch.zeros(16, 2, dtype=torch.bool)

        tokens = student.encode(torch.cat(views[:2]), mask=torch.cat([prefix, masks], dim=1))
        local = student.encode(views[2])
        with torch.no_grad():
            seen = teacher.encode(torch.cat(views[:2]))
            scores = teacher_heads[0](seen[:, 0]).chunk(2)
            patch_scores = teacher_heads[-1](seen[:, 2:].flatten(0, 1))
        predictions = [*heads[0](tokens[:, 0]).chunk(2), heads[0](local[:, 0])]
        hidden = masks.flatten()
        loss = class_loss(list(scores), predictions, teacher_temp=method.teacher_temperature) + patch_loss(
            patch_scores[hidden],
            heads[-1](tokens[:, 2:].flatten(0, 1)[hidden]),
            masks.view(16, 4, 4),
            teacher_temp=method.patch_teacher_temperature,
        )
        move_patch_center(patch_scores)

        output = method(encoder, views)
        torch.testing.assert_close(output.loss, loss, rtol=1e-10, atol=1e-10)
        for optimizer, value in ((theirs, loss), (ours, output.loss)):
            optimizer.zero_grad()
            value.backward()
        torch.testing.assert_close(method.mask_token.grad, student.mask_token.grad.flatten(), rtol=1e-8, atol=1e-8)
        method.before_optimizer_step()
        for head in heads:
            head.cancel_last_layer_gradients(current_epoch=step // 2)
        theirs.step()
        ours.step()
        tau = cosine_momentum(0.996, 1.0, step / STEPS)
        update_momentum(student, teacher, tau)
        update_momentum(heads, teacher_heads, tau)
        method.end_step(encoder)

    found = dict(encoder.backbone.named_parameters()) | {"mask": method.mask_token[None, None]}
    expected = dict(student.vit.named_parameters()) | {"mask": student.mask_token}
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        dict(method.target.stack[0].backbone.named_parameters()),
        dict(teacher.vit.named_parameters()),
        rtol=1e-8,
        atol=1e-8,
    )
    for a, b in zip([*method.projectors, *method.target.stack[1:]], [*heads, *teacher_heads], strict=True):
        torch.testing.assert_close(a.mlp.state_dict(), b.layers.state_dict(), rtol=1e-8, atol=1e-8)
        prototypes = b.last_layer.weight_g * F.normalize(b.last_layer.weight_v)
        torch.testing.assert_close(a.prototypes, prototypes, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(method.center, class_loss.center.flatten(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(method.patch_center, patch_loss.center.value.flatten(), rtol=1e-8, atol=1e-8)


def balanced(scores, temperature, rounds=3):
    """Sinkhorn-Knopp as the papers write it, without logarithms."""
    q = (scores / temperature).exp()
    for _ in range(rounds):
        q = q / q.sum(dim=0)
        q = q / q.sum(dim=1, keepdim=True)
    return q


@pytest.mark.parametrize("local", [0, 2])
def test_dinov2_closed_form(local):
    """Value and gradient of the whole loss against its terms one by one, masked patch by masked patch."""
    weights = {"class_weight": 0.7, "patch_weight": 1.3, "koleo_weight": 0.2}
    method, encoder = built("dinov2", **weights, warmup_teacher_epochs=0.0)
    views = views_of(0, local)
    method.begin_step(Progress(0))
    masks = [masked.mask for masked in method.draw_masks(views[:2], (4, 4))]
    assert 0 < sum(mask.any(dim=1).sum() for mask in masks) < 16
    output = method(encoder, views)

    teacher, *teacher_heads = method.target.stack
    with torch.no_grad():
        seen = [teacher.tokens(view) for view in views[:2]]
        targets = balanced(teacher_heads[0](torch.cat([each[:, 0] for each in seen])), 0.07).chunk(2)
        hidden = torch.cat([each[:, 2:][mask] for each, mask in zip(seen, masks, strict=True)])
        patch_targets = balanced(teacher_heads[1](hidden), 0.07)
    tokens = [
        encoder.tokens(view, mask=mask, mask_token=method.mask_token)
        for view, mask in zip(views[:2], masks, strict=True)
    ]
    classes = [each[:, 0] for each in tokens] + [encoder.tokens(view)[:, 0] for view in views[2:]]
    total, pairs = 0, 0
    for t, target in enumerate(targets):
        for s, h in enumerate(classes):
            if s != t:
                total, pairs = total + F.cross_entropy(method.projectors[0](h) / 0.1, target), pairs + 1
    patches, row = 0, 0
    for each, mask in zip(tokens, masks, strict=True):
        for image in range(8):
            for place in mask[image].nonzero().flatten():
                scores = method.projectors[1](each[image, 2 + place][None])
                patches = patches + F.cross_entropy(scores / 0.1, patch_targets[row : row + 1]) / mask[image].sum()
                row += 1
    spread = sum(KoLeoLoss()(h) for h in classes[:2])
    expected = 0.7 * total / pairs + 1.3 * patches / 16 + 0.2 * spread

    torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=1e-10)
    trained = [p for module in (encoder, method) for p in module.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(value, trained, retain_graph=True) for value in (output.loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(output.parts["koleo"], spread.detach())


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (7, 16), (4, 4), (2, 2)])
@pytest.mark.parametrize("smallest", ["ibot", "dinov2"])
def test_block_masks_are_lightly_s(grid, smallest, monkeypatch):
    """With the same random numbers, which lightly draws from Python's generator."""
    least = (min(grid) // 3) ** 2 if smallest == "ibot" else 4
    for seed in range(20):
        numbers = np.random.default_rng(seed)
        fake = types.SimpleNamespace(
            uniform=lambda low, high, numbers=numbers: low + (high - low) * numbers.random(),
            randint=lambda low, high, numbers=numbers: int(numbers.integers(low, high + 1)),
        )
        monkeypatch.setattr(lightly.models.utils, "random", fake)
        budget = (0.1 + 0.4 * seed / 20) * grid[0] * grid[1]
        oracle = random_block_mask_image(
            grid, budget, min_num_masks_per_block=least, max_num_masks_per_block=grid[0] * grid[1]
        )
        mask = block_mask(np.random.default_rng(seed), grid, budget, smallest=least, aspect=0.3)
        assert mask.tolist() == oracle.tolist()
        assert mask.sum() <= budget


@pytest.mark.parametrize(
    ("name", "config", "low", "high"),
    [
        ("ibot", {}, 0.1, 0.5),
        ("ibot", {"mask_shape": "scattered"}, 0.1, 0.5),
        ("ibot", {"mask_ratio": 0.6, "mask_ratio_variation": 0.0}, 0.6, 0.6),
        ("dinov2", {"mask_ratio_min": 0.2, "mask_ratio_max": 0.4}, 0.2, 0.4),
    ],
)
def test_half_of_the_views_are_masked_and_shares_fill_the_range(name, config, low, high):
    method, _ = built(name, **config)
    views = [torch.zeros(300, 3, 8, 8)] * 2
    method.begin_step(Progress(3))
    first, second = method.draw_masks(views, (14, 14))
    assert not torch.equal(first.mask, second.mask)
    shares = torch.cat([first.mask, second.mask]).double().mean(dim=1)
    masked = shares[shares > 0]
    assert 250 < len(masked) < 350
    assert masked.max() <= high
    # Blocks fall short of their budget by a few patches.
    assert masked.mean() == pytest.approx((low + high) / 2, abs=0.03)
    assert masked.min() > low - 0.06
    # The indices and counts say the same as the mask.
    assert first.rows.tolist() == first.mask.flatten().nonzero().flatten().tolist()
    assert first.counts.tolist() == [count for row in first.mask.tolist() for count in [sum(row)] * sum(row)]


def test_masks_begin_with_their_epoch_and_so_does_the_warm_up_of_patches():
    method, _ = built("ibot", mask_start_epoch=2.0, warmup_teacher_epochs=4.0, teacher_temperature=0.08)
    for step, temperature, patch_temperature, masked in (
        (0, 0.04, 0.04, False), (10, 0.05, 0.04, False), (30, 0.07, 0.0475, True), (100, 0.08, 0.07, True)
    ):  # fmt: skip
        method.begin_step(Progress(step, max_steps=200, steps_per_epoch=10))
        assert method.teacher_temperature == pytest.approx(temperature)
        assert method.patch_teacher_temperature == pytest.approx(patch_temperature)
        assert any(mask.mask.any() for mask in method.draw_masks(views_of(0)[:2], (4, 4))) == masked


@both
def test_a_batch_without_masks_has_gradients_for_all_that_is_trained(name):
    """DDP would wait for a parameter that has none."""
    method, encoder = built(name, mask_probability=0.0)
    output = method(encoder, views_of(0))
    assert output.parts["patch_loss"] == 0
    output.loss.backward()
    trained = [p for module in (encoder, method) for p in module.parameters() if p.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)


@both
def test_local_views_change_the_loss_but_not_the_teacher(name):
    method, encoder = built(name)
    seen = []
    method.target.stack[0].backbone.patch_embed.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[-1])
    )
    losses = [method(encoder, views_of(0, local)).loss.item() for local in (0, 2)]
    assert losses[0] != losses[1]
    assert seen == [8] * 4


@both
def test_the_teacher_has_no_random_depth(name):
    torch.manual_seed(0)
    encoder = load_encoder("test_vit", image_size=32, patch_size=8, drop_path_rate=0.5)
    method = build_method(name, encoder, SMALL_OF[name]).train()
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(encoder.train()(images), encoder(images))
    teacher = method.target.stack[0]
    assert torch.equal(teacher(images), teacher(images))


@both
@pytest.mark.parametrize("pooling", ["token", "avg"])
@pytest.mark.parametrize("registers", [0, 4])
def test_class_tokens_are_representations(name, pooling, registers):
    """With registers, and with patches averaged in place of a class token."""
    encoder = load_encoder(
        "test_vit",
        image_size=16,
        patch_size=4,
        global_pool=pooling,
        reg_tokens=registers,
        class_token=pooling == "token",
    )
    method = build_method(name, encoder, SMALL_OF[name])
    assert method.patches.prefix == registers + (pooling == "token")
    views = [torch.randn(6, 3, 16, 16) for _ in range(2)]
    output = method(encoder.eval(), views)
    masks = method.draw_masks(views, (4, 4))
    tokens = encoder.tokens(views[0], mask=masks[0].mask, mask_token=method.mask_token)
    torch.testing.assert_close(output.representations[0], encoder.pool(tokens))
    output.loss.backward()
    assert encoder.backbone.patch_embed.proj.weight.grad.norm() > 0


@both
def test_transformers_dinov2_with_registers(name, tmp_path):
    """Its registers are no patches, local views have positions of their own, and all that is trained has gradients."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=3)).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    method = build_method(name, encoder, SMALL_OF[name])
    assert (method.patches.prefix, method.patches.grid(16)) == (4, (4, 4))
    output = method(encoder, [torch.randn(6, 3, side, side) for side in (16, 16, 8)])
    output.loss.backward()
    trained = [p for module in (encoder, method) for p in module.parameters() if p.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)


@both
def test_a_resumed_run_masks_as_one_that_was_not_stopped(name, tmp_path):
    def run(folder, **changes):
        model = tiny_model(
            backbone="test_vit",
            backbone_config={"patch_size": 8, "depth": 2},
            method=name,
            method_config=SMALL_OF[name] | {"warmup_teacher_epochs": 2.0},
        )
        return train("trainer", folder, model, spectra_steps=0, **changes).state_dict()

    whole = run(tmp_path / "whole", max_steps=4)
    run(tmp_path / "stopped", max_steps=4)
    shutil.rmtree(tmp_path / "stopped" / "checkpoint-4")
    resumed = run(tmp_path / "stopped", max_steps=4, resume=True)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


BAD = [
    ("ibot", {"mask_ratio": 0.3, "mask_ratio_variation": 0.4}, "shares from mask_ratio − variation to .* must lie in"),
    ("ibot", {"mask_ratio": 0.9, "mask_ratio_variation": 0.1}, r"pass mask_ratio_variation=0\.05"),
    ("ibot", {"mask_ratio": 1.5}, "mask_ratio is 1.5: it must be at most 1"),
    ("ibot", {"mask_shape": "blok"}, "did you mean 'block'"),
    ("dinov2", {"mask_ratio_min": 0.6}, r"mask_ratio_min is 0\.6 and mask_ratio_max is 0\.5: they must lie in"),
    ("dinov2", {"mask_ratio_max": 1.0}, "they must lie in"),
    ("dinov2", {"mask_probability": 2.0}, "mask_probability is 2.0: it must be at most 1"),
]


@pytest.mark.parametrize(("name", "config", "said"), BAD)
def test_bad_masks(name, config, said):
    with pytest.raises(ValueError, match=said):
        METHODS[name].config_class.from_dict(config)


@both
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--backbone resnet10t", "which masks patches, and backbone 'resnet10t' has no patch tokens"),
        (
            "--backbone test_vit --backbone_config patch_size=32",
            "a global view of 32 px has 1 × 1 patches of 32 px, too few to mask some of them",
        ),
        ("--backbone test_vit --image_size 30 --backbone_config patch_size=8", "30 px"),
        (
            "--backbone test_vit --backbone_config patch_size=32 --views cifar-multicrop",
            "a view of 16 px does not divide into patches of 32 px",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused_in_one_line(name, flags, said, capsys, tmp_path):
    arguments = f"pretrain --dataset digits --image_size 32 --max_steps 2 --output_dir {tmp_path} --use_cpu {flags}"
    with pytest.raises(SystemExit) as ending:
        main([*arguments.split(), "--method", name])
    assert ending.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
