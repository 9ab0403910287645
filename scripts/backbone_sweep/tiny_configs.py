"""Configurations of transformers made small: two layers, narrow where nothing depends on the width, small images."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

# Computed from other entries; those that name layers no longer fit when there are fewer.
_DERIVED = ("stage_names", "out_features")
_OF_LAYERS = ("out_indices", "backbone_out_indices", "intermediate_hidden_state_indices")
_LAYERS = ("num_hidden_layers", "num_layers", "depth", "encoder_layers", "decoder_layers", "num_attention_layers")
_HEADS = ("num_attention_heads", "num_heads", "num_key_value_heads", "attention_heads", "encoder_attention_heads")
_DEPTHS = ("depths", "depth", "num_block_repeats", "blocks_per_stage", "stage_num_blocks")
_WIDTH, _HEAD_COUNT, _SIDE = 64, 4, 64

# The network that EdgeTAM is published with.
_REPVIT = {
    "model_type": "timm_wrapper",
    "architecture": "repvit_m1",
    "num_labels": 2,
    "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
}
# Entries of types that the rules do not fit.
_OWN: dict[str, dict[str, Any]] = {
    "cvt": {"depth": [1, 2, 3]},  # it indexes the rates of a stage's blocks by the number of the stage
    "timm_backbone": {"backbone": "resnet10t"},
    "sapiens2": {"num_key_value_heads_per_layer": None, "num_key_value_attention_heads": 2},
    "edgetam_vision_model": {"backbone_config": _REPVIT},
    "edgetam": {"vision_config": {"model_type": "edgetam_vision_model", "backbone_config": _REPVIT}},
    # Windows that the small images hold.
    **{model_type: {"window_size": 2} for model_type in ("swin", "swinv2", "donut-swin", "maskformer-swin")},
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return a small configuration of a type, made of its default one."""
    entries = _tiny(CONFIG_MAPPING[model_type]().to_dict())
    return CONFIG_MAPPING[model_type](**{**entries, **_OWN.get(model_type, {})})


def _tiny(entries: dict[str, Any]) -> dict[str, Any]:
    isotropic = isinstance(entries.get("num_hidden_layers"), int) and "depths" not in entries
    known = {key for key in entries if key not in (*_DERIVED, *(_OF_LAYERS if isotropic else ()))}
    small = {key: entries[key] for key in known}
    narrow = "hidden_size" in known and isinstance(entries["hidden_size"], int) and not known & {*_DEPTHS} - {"depth"}
    narrow = narrow and isinstance(entries.get("depth", 0), int)
    for key in known:
        value = entries[key]
        if isinstance(value, dict) and "model_type" in value:
            small[key] = {**_tiny(value), "model_type": value["model_type"]}
        elif key in _DEPTHS and isinstance(value, list):
            small[key] = [1] * len(value)
        elif key in _LAYERS and isinstance(value, int):
            small[key] = 2
        elif key == "fpn_hidden_size":
            small[key] = _WIDTH // 2
        elif key in ("layer_types", "mlp_layer_types") and isinstance(value, list):
            small[key] = value[:2]
        elif narrow and key == "hidden_size":
            small[key] = _WIDTH
        elif narrow and key in ("intermediate_size", "mlp_dim"):
            small[key] = 2 * _WIDTH
        elif narrow and key in _HEADS and isinstance(value, int):
            small[key] = _HEAD_COUNT
        elif narrow and key == "head_dim" and value is not None:
            small[key] = _WIDTH // _HEAD_COUNT
        elif key == "image_size" and isinstance(value, int):
            patch = entries.get("patch_size", 1)
            small[key] = 4 * patch if isinstance(patch, int) and patch >= 8 else _SIDE
        elif key == "image_size" and isinstance(value, list):
            small[key] = [_SIDE] * len(value)
    return small
