"""Layer-wise learning rates: those of timm for a ViT, and by stage for networks of stages."""

import math

import pytest
import timm
from timm.optim import param_groups_layer_decay
from torch import nn

from hf_orthossl import load_encoder
from hf_orthossl.evaluation.finetune import layer_decay_groups


def settings_by_name(module, groups):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"] if id(p) in names}


def test_a_vit_gets_what_timm_gives_it():
    """But for the last norm, which BEiT's and MAE's code puts beside the head and timm into the last block."""
    encoder = load_encoder("vit_tiny_patch16_224", image_size=32)
    head = nn.Linear(encoder.num_features, 3)
    ours = layer_decay_groups(encoder, head, learning_rate=0.2, layer_decay=0.7, weight_decay=0.05)
    other = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    timms = param_groups_layer_decay(
        other, weight_decay=0.05, no_weight_decay_list=other.no_weight_decay(), layer_decay=0.7
    )
    for group in timms:
        group["lr"] = 0.2 * group["lr_scale"]
    expected = settings_by_name(other, timms)
    found = settings_by_name(encoder.backbone, ours) | {
        f"head.{name}": values for name, values in settings_by_name(head, ours).items()
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx((0.2, 0.0) if name.startswith("norm.") else values), name


def test_a_resnet_decays_by_stage():
    encoder = load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 16])
    groups = layer_decay_groups(encoder, nn.Linear(16, 2), learning_rate=1.0, layer_decay=0.5, weight_decay=0.0)
    found = settings_by_name(encoder.backbone, groups)
    for name, (rate, _) in found.items():
        stage = int(name[5]) if name.startswith("layer") else 0
        assert math.log2(rate) == stage - 5, name


def test_a_transformers_model_decays_by_block_and_frozen_weights_are_left_out(tmp_path):
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    frozen = [name for name, _ in encoder.backbone.named_parameters() if "embeddings" in name]
    for name in frozen[1:]:
        encoder.backbone.get_parameter(name).requires_grad_(False)
    groups = layer_decay_groups(encoder, nn.Linear(8, 2), learning_rate=1.0, layer_decay=0.5, weight_decay=0.0)
    found = settings_by_name(encoder.backbone, groups)
    assert {math.log2(rate) for name, (rate, _) in found.items() if ".1." in name} == {-2}
    assert found[frozen[0]][0] == 1 / 16
    assert found["layernorm.weight"][0] == 1.0
    assert not set(frozen[1:]) & set(found)


@pytest.mark.parametrize("value", [0, 1.5, float("nan")])
def test_a_factor_out_of_range(value):
    encoder = load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 16])
    with pytest.raises(ValueError, match="layer_decay is"):
        layer_decay_groups(encoder, nn.Linear(16, 2), learning_rate=1.0, layer_decay=value, weight_decay=0.0)
