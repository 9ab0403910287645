"""`Encoder.representation_and_map`: both are those of separate passes, for every kind of backbone."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from transformers import Dinov2Config

from hf_orthossl.encoders import ModuleEncoder, load_encoder

SIDE = 32


def built(kind, folder):
    if kind == "dinov2":
        Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=4
        ).save_pretrained(folder)
        return load_encoder(folder, image_size=SIDE)
    if kind == "module":
        layers = {"layer1": nn.Conv2d(3, 4, 3, stride=2, padding=1), "layer2": nn.Conv2d(4, 5, 3, stride=2, padding=1)}
        network = nn.Sequential(OrderedDict(layers))
        return ModuleEncoder(network, image_size=SIDE)
    patches = {"patch_size": 4, "reg_tokens": 1} if kind == "test_vit" else {}
    return load_encoder(kind, image_size=SIDE, **patches)


@pytest.mark.parametrize(
    ("kind", "side"),
    [("test_vit", 8), ("dinov2", 8), ("test_resnet", 1), ("resnet18_cifar", 4), ("test_convnext", 1), ("module", 8)],
)
def test_both_are_those_of_separate_passes(kind, side, tmp_path):
    encoder = built(kind, tmp_path).eval()
    images = torch.randn(2, 3, SIDE, SIDE)
    representation, features = encoder.representation_and_map(images)
    torch.testing.assert_close(representation, encoder(images), rtol=1e-4, atol=1e-5)
    assert features.shape[::2] == (2, side)
    assert features.shape[3] == side
    if kind in ("test_vit", "dinov2"):
        prefix = encoder.patches.prefix
        expected = encoder.tokens(images)[:, prefix:].mT.reshape(2, -1, side, side)
        torch.testing.assert_close(features, expected)
    if kind == "module":
        torch.testing.assert_close(features.mean(dim=(2, 3)), representation)


def test_a_backbone_without_a_map_is_refused():
    flat = ModuleEncoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4)), image_size=SIDE)
    with pytest.raises(ValueError, match="'Sequential' has neither patch tokens nor a feature map at its end"):
        flat.representation_and_map(torch.randn(1, 3, SIDE, SIDE))
