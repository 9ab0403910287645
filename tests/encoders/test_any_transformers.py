"""Models of transformers of every kind: towers, odd outputs, sizes, missing poolers, and what is refused and why."""

import json
import re

import pytest
import torch
import transformers as hf
from torch import nn

from hf_orthossl.encoders import export_encoder, load_encoder
from hf_orthossl.encoders.budget import image_cost
from hf_orthossl.encoders.position_tables import resample_table

ISOTROPIC = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION = {**ISOTROPIC, "image_size": 32, "patch_size": 8}
TEXT = {**ISOTROPIC, "vocab_size": 99}
TWO_TOWERS = {
    "clip": hf.CLIPConfig,
    "siglip": hf.SiglipConfig,
    "blip": hf.BlipConfig,
    "altclip": hf.AltCLIPConfig,
    "clipseg": hf.CLIPSegConfig,
    "metaclip_2": hf.MetaClip2Config,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomized(model):
    """What starts at zero would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def saved(model, folder):
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", TWO_TOWERS)
def test_vision_tower_of_a_whole_checkpoint_and_of_one_alone(kind, tmp_path):
    config = TWO_TOWERS[kind](vision_config=VISION, text_config=TEXT, projection_dim=16)
    whole = randomized(hf.AutoModel.from_config(config))
    images = torch.randn(2, 3, 32, 32)
    expected = whole.vision_model(pixel_values=images).pooler_output
    encoder = load_encoder(saved(whole, tmp_path / "whole"), pretrained=True).eval()
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)
    assert encoder.stage_names[-2].endswith("encoder.layers.1")
    assert not [key for key, _ in encoder.named_parameters() if "text" in key or "logit" in key]
    folder = export_encoder(encoder, tmp_path / "export")
    exported = json.loads((folder / "config.json").read_text())
    assert exported["model_type"] == config.vision_config.model_type
    # A stranger loads it by the class that its config.json names.
    plain = getattr(hf, exported["architectures"][0]).from_pretrained(folder).eval()
    torch.testing.assert_close(plain(pixel_values=images).pooler_output, expected, atol=1e-5, rtol=1e-5)
    alone = load_encoder(folder, pretrained=True).eval()
    torch.testing.assert_close(alone(images), expected, atol=1e-5, rtol=1e-5)
    untrained = load_encoder(str(tmp_path / "whole")).eval()
    assert not torch.allclose(untrained(images), expected)


def test_tower_of_sam_stands_beside_other_parts(tmp_path):
    vision = {**VISION, "output_channels": 16, "mlp_dim": 64, "window_size": 2, "global_attn_indexes": [1]}
    whole = randomized(hf.SamModel(hf.SamConfig(vision_config=vision)))
    images = torch.randn(2, 3, 32, 32)
    encoder = load_encoder(saved(whole, tmp_path), pretrained=True).eval()
    expected = whole.vision_encoder(images).last_hidden_state
    torch.testing.assert_close(encoder(images), expected.mean((2, 3)), atol=1e-5, rtol=1e-5)
    # Blocks have their channels last.
    assert encoder.stages(images)["vision_encoder.layers.1"].shape == (2, 32, 4, 4)


def test_weights_of_another_tower_are_refused(tmp_path):
    config = hf.CLIPConfig(vision_config=VISION, text_config=TEXT)
    saved(hf.CLIPModel(config), tmp_path)
    wider = json.loads((tmp_path / "config.json").read_text())
    wider["vision_config"]["intermediate_size"] = 48
    (tmp_path / "config.json").write_text(json.dumps(wider))
    with pytest.raises(ValueError, match=r"config\.json and weights belong to different networks"):
        load_encoder(str(tmp_path), pretrained=True)


CVT = {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}
HGNET = {
    "stem_channels": [3, 4, 8],
    "stage_in_channels": [8, 8, 16, 16],
    "stage_mid_channels": [4, 4, 4, 4],
    "stage_out_channels": [8, 16, 16, 32],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [1, 1, 1, 1],
}
OUTPUTS = {
    "cvt": (hf.CvtConfig(**CVT), lambda out: out.cls_token_value[:, 0], [8, 16, 32]),
    "hgnet_v2": (hf.HGNetV2Config(**HGNET), lambda out: out.feature_maps[-1].mean((2, 3)), [8, 16, 16, 32]),
    "radio": (hf.RadioConfig(**VISION), lambda out: out.summary, [32, 32]),
    "data2vec": (hf.Data2VecVisionConfig(**VISION), lambda out: out.last_hidden_state[:, 0], [32, 32]),
    "glpn": (
        hf.GLPNConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1] * 4),
        lambda out: out.last_hidden_state.mean((2, 3)),
        [8, 8, 16, 16],
    ),
    "pvt_v2": (
        hf.PvtV2Config(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1] * 4, image_size=64),
        lambda out: out.last_hidden_state.mean((2, 3)),
        [8, 8, 16, 16],
    ),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_representation_and_stages_of_odd_outputs(kind, tmp_path):
    config, representation, channels = OUTPUTS[kind]
    config.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), representation(encoder.backbone(images)), atol=1e-5, rtol=1e-5)
        stages = list(encoder.stages(images).values())[:-1]
    assert [stage.shape[1 if stage.ndim == 4 else 2] for stage in stages] == channels
    assert {len(stage) for stage in stages} == {2}


def test_images_that_a_model_puts_in_one_row_are_separated(tmp_path):
    hf.PixtralVisionConfig(**VISION, head_dim=16).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path)).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        together, stages = encoder(images), encoder.stages(images)
        alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert stages["transformer.layers.0"].shape == (3, 16, 32)


def test_what_is_computed_once_for_all_models_is_real(tmp_path):
    """transformers keeps BEiT's index of relative positions for all models, also for one planned without numbers."""
    config = hf.BeitConfig(**{**VISION, "image_size": 40}, use_relative_position_bias=True)
    model = randomized(hf.BeitModel(config))
    images = torch.randn(2, 3, 40, 40)
    encoder = load_encoder(saved(model, tmp_path), pretrained=True).eval()
    for _ in range(2):
        index = model.layers[0].relative_position_bias.generate_relative_position_index((5, 5))
        assert index.device.type == "cpu"
        torch.testing.assert_close(encoder(images), model(images).pooler_output, atol=1e-5, rtol=1e-5)
        image_cost(encoder.backbone, 40)


HIERA = {
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "num_query_pool": 1,
    "masked_unit_attention": [True, False],
}
RESIZED = {
    "hiera": hf.HieraConfig(image_size=[32, 32], **HIERA),  # a list of sides
    "beit": hf.BeitConfig(**VISION, use_relative_position_bias=True, use_absolute_position_embeddings=True),
    "data2vec": hf.Data2VecVisionConfig(**VISION, use_shared_relative_position_bias=True),
    "pvt": hf.PvtConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1] * 4, image_size=32),
    "sam": hf.SamVisionConfig(**VISION, output_channels=16, mlp_dim=64, window_size=2, global_attn_indexes=[1]),
    "yolos": hf.YolosConfig(**{**VISION, "image_size": [32, 32]}, num_detection_tokens=3),
    "clip": hf.CLIPVisionConfig(**VISION),
}


@pytest.mark.parametrize("kind", RESIZED)
def test_pretrained_weights_at_another_size(kind, tmp_path):
    config = RESIZED[kind]
    model = randomized(hf.AutoModel.from_config(config))
    folder = saved(model, tmp_path / "own")
    encoder = load_encoder(folder, pretrained=True, image_size=64).eval()
    assert encoder.image_size == 64
    images = torch.randn(2, 3, 64, 64)
    assert encoder(images).shape == (2, encoder.num_features)
    # All that is no table of positions is the same.
    own, others = encoder.backbone.state_dict(), model.state_dict()
    assert all(
        torch.equal(own[k], others[k])
        for k in own
        if k in others and own[k].shape == others[k].shape and own[k].is_floating_point()
    )
    again = load_encoder(export_encoder(encoder, tmp_path / "export"), pretrained=True).eval()
    assert again.image_size == 64
    torch.testing.assert_close(again(images), encoder(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "shape", "wanted"),
    [
        ("a.relative_position_bias_table", (7 * 7 + 3, 2), (15 * 15 + 3, 2)),
        ("a.rel_pos_h", (7, 4), (15, 4)),
        ("a.attention_biases", (2, 16), (2, 64)),
        ("a.pos_embed", (1, 4, 4, 8), (1, 8, 8, 8)),
        ("a.position_embeddings", (1, 4 * 4 + 5, 8), (1, 8 * 8 + 5, 8)),
        ("a.mid_position_embeddings", (2, 1, 1 + 4 * 4, 8), (2, 1, 1 + 8 * 8, 8)),
    ],
)
def test_tables_of_positions(key, shape, wanted):
    """A constant table stays constant, and one that is resampled to its own shape is the same."""
    wanted = torch.Size(wanted)
    table = resample_table(key, torch.full(shape, 3.0), wanted)
    torch.testing.assert_close(table, torch.full(wanted, 3.0))
    random = torch.randn(shape)
    torch.testing.assert_close(resample_table(key, random, random.shape), random)


def test_tokens_without_a_position_keep_their_values():
    weight = torch.randn(1, 2 + 9 + 3, 4)
    table = resample_table("position_embeddings", weight, torch.Size((1, 2 + 36 + 3, 4)), last=3)
    assert torch.equal(table[:, :2], weight[:, :2])
    assert torch.equal(table[:, -3:], weight[:, -3:])
    assert resample_table("a.head.weight", weight, torch.Size((1, 3, 4))) is None
    assert resample_table("position_embeddings", weight[:, :13], torch.Size((1, 12, 4))) is None


def test_pooler_that_the_weights_lack_is_left_out(tmp_path):
    masked = randomized(hf.BeitForMaskedImageModeling(hf.BeitConfig(**VISION)))
    encoder = load_encoder(saved(masked, tmp_path), pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = masked.beit(images).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


def test_parameters_that_nothing_depends_on_are_frozen_and_named(tmp_path):
    hf.Dinov2Config(**ISOTROPIC, image_size=32, patch_size=8).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert encoder.unused_parameters == ["embeddings.mask_token"]
    encoder(torch.randn(2, 3, 32, 32)).sum().backward()
    assert [key for key, p in encoder.backbone.named_parameters() if p.grad is None] == encoder.unused_parameters
    assert [key for key, p in encoder.backbone.named_parameters() if not p.requires_grad] == encoder.unused_parameters


def test_a_border_that_no_patch_covers_is_refused(tmp_path):
    hf.ViTConfig(**VISION).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"never sees the last 4 px .*: pass image_size=32 or 40"):
        load_encoder(str(tmp_path), image_size=36)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (hf.DetrConfig(), "finds objects with a decoder of queries (num_queries in its config.json)"),
        (hf.VideoMAEConfig(), "takes videos of several frames (num_frames in its config.json)"),
        (hf.GlmImageVisionConfig(), "takes grid_thw beside the images"),
        (hf.SegGptConfig(), "an image together with a prompt"),
        (hf.BertConfig(), "not a vision model"),
        (hf.CLIPTextConfig(), "not a vision model"),
        (
            hf.MgpstrConfig(**{**VISION, "image_size": [32, 128], "patch_size": [4, 4]}),
            "has no features of the image, but logits",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_is_no_encoder_is_refused_by_its_own_requirement(config, words, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        load_encoder(str(tmp_path), image_size=32)
    assert "another image_size" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_error_names_a_size_that_works(tmp_path):
    config = hf.SwinConfig(embed_dim=16, depths=[1] * 4, num_heads=[1] * 4, window_size=7, image_size=224)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"fails on images of 64 px .*: .* pass image_size=224"):
        load_encoder(str(tmp_path), image_size=64)


def test_a_size_of_two_sides_can_be_made_square(tmp_path):
    hf.YolosConfig(**{**VISION, "image_size": [32, 64]}, num_detection_tokens=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="images of 32×64: pass image_size for square ones"):
        load_encoder(str(tmp_path))
    encoder = load_encoder(str(tmp_path), image_size=48)
    assert isinstance(encoder.backbone.config.image_size, list)
    assert encoder(torch.randn(2, 3, 48, 48)).shape == (2, 32)
    assert not isinstance(encoder.backbone.pooler, nn.Module)


def test_an_entry_of_the_blocks_is_no_number_of_channels(tmp_path):
    """EfficientNet's `in_channels` lists those of its blocks, beside `num_channels`."""
    config = hf.EfficientNetConfig(image_size=64, width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320)
    model = hf.EfficientNetModel(config).eval()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder(images), model(images).pooler_output)
    assert load_encoder(str(tmp_path), in_chans=5).channels == 5
