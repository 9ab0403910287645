"""Tokens of patches: which pixels each sees, which are left out or replaced, and what they are pooled to."""

import copy

import pytest
import timm
import torch
import transformers as hf

from hf_orthossl.encoders import ModuleEncoder, load_encoder
from hf_orthossl.methods import ChunkedEncoder

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TIMM = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
# Without positions, with rotary ones, with registers, without a class token, with an attention pool.
TIMM_NETWORKS = {
    "vit": ("vit_tiny_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "average": ("vit_base_patch16_siglip_gap_224", {}),
    "map": ("vit_base_patch16_siglip_224", {}),
    "rotary": ("vit_small_patch16_dinov3", {"dynamic_img_size": False}),
    "mixed rotary": ("vit_small_patch16_rope_mixed_224", {}),
    "any size": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
}
CONFIGS = {
    "hf_vit": hf.ViTConfig, "hf_deit": hf.DeiTConfig, "hf_dinov2": hf.Dinov2Config,
    "hf_registers": hf.Dinov2WithRegistersConfig, "hf_dinov3": hf.DINOv3ViTConfig, "hf_ijepa": hf.IJepaConfig,
}  # fmt: skip
PREFIX = {
    "vit": 1, "registers": 5, "distilled": 2, "average": 0, "map": 0, "rotary": 5, "mixed rotary": 1, "any size": 1,
    "hf_vit": 1, "hf_deit": 2, "hf_dinov2": 1, "hf_registers": 5, "hf_dinov3": 1, "hf_ijepa": 0,
}  # fmt: skip


@pytest.fixture(params=PREFIX)
def encoder(request, tmp_path):
    torch.manual_seed(0)
    if request.param in CONFIGS:
        CONFIGS[request.param](**SMALL).save_pretrained(tmp_path)
        built = load_encoder(str(tmp_path))
    else:
        name, kwargs = TIMM_NETWORKS[request.param]
        built = load_encoder(name, **TIMM, **kwargs)
    built.kind = request.param
    return built.double().eval()


def images(count=3, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_tokens_are_the_librarys_and_pool_to_the_representation(encoder):
    x = images()
    tokens, layout = encoder.tokens(x), encoder.patches
    assert (layout.patch, layout.prefix, layout.width, layout.grid(32)) == (8, PREFIX[encoder.kind], 32, (4, 4))
    own = encoder.backbone.forward_features(x) if encoder.library == "timm" else encoder.backbone(x).last_hidden_state
    torch.testing.assert_close(tokens, own, rtol=0, atol=0)
    torch.testing.assert_close(encoder.pool(tokens), encoder(x), rtol=1e-12, atol=1e-12)


def test_kept_patches_keep_their_order_and_their_positions_and_see_no_other(encoder):
    x, prefix = images(), encoder.patches.prefix
    keep = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    whole, ordered = encoder.tokens(x), encoder.tokens(x, keep=keep)
    for i in range(3):
        torch.testing.assert_close(ordered[i, prefix:], whole[i, prefix + keep[i]], rtol=1e-10, atol=1e-10)
    some = keep[:, :5]
    kept = encoder.tokens(x, keep=some)
    assert kept.shape == (3, prefix + 5, 32)
    changed = x.clone()
    for i in range(3):
        for patch in {*range(16)} - {*some[i].tolist()}:
            row, column = divmod(patch, 4)
            changed[i, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 9.0
    torch.testing.assert_close(encoder.tokens(changed, keep=some), kept, rtol=0, atol=0)
    assert (kept - encoder.tokens(x.flip(0), keep=some)).norm() > 1e-3
    # Nothing of it remains.
    torch.testing.assert_close(encoder.tokens(x), whole, rtol=0, atol=0)


def test_a_masked_patch_is_the_mask_token_at_its_position(encoder):
    x = images()
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, 5] = mask[1, 0] = True
    token = torch.randn(32, dtype=torch.float64, requires_grad=True)
    masked = encoder.tokens(x, mask=mask, mask_token=token)
    changed = x.clone()
    changed[:, :, 8:16, 8:16] = 9.0
    changed[1, :, :8, :8] = 9.0
    torch.testing.assert_close(encoder.tokens(changed, mask=mask, mask_token=token), masked, rtol=0, atol=0)
    assert (masked - encoder.tokens(x)).norm() > 1e-3
    masked.square().sum().backward()
    assert token.grad.norm() > 0


def test_with_recomputed_activations_the_gradients_are_the_same(encoder):
    encoder.train()
    keep = torch.arange(3).expand(3, -1)
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(encoder)
        model.set_gradient_checkpointing(checkpointing)
        torch.manual_seed(3)  # DINOv3 shifts its positions at random
        model.tokens(images(), keep=keep).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_tokens_of_a_whole_batch_in_chunks(encoder):
    encoder.train()
    mask, token = torch.eye(4, 16, dtype=torch.bool), torch.ones(32, dtype=torch.float64)
    keep = torch.stack([torch.randperm(16)[:7] for _ in range(4)])
    plain = copy.deepcopy(encoder)
    for kwargs in ({"keep": keep}, {"mask": mask, "mask_token": token}):
        torch.manual_seed(0)
        cached = ChunkedEncoder(encoder, 4).tokens(images(4), **kwargs)
        cached.square().sum().backward()
        torch.manual_seed(0)
        expected = plain.tokens(images(4), **kwargs)
        expected.square().sum().backward()
        torch.testing.assert_close(cached, expected, rtol=1e-12, atol=1e-12)
    if "dinov3" not in encoder.kind:  # which shifts the positions of each chunk by itself
        chunks = ChunkedEncoder(encoder, 3).tokens(images(4), keep=keep)
        torch.testing.assert_close(chunks, encoder.tokens(images(4), keep=keep), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(encoder.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_what_only_the_representation_needs_can_be_frozen():
    encoder = load_encoder("vit_base_patch16_siglip_224", **TIMM)
    encoder.freeze_pooling()
    trained = {name for name, p in encoder.backbone.named_parameters() if p.requires_grad}
    assert not any(name.startswith("attn_pool") for name in trained)
    encoder.tokens(images().float()).sum().backward()
    assert {name for name, p in encoder.backbone.named_parameters() if p.grad is not None} == trained


@pytest.mark.parametrize(
    "build",
    [
        lambda: load_encoder("resnet10t", image_size=32),
        lambda: load_encoder("swin_tiny_patch4_window7_224"),
        lambda: load_encoder("beit_base_patch16_224", image_size=32),
        lambda: ModuleEncoder(timm.create_model("resnet10t", num_classes=0), image_size=32),
    ],
)
def test_other_networks_have_none(build):
    encoder = build()
    with pytest.raises(ValueError, match=r"has no patch tokens that can be left out .*--backbone vit_small") as caught:
        _ = encoder.patches
    assert "\n" not in str(caught.value)
    assert encoder.training


def test_a_view_must_divide_into_patches():
    layout = load_encoder("vit_tiny_patch16_224", **TIMM).patches
    assert layout.grid(40) == (5, 5)
    with pytest.raises(ValueError, match=r"view of 30 px does not divide into patches of 8 px: .* of 24 or 32"):
        layout.grid(30)
    with pytest.raises(ValueError, match=r"view of 4 px .* of 8 or 16"):
        layout.grid(4)
