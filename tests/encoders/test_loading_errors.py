"""What cannot be loaded is refused in one line that says what to do."""

import json

import pytest
import transformers as hf
from torch import nn

from hf_orthossl.encoders import export_encoder, load_encoder


@pytest.fixture
def vit_folder(tmp_path):
    config = hf.ViTConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    config.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "words"),
    [
        ("resnet81", {}, ValueError, "unknown backbone 'resnet81'"),
        ("resnet81", {}, ValueError, "did you mean 'resnet"),
        ("zzzzzzzz", {}, ValueError, "list the names of timm with timm.list_models()"),
        ("resnet18.a1_in1l", {}, ValueError, "did you mean 'resnet18.a1_in1k'"),
        ("resnet18_cifra", {}, ValueError, "did you mean 'resnet18_cifar'"),
        ("./absent", {}, FileNotFoundError, "'./absent': there is no such folder"),
        ("local-dir:absent", {}, FileNotFoundError, "there is no such folder"),
        ("resnet18", {"image_size": 0}, ValueError, "image_size=0 must be"),
        ("resnet18", {"image_size": 32, "img_size": 64}, ValueError, "image_size=32 contradicts img_size=64"),
        ("resnet18", {"no_such_argument": 1}, ValueError, "no_such_argument"),
        ("inception_v3", {"image_size": 32}, ValueError, "'inception_v3' fails on images of 32 px"),
        ("resnet18_cifar", {"pretrained": True}, ValueError, "no pretrained weights: pass pretrained=False"),
    ],
)
def test_unusable_requests_are_one_clear_line(name, kwargs, error, words):
    with pytest.raises(error) as raised:
        load_encoder(name, **kwargs)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        (5, {}, "name must be a timm name such as 'resnet18', a Hub id or a folder, got 5"),
        (None, {}, "a folder, got None"),
        (nn.Linear, {}, "a folder, got <class 'torch.nn.modules.linear.Linear'>"),
        (nn.Linear(3, 2), {}, "a folder, got Linear(in_features=3"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU()), {}, "a folder, got an object of class Sequential"),
        ("resnet18", {"pretrained": "yes"}, "pretrained must be True or False, got 'yes'"),
    ],
)
def test_wrong_types_are_one_clear_line(name, kwargs, words):
    with pytest.raises(TypeError) as raised:
        load_encoder(name, **kwargs)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("pretrained", [False, True])
def test_absent_hub_repository_is_one_clear_line(pretrained, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match="'nobody/nothing' is not a local folder and cannot be read from the Hub"
    ) as raised:
        load_encoder("nobody/nothing", pretrained=pretrained)
    assert "\n" not in str(raised.value)


def test_pickled_weights_are_refused(vit_folder, tmp_path):
    timm_folder = export_encoder(load_encoder("resnet18_cifar"), tmp_path / "timm")
    for folder in (vit_folder, timm_folder):
        (folder / "model.safetensors").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=r"no model\.safetensors"):
            load_encoder(str(folder), pretrained=True)
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
        with pytest.raises(ValueError, match=r"only pickled weights \(pytorch_model\.bin\)"):
            load_encoder(str(folder), pretrained=True)
        assert load_encoder(str(folder)).num_features > 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "neither a timm architecture nor a transformers model_type"),
        ({"architecture": "resnet81"}, "unknown architecture 'resnet81': did you mean 'resnet"),
        ({"model_type": "mine", "auto_map": {"AutoModel": "code.Mine"}}, "code from its folder is never run"),
        ({"model_type": "bert"}, "not a vision model"),
        ("{", "not JSON"),
    ],
)
def test_unusable_folders_are_one_clear_line(config, words, tmp_path):
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ValueError, match=words) as raised:
        load_encoder(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_unknown_configuration_entry_suggests_the_nearest(vit_folder):
    folder = str(vit_folder)
    with pytest.raises(ValueError, match="no argument 'patchsize': did you mean 'patch_size'"):
        load_encoder(folder, patchsize=4)
    assert load_encoder(folder, patch_size=4).backbone.config.patch_size == 4


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_weights_of_another_network_are_refused(library, vit_folder, tmp_path):
    folder = export_encoder(load_encoder("resnet18" if library == "timm" else str(vit_folder)), tmp_path / "encoder")
    other = export_encoder(load_encoder("wide_resnet28_2"), tmp_path / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"config\.json and weights belong to different networks") as raised:
        load_encoder(str(folder), pretrained=True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"pretrained_strict": False},
        {"pretrained_cfg_overlay": {"url": "http://localhost/x"}},
        {"checkpoint_path": "elsewhere.safetensors"},
        {"features_only": True},
        {"act_layer": "../../x"},
        {"block_args": {"a": 1}},
    ],
    ids=lambda entry: next(iter(entry)),
)
def test_a_configuration_cannot_say_how_its_weights_are_loaded(entry, tmp_path):
    export_encoder(load_encoder("resnet10t"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["model_args"] = entry
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=f"model_args entry {next(iter(entry))}") as raised:
        load_encoder(tmp_path, pretrained=True)
    assert "\n" not in str(raised.value)


def test_weights_of_the_folder_are_loaded_whatever_source_its_configuration_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = load_encoder("resnet10t")
    export_encoder(encoder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    cfg = config.setdefault("pretrained_cfg", {})
    cfg |= {"hf_hub_id": "somebody/else", "url": "http://localhost/x", "file": "/etc/passwd", "source": "hf-hub"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = load_encoder(tmp_path, pretrained=True)
    assert all((a == b).all() for a, b in zip(encoder.state_dict().values(), loaded.state_dict().values(), strict=True))
