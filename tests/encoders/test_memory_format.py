"""The memory order of images changes how fast a backbone is, and nothing else."""

import pytest
import torch
from torch import nn

from hf_orthossl import load_encoder
from hf_orthossl.encoders.memory_format import memory_formats
from hf_orthossl.encoders.timm_encoder import TimmEncoder


class Pointwise(nn.Module):
    """A shortcut of `channels` channels that halves the sides, as a narrow residual network has it."""

    def __init__(self, channels, groups=1):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, stride=2, groups=groups)

    def forward(self, x):
        self.seen = self.stem(x)
        return self.shortcut(self.seen).mean(dim=(2, 3))


def encoder_of(backbone):
    settings = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    return TimmEncoder(backbone, name="pointwise", image_size=32, **settings)


def is_channels_last(features):
    return features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet10t", "mobilenetv3_small_050"])
def test_representation_and_gradients_are_those_of_contiguous_images(name):
    torch.manual_seed(0)
    encoder = load_encoder(name, image_size=32).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.double)
    stages = encoder.stages(images)
    assert any(is_channels_last(output) for output in stages.values() if output.ndim == 4)
    (stages["representation"] ** 2).sum().backward()
    found = [parameter.grad.clone() for parameter in encoder.parameters()]
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in encoder.parameters())
    encoder.zero_grad()
    plain = encoder.backbone(images)
    (plain**2).sum().backward()
    torch.testing.assert_close(stages["representation"], plain)
    torch.testing.assert_close(found, [parameter.grad for parameter in encoder.parameters()])


def test_a_vit_takes_images_as_they_are():
    assert memory_formats(load_encoder("vit_tiny_patch16_224", image_size=32)) == {}


@pytest.mark.parametrize(("channels", "groups", "safe"), [(8, 1, False), (16, 1, True), (32, 4, False)])
def test_where_onednn_overflows_images_become_contiguous(channels, groups, safe):
    """Its gradient of strided 1×1 weights wrote beyond its memory for images of 128 pixels, channels-last."""
    encoder = encoder_of(Pointwise(channels, groups))
    images = torch.randn(2, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    encoder(images).sum().backward()
    assert is_channels_last(encoder.backbone.seen) is safe
    assert set(memory_formats(encoder.backbone)) == {"cuda", *(["cpu"] if safe else [])}
