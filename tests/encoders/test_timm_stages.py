"""Stages of timm's less usual networks: as many rows as images, the channels that timm states, timm's own values."""

import pytest
import torch

from hf_orthossl import load_encoder

# Names of stages that are no modules, lists of modules, several branches, channels in the last dimension, rows that are
# not images, a network within another.
NETWORKS = {
    "twins_svt_small": ([64, 128, 256, 512], {"depths": (1, 1, 1, 1)}),
    "mvitv2_tiny": ([96, 192, 384, 768], {}),
    "hrnet_w18_small": ([128, 256, 512, 1024], {}),
    "coat_tiny": ([152], {"parallel_depth": 1, "serial_depths": (1, 1, 1, 1)}),
    "crossvit_tiny_240": ([192, 192, 192], {}),
    "tnt_s_legacy_patch16_224": ([384] * 4, {"depth": 4}),
    "volo_d1_224": ([192, 384, 384, 384], {}),
    "samvit_base_patch16_224": ([48] * 4, {"depth": 4, "embed_dim": 48, "num_heads": 2, "neck_chans": 16}),
    "gemma4_vit_167m": ([24] * 4, {"image_size": 96, "depth": 4, "embed_dim": 24}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_and_channels(name):
    channels, settings = NETWORKS[name]
    encoder = load_encoder(name, **settings).eval()
    with torch.no_grad():
        stages = encoder.stages(torch.randn(2, 3, encoder.image_size, encoder.image_size))
    assert stages.pop("representation").shape == (2, encoder.num_features)
    assert [len(output) for output in stages.values()] == [2] * len(channels)
    assert [output.shape[1 if output.ndim == 4 else 2] for output in stages.values()] == channels


@pytest.mark.parametrize("name", ["mvitv2_tiny", "volo_d1_224", "samvit_base_patch16_224"])
def test_values_are_those_that_timm_returns(name):
    encoder = load_encoder(name, **NETWORKS[name][1]).eval()
    images = torch.randn(2, 3, encoder.image_size, encoder.image_size)
    with torch.no_grad():
        found = [*encoder.stages(images).values()][:-1]
        expected = encoder.backbone.forward_intermediates(images, intermediates_only=True)
    assert len(found) <= len(expected)
    for stage in found:
        maps = [stage] if stage.ndim == 4 else []
        if stage.ndim == 3:
            side = int(stage.shape[1] ** 0.5)
            maps = [stage[:, -side * side :].mT.unflatten(2, (side, side))]
        assert any(m.shape == e.shape and torch.allclose(m, e, atol=1e-5) for m in maps for e in expected)
