"""I-JEPA: its blocks, whole training steps against lightly's modules, and what it refuses."""

import copy

import numpy as np
import pytest
import torch
from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
from lightly.models.utils import update_momentum
from torch import nn

from hf_orthossl.encoders import load_encoder
from hf_orthossl.encoders.position_tables import sincos_positions
from hf_orthossl.methods import Progress, build_method
from hf_orthossl.methods.masking import Blocks

SMALL = {"predictor_dim": 12, "predictor_depth": 2, "predictor_heads": 3}


def encoder_of(side, **arguments):
    arguments = {"patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 2} | arguments
    return load_encoder("test_vit", image_size=2 * side, **arguments)


@pytest.mark.parametrize("side", [4, 8, 14])
def test_blocks_are_rectangles_that_the_context_does_not_see(side):
    method = build_method("ijepa", encoder_of(side), SMALL)
    sizes, kepts = set(), set()
    for step in range(20):
        method.begin_step(Progress(step, 20, seed=3))
        method.begin_batch(6)
        blocks, kept = method.blocks((side, side))
        keep, targets = blocks.draw(method.generators(6), kept, torch.device("cpu"))
        assert keep.shape == (6, kept)
        assert targets.shape[:2] == (6, 4)
        for context, image in zip(keep.tolist(), targets.tolist(), strict=True):
            assert context == sorted({*context})
            assert not {*context} & {patch for block in image for patch in block}
            for block in image:
                rows, columns = sorted({p // side for p in block}), sorted({p % side for p in block})
                assert (len(rows), len(columns)) == blocks.target
                assert block == [row * side + column for row in rows for column in columns]
                assert rows[-1] - rows[0] < len(rows)
                assert rows[-1] < side
            corner = min(p // side for p in context), min(p % side for p in context)
            assert all(p // side - corner[0] < blocks.context[0] for p in context)
            assert all(p % side - corner[1] < blocks.context[1] for p in context)
        sizes.add(blocks.target)
        kepts.add(kept)
    assert len(kepts) > 1
    if side > 4:
        assert len(sizes) > 1
        # The paper's ranges: 15 to 20 % of the patches, up to the rounding of the sides.
        shares = np.array([height * width for height, width in sizes]) / side**2
        assert shares.min() > 0.1
        assert shares.max() < 0.25


def test_every_part_of_an_image_is_context_equally_often():
    blocks = Blocks((8, 8), (3, 4), (7, 7), 4)
    generators = [np.random.default_rng(seed) for seed in range(4000)]
    keep, _ = blocks.draw(generators, 12, torch.device("cpu"))
    share = torch.zeros(64).index_add_(0, keep.flatten(), torch.ones(keep.numel())).view(8, 8) / 4000
    for mirrored in (share.flip(0), share.flip(1)):
        torch.testing.assert_close(share, mirrored, rtol=0, atol=0.04)


def copied_predictor(predictor, patches):
    """Ours as lightly's module."""
    theirs = IJEPAPredictorTIMM(patches, depth=2, mlp_dim=12, predictor_embed_dim=12, num_heads=3).double()
    pairs = [(predictor.embed, theirs.predictor_embed), (predictor.predict, theirs.predictor_proj)]
    pairs += [(predictor.norm, theirs.decoder.norm), *zip(predictor.blocks, theirs.decoder.blocks, strict=True)]
    for ours, other in pairs:
        other.load_state_dict(ours.state_dict())
    with torch.no_grad():
        theirs.decoder.mask_token.copy_(predictor.mask_token)
    return theirs, pairs


def test_ijepa_steps():
    encoder = encoder_of(6, class_token=False, global_pool="avg").double()
    method = build_method("ijepa", encoder, SMALL | {"momentum": 0.9}).double()
    student = MaskedVisionTransformerTIMM(
        copy.deepcopy(encoder.backbone), weight_initialization="skip", pos_embed_initialization="skip"
    )
    teacher = copy.deepcopy(student)
    predictor, pairs = copied_predictor(method.predictor, 36)
    # lightly computes its positions in float32.
    positions = sincos_positions(6, 6, 12)[None]
    torch.testing.assert_close(predictor.decoder.pos_embed, positions, rtol=0, atol=1e-6)
    with torch.no_grad():
        predictor.decoder.pos_embed.copy_(positions)
    theirs = [p for part in (student, predictor) for p in part.parameters()]
    mine = torch.optim.SGD([p for p in [*encoder.parameters(), *method.parameters()] if p.requires_grad], lr=0.05)
    optimizer = torch.optim.SGD(theirs, lr=0.05)
    generator = torch.Generator().manual_seed(3)
    for step in range(5):
        images = torch.randn(5, 3, 12, 12, generator=generator, dtype=torch.float64)
        method.begin_step(Progress(step, max_steps=5))
        method.begin_batch(5)
        blocks, kept = method.blocks((6, 6))
        keep, targets = blocks.draw(method.generators(5), kept, images.device)
        masks = list(targets.unbind(1))

        mine.zero_grad()
        loss = method(encoder, [images]).loss
        loss.backward()
        mine.step()
        method.end_step(encoder)

        optimizer.zero_grad()
        with torch.no_grad():
            h = teacher.encode(images)
            h = nn.functional.layer_norm(h, (12,))
            h = torch.cat([h.gather(1, mask[:, :, None].expand(-1, -1, 12)) for mask in masks])
        predictions = predictor(student.encode(images, idx_keep=keep), [keep], masks)
        expected = nn.functional.smooth_l1_loss(predictions, h)
        expected.backward()
        optimizer.step()
        update_momentum(student, teacher, 0.9 + 0.1 * step / 5)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)

    for ours, other in [(encoder.backbone, student.vit), (method.target.stack[0].backbone, teacher.vit), *pairs]:
        torch.testing.assert_close(dict(ours.state_dict()), dict(other.state_dict()), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        method.predictor.mask_token, predictor.decoder.mask_token.flatten(), rtol=1e-8, atol=1e-8
    )


def test_a_class_token_is_trained_through_the_predictor():
    encoder = encoder_of(6, reg_tokens=1)
    method = build_method("ijepa", encoder, SMALL)
    method(encoder, [torch.randn(4, 3, 12, 12)]).loss.backward()
    assert encoder.backbone.cls_token.grad.abs().max() > 0
    assert [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("side", "config", "said"),
    [
        (1, {}, "a view of 2 px has 1×1 patches, and 4 target blocks of 1×1 patches mostly leave fewer than 1 to"),
        (8, {"target_scale_min": 0.5, "target_scale_max": 0.6}, "mostly leave fewer than 3 to the context"),
        (8, {"target_scale_min": 0.3}, "target_scale_min is 0.3: it must be at most target_scale_max, which is 0.2"),
        (8, {"predictor_heads": 5}, "predictor_dim is 12 and predictor_heads is 5"),
    ],
)
def test_what_cannot_be_masked_is_one_line(side, config, said):
    with pytest.raises(ValueError, match=said) as caught:
        build_method("ijepa", encoder_of(side), SMALL | config)
    assert "\n" not in str(caught.value)
