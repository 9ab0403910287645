"""Configurations of strangers: any value may be odd, name something elsewhere, or ask for a network without end.

Each attack holds if it ends in one line (`ValueError`, `OSError` or `TypeError`) or in the honest encoder, within
seconds and memory, without a connection and without running code of the folder.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stranger_folders import HONEST, ODD, fuzz, places, replaced


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        *((kind, "config.json") for kind in HONEST),
        *((kind, "preprocessor_config.json") for kind in HONEST if kind.startswith("hf")),
    ],
)
def test_any_value_may_be_odd(kind, file, honest, stranger, attacks):
    config = json.loads((honest / kind / file).read_text())
    if (kind, file) == ("hf_vit", "config.json"):
        config |= {"backbone": None, "backbone_config": None, "attn_implementation": None, "quantization_config": None}
    folder = stranger.folder(kind)

    @fuzz(60)
    @given(st.sampled_from(list(places(config))), ODD, st.booleans())
    def attack(path, new, pretrained):
        with attacks.attempt(f"{kind} {file} {path} = {str(new)[:60]!r}, pretrained={pretrained}"):
            (folder / file).write_text(json.dumps(replaced(config, path, new)))
            stranger.load(folder, pretrained, kind)

    attack()


TEXTS = {
    "a list": "[]",
    "a number": "5",
    "null": "null",
    "half an object": '{"architecture": "resnet10t"',
    "deep": '{"a": ' + "[" * 10**5 + "]" * 10**5 + "}",
    "a huge number": '{"architecture": "resnet10t", "num_classes": ' + "9" * 5000 + "}",
    "NaN": '{"architecture": "resnet10t", "num_classes": NaN}',
    "twice": '{"architecture": "resnet10t", "architecture": "resnet18"}',
    "UTF-16": '{"architecture": "resnet10t"}'.encode("utf-16"),
    "Latin-1": b'{"architecture": "r\xe9snet"}',
    "30 MB": '{"architecture": "resnet10t", "x": "' + "a" * 30_000_000 + '"}',
}


def test_configurations_that_are_not_json_objects(stranger, attacks):
    for kind in ("timm_resnet", "hf_vit"):
        for what, text in TEXTS.items():
            with attacks.attempt(f"{kind}: config.json is {what}"):
                folder = stranger.folder(kind)
                (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
                assert stranger.load(folder, True, kind), "was loaded"


# Changes of a configuration, and whether the folder may load nevertheless, as what it is.
CHANGES = {
    "timm_resnet": [
        ({"pretrained_cfg": {"input_size": [3, 6000, 6000]}}, False),
        ({"pretrained_cfg": {"input_size": [3, 0, 0]}}, False),
        ({"pretrained_cfg": {"mean": ["a", "b", "c"]}}, False),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, False),
        ({"pretrained_cfg": {"std": [1e-300] * 3}}, False),
        ({"pretrained_cfg": {"interpolation": "magic"}}, False),
        ({"pretrained_cfg": {"classifier": "layer4.0.conv2", "num_classes": 5}}, True),
        ({"pretrained_cfg": {"hf_hub_id": "somebody/else", "source": "hf-hub"}}, True),
        ({"pretrained_cfg": {"url": "http://localhost:1/x.pth", "file": "/etc/passwd"}}, True),
        ({"pretrained_cfg": {"custom_load": True}}, True),
        ({"architecture": "hf-hub:somebody/else"}, False),
        ({"architecture": "../../x"}, False),
        ({"architecture": ["resnet10t"]}, False),
        ({"model_args": {"pretrained_strict": False}}, False),
        ({"model_args": {"pretrained_filter_fn": "x"}}, False),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, False),
        ({"model_args": {"pretrained_cfg": {"hf_hub_id": "somebody/else"}}}, False),
        ({"model_args": {"layers": [10**9, 1, 1, 1]}}, False),
        ({"model_args": {"layers": [10**4, 1, 1, 1]}}, False),
        ({"model_args": {"channels": [10**6, 8, 16, 16]}}, False),
        ({"model_args": {"base_width": 10**6}}, False),
        ({"model_args": {"act_layer": "evil.Evil"}}, False),
        ({"model_args": {"in_chans": 10**6}}, False),
        ({"model_args": ["a"]}, False),
        ({"auto_map": {"AutoModel": "evil.Evil"}}, True),
    ],
    "timm_vit": [
        ({"model_args": {"depth": 10**9}}, False),
        ({"model_args": {"depth": 5000}}, False),
        ({"model_args": {"patch_size": 1, "img_size": 2048}}, False),
        ({"model_args": {"patch_size": 0}}, False),
        ({"model_args": {"embed_dim": 10**6}}, False),
        ({"model_args": {"num_heads": 7}}, False),
        ({"model_args": {"img_size": 10**6}}, False),
        ({"model_args": {"img_size": [32, 64]}}, False),
    ],
    "hf_vit": [
        ({"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}}, True),
        ({"auto_map": {"AutoModel": "somebody/else--evil.Evil"}}, True),
        ({"_name_or_path": "somebody/else"}, True),
        ({"transformers_weights": "../elsewhere/model.safetensors"}, True),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, True),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, True),
        ({"attn_implementation": "kernels-community/flash-attn"}, True),
        ({"_attn_implementation": "somebody/else:evil"}, True),
        ({"attn_implementation": "flash_attention_2"}, True),
        ({"dtype": "no_such_type"}, True),
        ({"torch_dtype": "float8_e4m3fn"}, True),
        ({"torch_dtype": "nn"}, True),
        ({"backbone": "somebody/else", "use_pretrained_backbone": True}, True),
        ({"backbone": "resnet18", "use_timm_backbone": True}, True),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:somebody/else"}}, True),
        ({"fusion_config": {"patch_embeddings": True}}, True),
        ({"per_layer_config": {"0": {"hidden_size": 5}}}, True),
        ({"model_type": "timm_backbone", "backbone": "hf-hub:somebody/else", "use_pretrained_backbone": True}, False),
        ({"model_type": "timm_wrapper", "architecture": "somebody/else"}, False),
        ({"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}}, False),
        ({"model_type": ["vit"]}, False),
        ({"model_type": "bert"}, False),
        ({"model_type": "detr", "backbone": "resnet50", "use_pretrained_backbone": True}, False),
        ({"model_type": "higgs_audio_v2_tokenizer"}, False),
        ({"num_hidden_layers": 10**9}, False),
        ({"num_hidden_layers": 5000}, False),
        ({"num_hidden_layers": 3}, False),
        ({"num_hidden_layers": 1}, False),
        ({"hidden_size": 10**6}, False),
        ({"intermediate_size": 10**6}, False),
        ({"image_size": 6000}, False),
        ({"image_size": 2048, "patch_size": 1}, False),
        ({"image_size": [32, 64]}, False),
        ({"patch_size": 0}, False),
        ({"num_attention_heads": 0}, False),
        ({"num_attention_heads": 3}, False),
        ({"num_channels": 10**6}, False),
        ({"hidden_act": "evil"}, False),
        ({"hidden_act": "../x"}, False),
        ({"return_dict": False}, True),
        ({"output_hidden_states": True}, True),
        ({"num_labels": 10**9}, True),
        ({"id2label": {"x": 1}}, True),
    ],
}


@pytest.mark.parametrize("pretrained", [True, False])
def test_configurations_that_reach_too_far(pretrained, stranger, attacks):
    for kind, changes in CHANGES.items():
        for change, may_load in changes:
            with attacks.attempt(f"{kind} {str(change)[:100]}, pretrained={pretrained}"):
                folder = stranger.folder(kind)
                config = json.loads((folder / "config.json").read_text())
                for key, value in change.items():
                    old = config.get(key)
                    config[key] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
                (folder / "config.json").write_text(json.dumps(config))
                text = stranger.load(folder, pretrained, kind)
                assert text or may_load or not pretrained, "was loaded"


# Configurations written from nothing, of networks that would take hours or all memory.
ENDLESS = [
    {"model_type": "levit", "image_size": 2048, "patch_size": 1},
    {"model_type": "levit", "image_size": 2048, "patch_size": 1, "depths": [10**5] * 3},
    {"model_type": "swin", "image_size": 2048, "patch_size": 1, "window_size": 2048},
    {"model_type": "swin", "depths": [1] * 10**4},
    {"model_type": "beit", "image_size": 2048, "patch_size": 1, "use_relative_position_bias": True},
    {"model_type": "vit_mae", "image_size": 2048, "patch_size": 1, "hidden_size": 8, "num_attention_heads": 1},
    {"model_type": "convnext", "depths": [10**6] * 4},
    {"model_type": "resnet", "hidden_sizes": [10**6] * 4},
    {"model_type": "dinov2", "num_hidden_layers": 10**6},
    {"model_type": "mobilenet_v2", "depth_multiplier": 1e9},
    {"model_type": "efficientnet", "depth_coefficient": 1e9},
    {"model_type": "efficientnet", "width_coefficient": 1e6},
    {"architecture": "levit_128s", "model_args": {"img_size": 2048, "stride": 1}},
    {
        "architecture": "swin_tiny_patch4_window7_224",
        "model_args": {"img_size": 2048, "patch_size": 1, "window_size": 2048},
    },
    {"architecture": "swin_tiny_patch4_window7_224", "model_args": {"depths": [10**6] * 4}},
    {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": 2048, "patch_size": 2}},
    {"architecture": "efficientnet_b0", "model_args": {"round_chs_fn": "x", "stem_size": 10**6}},
    {"architecture": "resnet18", "model_args": {"stem_width": 10**6}},
    {"architecture": "resnet18", "model_args": {"output_stride": 1, "replace_stride_with_dilation": [True] * 3}},
    {"architecture": "densenet121", "model_args": {"growth_rate": 10**6}},
    {"architecture": "densenet121", "model_args": {"block_config": [10**6] * 4}},
    {"architecture": "vgg11", "model_args": {"mlp_ratio": 10**6}},
    {"architecture": "mixer_s32_224", "model_args": {"num_blocks": 10**6}},
    {"architecture": "xcit_nano_12_p16_224", "model_args": {"depth": 10**6}},
    {"architecture": "linear", "model_args": {"num_features": 10**6, "img_size": 2048}},
    {"architecture": "wide_resnet28_2", "model_args": {"width": 10**6}},
]


def test_networks_without_end(stranger, tmp_path, attacks):
    for number, config in enumerate(ENDLESS):
        with attacks.attempt(f"without end: {config}"):
            folder = tmp_path / f"endless{number}"
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
            stranger.load(folder, pretrained=False)
