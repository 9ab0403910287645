"""The CIFAR networks are the papers', and timm treats them as its own."""

import math

import pytest
import timm
import torch
import torchvision
from lightly.models import ResNetGenerator
from torch.nn import functional as F

from hf_orthossl.encoders import load_encoder


@pytest.mark.parametrize(
    # Counts of the published networks with ten classes: kuangliu's and solo-learn's CIFAR ResNets, and solo-learn's
    # WRN-28-2 (1,468,352 without classes), less 2 × (32 + 64) parameters of batch norms that it never calls.
    ("name", "parameters", "dim", "last_map"),
    [
        ("resnet18_cifar", 11_173_962, 512, 4),
        ("resnet50_cifar", 23_520_842, 2048, 4),
        ("wide_resnet28_2", 1_468_352 - 192 + 1_290, 128, 8),
    ],
)
def test_networks_are_the_published_ones(name, parameters, dim, last_map):
    model = timm.create_model(name, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    encoder = load_encoder(name)
    assert (encoder.num_features, encoder.image_size) == (dim, 32)
    assert encoder.mean == (0.4914, 0.4822, 0.4465)
    assert encoder.std == (0.2470, 0.2435, 0.2616)
    features = timm.create_model(name, features_only=True)
    maps = features(torch.randn(2, 3, 32, 32))
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    assert [32 // m.shape[-1] for m in maps] == features.feature_info.reduction()
    assert maps[-1].shape[-1] == last_map


def test_resnet_is_timm_s_but_for_the_stem():
    ours = timm.create_model("resnet18_cifar", num_classes=0).eval()
    theirs = timm.create_model("resnet18", num_classes=0).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert {k for k, v in ours.state_dict().items() if v.shape != theirs.state_dict()[k].shape} == {"conv1.weight"}
    assert ours.layer1[0].bn2.weight.abs().max() == 0  # timm's zero_init_last
    images = torch.randn(2, 3, 32, 32)
    stem = ours.conv1.weight
    theirs.load_state_dict({**ours.state_dict(), "conv1.weight": theirs.conv1.weight})
    x = F.relu(ours.bn1(F.conv2d(images, stem, padding=1)))
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        x = layer(x)
    torch.testing.assert_close(ours(images), x.mean((2, 3)))


def test_resnet_starts_as_in_solo_learn_and_in_lightly():
    torch.manual_seed(0)
    solo = timm.create_model("resnet18_cifar", num_classes=0, stem_padding=2, zero_init_last=False)
    theirs = torchvision.models.resnet18()
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=2, bias=False)
    theirs.maxpool = theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(solo.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(solo.eval()(images), theirs.eval()(images))
    assert {m.weight.min().item() for m in solo.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1.0}

    lightly = timm.create_model("resnet18_cifar", num_classes=0, conv_init="uniform", zero_init_last=False)
    reference = ResNetGenerator("resnet-18")
    # Sums over 9,216 weights and more, whose standard deviation is their own by a hundredth or less.
    for (name, own), (other, wanted) in zip(_convolutions(lightly), _convolutions(reference), strict=True):
        assert own.shape == wanted.shape, (name, other)
        torch.testing.assert_close(own.std(), wanted.std(), rtol=0.05, atol=0)
        bound = 1 / math.sqrt(own[0].numel())
        assert 0.98 * bound < own.abs().max() <= bound
    with pytest.raises(ValueError, match="stem_padding is 3: it must be 1 or 2"):
        timm.create_model("resnet18_cifar", stem_padding=3)
    with pytest.raises(ValueError, match="conv_init is 'torch': it must be"):
        timm.create_model("resnet18_cifar", conv_init="torch")


def _convolutions(model):
    return [(name, m.weight) for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]


def test_wide_resnet_is_solo_learn_s():
    """Against solo-learn's network, written with functions and in the order of its own layers."""
    model = timm.create_model("wide_resnet28_2", num_classes=10).eval().double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean)
    p = model.state_dict()

    def activated(x, key):
        weights = (p[f"{key}.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias"))
        return F.leaky_relu(F.batch_norm(x, *weights, eps=0.001), 0.1)

    def conv(x, key, stride=1):
        weight = p[f"{key}.weight"]
        return F.conv2d(x, weight, p[f"{key}.bias"], stride, padding=weight.shape[-1] // 2)

    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = conv(images, "conv1")
    for group in (1, 2, 3):
        for block in range(4):
            key, stride = f"layer{group}.{block}", 2 if block == 0 and group > 1 else 1
            inner = x if stride == 2 else activated(x, f"{key}.bn1")
            if group == 1 and block == 0:
                x = inner
            out = conv(activated(conv(inner, f"{key}.conv1", stride), f"{key}.bn2"), f"{key}.conv2")
            x = out + (conv(x, f"{key}.shortcut", stride) if block == 0 else x)
    assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.001}
    x = activated(x, "norm").mean((2, 3))
    torch.testing.assert_close(model(images), F.linear(x, p["fc.weight"], p["fc.bias"]), atol=1e-10, rtol=1e-10)


def test_wide_resnet_head_can_be_replaced():
    model = timm.create_model("wide_resnet28_2", num_classes=0)
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, 128)
    model.reset_classifier(7)
    assert model(images).shape == (2, 7)
    assert model.get_classifier().out_features == 7
