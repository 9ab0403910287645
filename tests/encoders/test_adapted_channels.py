"""Encoders of other channels than three: weights adapted as timm adapts them, and folders that plain libraries load."""

import json

import pytest
import timm
import torch
from timm.models import adapt_input_conv
from transformers import AutoImageProcessor, AutoModel, ConvNextConfig, ConvNextModel, ViTConfig, ViTModel

from hf_orthossl.encoders import export_encoder, load_encoder

CHANNELS = 13
STATISTICS = [0.1 + 0.05 * channel for channel in range(CHANNELS)], [0.2] * CHANNELS


def images(channels=CHANNELS, side=32):
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet10t", {}), ("convnext_atto", {}), ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 2})],
)
def test_a_folder_loads_in_plain_timm_with_its_channels(name, arguments, tmp_path):
    encoder = load_encoder(name, image_size=32, channels=CHANNELS, **arguments).eval()
    assert not encoder.knows_normalization
    encoder.set_normalization(*STATISTICS)
    export_encoder(encoder, tmp_path)
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(plain(images()), encoder(images()))
    config = timm.data.resolve_model_data_config(plain)
    assert config["input_size"] == (CHANNELS, 32, 32)
    assert (list(config["mean"]), list(config["std"])) == STATISTICS
    again = load_encoder(str(tmp_path), pretrained=True).eval()
    assert (again.channels, list(again.mean), again.knows_normalization) == (CHANNELS, STATISTICS[0], True)
    torch.testing.assert_close(again(images()), encoder(images()))


@pytest.mark.parametrize("name", ["resnet18_cifar", "wide_resnet28_2", "linear"])
def test_own_architectures_load_in_transformers_with_their_channels(name, tmp_path):
    encoder = load_encoder(name, image_size=16, channels=CHANNELS).eval()
    encoder.set_normalization(*STATISTICS)
    export_encoder(encoder, tmp_path)
    plain = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    x = images(side=16)
    torch.testing.assert_close(plain(x).pooler_output.flatten(1), encoder(x))


@pytest.mark.parametrize("channels", [1, 2, 13])
def test_weights_of_three_channels_are_adapted_by_timms_rule(channels, tmp_path):
    export_encoder(load_encoder("resnet10t", image_size=32), tmp_path)
    ours = load_encoder(str(tmp_path), pretrained=True, channels=channels).eval()
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=channels).eval()
    torch.testing.assert_close(ours(images(channels)), theirs(images(channels)))
    same = load_encoder(str(tmp_path), pretrained=True, in_chans=channels).eval()
    torch.testing.assert_close(same(images(channels)), theirs(images(channels)))


def test_weights_of_other_channels_are_adapted_too_or_refused(tmp_path):
    many = load_encoder("resnet10t", image_size=32, channels=CHANNELS)
    export_encoder(many, tmp_path / "many")
    few = load_encoder(str(tmp_path / "many"), pretrained=True, channels=4)
    expected = adapt_input_conv(4, many.backbone.conv1[0].weight, CHANNELS)
    torch.testing.assert_close(few.backbone.conv1[0].weight, expected)
    export_encoder(load_encoder("linear", image_size=8), tmp_path / "linear")
    with pytest.raises(ValueError, match=r"channels is 4, but the weights of .* 3 channels and cannot be adapted"):
        load_encoder(str(tmp_path / "linear"), pretrained=True, channels=4)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize(
    "model",
    [
        lambda: ViTModel(ViTConfig(image_size=32, **SMALL), add_pooling_layer=False),
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])),
    ],
    ids=["vit", "convnext"],
)
def test_models_of_transformers_are_adapted_by_the_same_rule(model, channels, tmp_path):
    own = model()
    own.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), pretrained=True, image_size=32, channels=channels).eval()
    (key,) = (k for k, w in own.state_dict().items() if w.ndim == 4 and w.shape[1] == 3)
    adapted = dict(encoder.backbone.state_dict())
    torch.testing.assert_close(adapted.pop(key), adapt_input_conv(channels, own.state_dict()[key]))
    for name, weight in adapted.items():
        torch.testing.assert_close(weight, own.state_dict()[name])
    encoder.set_normalization([0.4] * channels, [0.2] * channels)
    export_encoder(encoder, tmp_path / "export")
    plain = AutoModel.from_pretrained(tmp_path / "export").eval()
    assert plain.config.num_channels == channels
    outputs = plain(images(channels))
    pooled = outputs.pooler_output if encoder.pooling == "pooler_output" else outputs.last_hidden_state[:, 0]
    torch.testing.assert_close(pooled.flatten(1), encoder(images(channels)))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "export")
    pixels = torch.randint(256, (channels, 32, 32), dtype=torch.uint8).numpy()
    made = processor(pixels, return_tensors="pt", input_data_format="channels_first")["pixel_values"][0]
    torch.testing.assert_close(made, (torch.from_numpy(pixels) / 255 - 0.4) / 0.2)


def test_channels_that_contradict_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="channels=4 contradicts in_chans=5"):
        load_encoder("resnet10t", channels=4, in_chans=5)
    with pytest.raises(ValueError, match="channels=0 must be a number of channels from 1 to 1024"):
        load_encoder("resnet10t", channels=0)
    with pytest.raises(
        ValueError, match=r"mean has 3 numbers and std 3: backbone 'resnet10t' takes images of 4 channels"
    ):
        load_encoder("resnet10t", channels=4).set_normalization([0.5] * 3, [0.5] * 3)
    export_encoder(load_encoder("resnet10t", channels=4), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.5] * 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="mean must be 4 numbers, one per channel"):
        load_encoder(str(tmp_path))
