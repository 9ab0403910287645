"""SimMIM against transformers' models for masked images as a whole, for backbones of other kinds, and its bad input."""

import pytest
import torch
import transformers as hf
from torch import nn

from hf_orthossl.configuration import SSLConfig
from hf_orthossl.encoders import ModuleEncoder, load_encoder
from hf_orthossl.methods import Progress, build_method
from hf_orthossl.modeling import SSLModel

SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 12, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
SWIN |= {"drop_path_rate": 0.0}
VIT = {
    "image_size": 16, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 48,
}  # fmt: skip
ORACLES = {
    "swin": (hf.SwinConfig(**SWIN, encoder_stride=4), hf.SwinForMaskedImageModeling, "swin", "embeddings"),
    "vit": (hf.ViTConfig(**VIT, encoder_stride=4), hf.ViTForMaskedImageModeling, "vit", "embeddings.patch_embeddings"),
}


def views(count=6, size=16, steps=5):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64) for _ in range(steps)]


def built(kind, folder):
    """An encoder of transformers with SimMIM on it, the oracle with its weights, and pairs of their parameters."""
    config, model, tower, _ = ORACLES[kind]
    config.save_pretrained(folder)
    encoder = load_encoder(str(folder)).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    method = build_method("simmim", encoder, {"mask_unit": 4}).double()
    oracle = model(config).double()
    own = {f"{tower}.{name}": p for name, p in encoder.backbone.named_parameters() if p.requires_grad}
    own |= {f"decoder.{name}": p for name, p in method.head.named_parameters()}
    own[f"{tower}.embeddings.mask_token"] = method.mask_token
    theirs = dict(oracle.named_parameters())
    assert own.keys() == theirs.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            theirs[name].copy_(parameter.view_as(theirs[name]))
    return encoder, method, oracle, [(own[name], theirs[name]) for name in own]


def expected_loss(oracle, method, images):
    """The oracle's loss, with the mask of this step, without the 1e-5 that it adds to the number of masked pixels."""
    units = method.masked_units(images, 4)
    cells = units.repeat_interleave(4 // method.layout.cell, 1).repeat_interleave(4 // method.layout.cell, 2)
    pixels = units.sum() * 16
    return oracle(images, bool_masked_pos=cells.flatten(1)).loss * (pixels + 1e-5) / pixels


@pytest.mark.parametrize("kind", ORACLES)
def test_loss_and_gradients_are_those_of_transformers(kind, tmp_path):
    encoder, method, oracle, pairs = built(kind, tmp_path)
    assert method.layout.stem == ORACLES[kind][3]
    images = views()[0]
    theirs = expected_loss(oracle, method, images)
    ours = method(encoder, [images]).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours.backward()
    theirs.backward()
    for own, other in pairs:
        torch.testing.assert_close(own.grad.view_as(other), other.grad, rtol=1e-9, atol=1e-11)


def test_five_steps_are_those_of_transformers(tmp_path):
    encoder, method, oracle, pairs = built("swin", tmp_path)
    ours, theirs = (torch.optim.SGD([pair[side] for pair in pairs], lr=0.05, momentum=0.9) for side in (0, 1))
    for step, images in enumerate(views()):
        method.begin_step(Progress(step, 5, 5, seed=1))
        theirs.zero_grad()
        expected_loss(oracle, method, images).backward()
        theirs.step()
        ours.zero_grad()
        method(encoder, [images]).loss.backward()
        ours.step()
    for own, other in pairs:
        torch.testing.assert_close(own.view_as(other), other, rtol=1e-9, atol=1e-9)


def swin_by_hand(backbone, images, cells, token):
    embedded = torch.where(cells[..., None], token, backbone.patch_embed(images))
    return backbone.norm(backbone.layers(embedded)).permute(0, 3, 1, 2)


def convnext_by_hand(backbone, images, cells, token):
    return backbone.stages(torch.where(cells[:, None], token[:, None, None], backbone.stem(images)))


def beit_by_hand(backbone, images, cells, token):
    tokens = torch.where(cells.flatten(1)[..., None], token, backbone.patch_embed(images))
    tokens = torch.cat([backbone.cls_token.expand(len(images), -1, -1), tokens], dim=1)
    for block in backbone.blocks:
        tokens = block(tokens)
    return tokens[:, 1:].mT.unflatten(2, cells.shape[1:])


def resnet_by_hand(backbone, images, cells, token):
    x = torch.where(cells[:, None], token[:, None, None], images)
    x = backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(x))))
    return backbone.layer4(backbone.layer3(backbone.layer2(backbone.layer1(x))))


BACKBONES = {
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4, "drop_path_rate": 0.0},
        (4, 8, 24),
        swin_by_hand,
    ),
    "convnext": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)}, (4, 32, 16), convnext_by_hand),
    "beit": (
        "beit_base_patch16_224",
        {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2},
        (8, 8, 12),
        beit_by_hand,
    ),
    "resnet": ("resnet18_cifar", {}, (1, 8, 512), resnet_by_hand),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_tokens_replace_patches_or_pixels_of_any_backbone(name):
    """Against the layers of timm's networks, called one after the other."""
    model, config, (cell, stride, width), by_hand = BACKBONES[name]
    encoder = load_encoder(model, image_size=32, **config).double()
    method = build_method("simmim", encoder).double()
    layout = method.layout
    assert (layout.cell, layout.stride, layout.width) == (cell, stride, width)
    images = views(size=32)[0]
    unit = method.unit(32)
    units = method.masked_units(images, 32 // unit)
    assert units.flatten(1).sum(1).tolist() == [-(-units[0].numel() * 6 // 10)] * 6
    cells = units.repeat_interleave(unit // cell, 1).repeat_interleave(unit // cell, 2)
    features = by_hand(encoder.backbone, images, cells, method.mask_token)
    assert features.shape == (6, width, 32 // stride, 32 // stride)
    errors = (method.head(features) - images).abs()
    pixels = units.repeat_interleave(unit, 1).repeat_interleave(unit, 2)[:, None].expand_as(images)
    ours = method(encoder, [images])
    torch.testing.assert_close(ours.loss, errors[pixels].mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.representations[0], features.mean((2, 3)), rtol=1e-12, atol=1e-12)
    # DDP waits for the gradients of all that is trained.
    ours.loss.backward()
    trained = [p for p in [*encoder.parameters(), *method.parameters()] if p.requires_grad]
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_activations_that_are_recomputed_are_those_of_the_masked_images(kind, tmp_path):
    """By the library's checkpointing, and chunk by chunk."""
    if kind == "timm":
        encoder = load_encoder(BACKBONES["swin"][0], image_size=32, **BACKBONES["swin"][1])
    else:
        ORACLES["swin"][0].save_pretrained(tmp_path)
        encoder = load_encoder(str(tmp_path), image_size=32)
    model = SSLModel(SSLConfig(method="simmim"), encoder).double()

    def gradients():
        model.zero_grad()
        model(views(size=32)[:1]).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    model.begin_step(Progress())
    model.encoder.set_gradient_checkpointing(True)
    torch.testing.assert_close(gradients(), expected, rtol=1e-9, atol=1e-12)
    model.begin_step(Progress())
    model.encoder.set_gradient_checkpointing(False)
    model.gradient_cache = 4
    torch.testing.assert_close(gradients(), expected, rtol=1e-9, atol=1e-12)


class Pooled(nn.Module):
    """A user's network, which pools its features itself."""

    def __init__(self, pooled=True):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), nn.GELU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 12, 2, stride=2), nn.GELU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)) if pooled else nn.Identity()

    def forward(self, images):
        return self.pool(self.layer2(self.layer1(images)))


@pytest.mark.parametrize("pooled", [True, False])
def test_a_network_of_the_users_own(pooled):
    network = Pooled(pooled)
    encoder = ModuleEncoder(network, image_size=16).double()
    method = build_method("simmim", encoder, {"mask_unit": 4}).double()
    assert (method.layout.cell, method.layout.stride, method.layout.width) == (2, 4, 12)
    images = views()[0]
    units = method.masked_units(images, 4)
    cells = units.repeat_interleave(2, 1).repeat_interleave(2, 2)
    stem = network.layer1[0](images)
    features = network.layer2(network.layer1[1](torch.where(cells[:, None], method.mask_token[:, None, None], stem)))
    torch.testing.assert_close(method(encoder, [images]).representations[0], features.mean((2, 3)))
    # The layer after the map is of no use for the loss.
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == (
        ["pool.2.weight", "pool.2.bias"] if pooled else []
    )


@pytest.mark.parametrize(
    ("side", "unit"),
    [(192, 32), (224, 32), (96, 16), (64, 8), (32, 4)],
)
def test_the_published_units_and_smaller_ones_for_smaller_views(side, unit):
    encoder = load_encoder("convnext_tiny", image_size=32, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16))
    assert build_method("simmim", encoder).unit(side) == unit


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"mask_unit": 6},
            "mask_unit is 6: it must divide views of 32 px and be a multiple of the backbone's patches of",
        ),
        ({"mask_unit": 2}, "backbone's patches of 4 px, pass --method_config mask_unit=… with one of 4, 8, 16, or 0"),
        ({"mask_unit": 32}, "mask_unit is 32: it must divide views of 32 px"),
        (
            {"mask_ratio": 0.99},
            "mask_ratio is 0.99, which masks all of the 64 units of a view: pass .*mask_ratio=0.984",
        ),
        ({"mask_ratio": 0.0}, "mask_ratio is 0.0: it must be above 0"),
        ({"mask_unit": 16, "mask_ratio": 0.8}, "masks all of the 4 units of a view: .*mask_ratio=0.75"),
    ],
)
def test_bad_settings(config, said):
    encoder = load_encoder("convnext_tiny", image_size=32, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16))
    with pytest.raises(ValueError, match=said):
        build_method("simmim", encoder, config)


def test_a_view_must_divide_into_positions_of_the_map():
    encoder = load_encoder("convnext_tiny", image_size=32, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16))
    method = build_method("simmim", encoder)
    method.check_sizes([32, 64])
    with pytest.raises(ValueError, match=r"a view of 48 px does not divide into the 32 px .* of 32"):
        method.check_sizes([32, 48])


def test_a_backbone_without_a_map_is_refused():
    with pytest.raises(ValueError, match="backbone 'linear' has no feature map to predict pixels from"):
        build_method("simmim", load_encoder("linear", image_size=8))
