"""Sizes that a backbone cannot take, or does not see all of: the line names what it needs and the option."""

import logging

import pytest
import torch
from torch import nn

from hf_orthossl import load_encoder
from hf_orthossl.encoders.timm_encoder import TimmEncoder

TINY = {"depth": 1, "embed_dim": 24, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "size", "line"),
    [
        ("inception_v3", 32, r"fails on images of 32 px .*: it was published for .* px, pass image_size=299"),
        ("maxvit_tiny_tf_224", 100, r"fails on images of 100 px \(.*\): it was published .* pass image_size=224"),
        ("vit_tiny_patch16_224", 100, "in patches of 16 px and never sees the last 4 px .*: pass image_size=96 or 112"),
        ("convnext_atto", 98, "in patches of 4 px and never sees the last 2 px .*: pass image_size=96 or 100"),
    ],
)  # fmt: skip
def test_the_line_names_what_the_backbone_needs(name, size, line):
    with pytest.raises(ValueError, match=line):
        load_encoder(name, image_size=size)


def test_no_size_is_blamed_for_another_cause():
    about = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "image_size": 32, "own_size": 32}
    with pytest.raises(ValueError, match=r"fails on images of 32 px .*: pass another backbone") as raised:
        TimmEncoder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(7, 2)), name="mine", **about)
    assert "image_size" not in str(raised.value)


def test_a_border_that_is_seen_is_no_fault():
    """Images may be filled up to whole patches; a padded convolution sees every pixel."""
    filled = {**TINY, "dynamic_img_size": True, "dynamic_img_pad": True}
    for name, settings in (("resnet10t", {}), ("vit_tiny_patch16_224", filled)):
        encoder = load_encoder(name, image_size=98, **settings).eval()
        images = torch.zeros(2, 3, 98, 98)
        images[1, :, -1] = images[1, :, :, -1] = 1
        first, second = encoder(images)
        assert not torch.equal(first, second)


def test_a_size_that_was_published_so_is_said(caplog, monkeypatch):
    import timm

    cfg = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    monkeypatch.setattr(type(cfg), "input_size", (3, 100, 100), raising=False)
    monkeypatch.setattr(
        "timm.get_pretrained_cfg", lambda name: type(cfg)(**cfg.__dict__ | {"input_size": (3, 100, 100)})
    )
    with caplog.at_level(logging.WARNING, "hf_orthossl"):
        encoder = load_encoder("vit_tiny_patch16_224", **TINY)
    assert encoder.image_size == 100
    assert "never sees the last 4 px" in caplog.text
