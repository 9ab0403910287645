"""What a folder of someone else may not do: each is refused in one line, before a network is built from it."""

import json
import os

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from hf_orthossl.encoders import budget, export_encoder, load_encoder
from hf_orthossl.encoders.budget import image_cost
from hf_orthossl.encoders.weights import require_finite

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(params=["timm", "transformers"])
def folder(request, tmp_path):
    if request.param == "timm":
        return export_encoder(load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 16]), tmp_path / "encoder")
    hf.ViTForImageClassification(hf.ViTConfig(**SMALL, image_size=32, patch_size=8)).save_pretrained(
        tmp_path / "encoder"
    )
    return tmp_path / "encoder"


def refusal(folder, pretrained=True, **kwargs):
    with pytest.raises((ValueError, OSError)) as raised:
        load_encoder(folder, pretrained=pretrained, **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer, not the file itself: run git lfs pull"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"", "is empty"),
        (b"PK\x03\x04....", "never read"),
    ],
)
def test_other_files_are_named_as_what_they_are(name, content, words, folder):
    (folder / name).write_bytes(content)
    text = refusal(folder)
    assert words in text
    assert name in text


def test_pipes_and_links_out_of_the_folder_are_not_opened(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder.parent / "model.safetensors")
    weights.symlink_to(folder.parent / "model.safetensors")
    assert "leads out of its folder" in refusal(folder)
    weights.unlink()
    os.mkfifo(weights)
    assert "is a pipe" in refusal(folder)


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_weights_must_be_those_of_the_network(folder):
    tensors = load_file(folder / "model.safetensors")
    names = [name for name, tensor in tensors.items() if tensor.ndim > 1 and "classifier" not in name]
    change_weights(folder, lambda tensors: tensors.update({"vit.foo": torch.ones(3)}))
    assert "hold 1 tensors that it does not have, among them 'vit.foo'" in refusal(folder)
    change_weights(folder, lambda tensors: tensors.pop("vit.foo"))
    change_weights(folder, lambda tensors: tensors[names[0]].fill_(float("nan")))
    assert "1 weights that are not finite" in refusal(folder)
    # As many numbers as before, so that their count does not give it away.
    change_weights(folder, lambda tensors: tensors.update(foo=tensors.pop(names[0])))
    assert "lack 1 of its tensors" in refusal(folder)


def test_a_configuration_promises_no_more_than_the_weights_hold(folder):
    config = json.loads((folder / "config.json").read_text())
    if "architecture" in config:
        config["model_args"]["channels"] = [8, 8, 16, 512]
    else:
        config["num_hidden_layers"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json and weights belong to different networks" in refusal(folder)
    assert load_encoder(folder).num_features in (32, 512)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "resnet10t", "pretrained_cfg": {"input_size": [3, 6000, 6000]}}, "up to 2048"),
        ({"architecture": "resnet18", "model_args": {"layers": [10**9, 1, 1, 1]}}, "beyond 1,048,576"),
        ({"architecture": "resnet10t", "model_args": {"channels": [10**6] * 4}}, "the limit is 5,000,000,000"),
        ({"model_type": "vit", "image_size": 1024, "patch_size": 1}, "for one activation of one image"),
        ({"model_type": "vit", "hidden_act": "../x"}, "is a path or an address"),
        ({"model_type": "vit", "backbone": "somebody/else"}, "read from elsewhere"),
        ({"model_type": "vit", "quantization_config": {"bits": 4}}, "read from elsewhere or needs other code"),
        ({"model_type": "vit", "num_attention_heads": 0}, "cannot be built"),
    ],
)
def test_limits_hold_before_anything_is_allocated(config, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert words in refusal(tmp_path, pretrained=False)


def test_modules_and_time_are_limited(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **SMALL}))
    with monkeypatch.context() as patch:
        patch.setattr(budget, "MAX_MODULES", 5)
        assert "more than 5 modules" in refusal(tmp_path, pretrained=False)
    monkeypatch.setattr(budget, "SECONDS", 0.001)
    assert "was not built within" in refusal(tmp_path, pretrained=False)


def test_a_shard_of_another_folder_is_not_read(tmp_path):
    hf.ViTModel(hf.ViTConfig(**SMALL, image_size=32, patch_size=8)).save_pretrained(
        tmp_path / "a", max_shard_size="20kB"
    )
    index = tmp_path / "a" / "model.safetensors.index.json"
    whole = load_encoder(tmp_path / "a", pretrained=True)
    assert whole.num_features == 32
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "../b/model.safetensors")
    index.write_text(json.dumps(content))
    assert "names '../b/model.safetensors', which is no safetensors file of this folder" in refusal(tmp_path / "a")


def test_image_cost_counts_what_a_convolution_takes():
    flop, largest = image_cost(torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), 16)
    assert flop == 2 * 8 * 3 * 3 * 3 * 16 * 16
    assert largest == 8 * 16 * 16


@pytest.mark.parametrize(
    "content", ["5", '{"image_mean": "x"}', '{"image_std": [0, 1, 1]}', '{"size": "x"}', '{"resample": 99}']
)
def test_an_image_processor_must_be_usable(content, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **SMALL}))
    (tmp_path / "preprocessor_config.json").write_text(content)
    assert "preprocessor_config.json" in refusal(tmp_path, pretrained=False)


def test_bounds_may_be_infinite_and_weights_may_not():
    network = torch.nn.Linear(2, 2)
    network.register_buffer("input_min", torch.tensor(-torch.inf))
    require_finite("own", network)
    network.register_buffer("running_mean", torch.full((2,), torch.inf))
    with pytest.raises(ValueError, match=r"1 weights that are not finite, among them 'running_mean'"):
        require_finite("own", network)
