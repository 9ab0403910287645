"""Attacks with encoders of strangers: folders and repositories that break, hang, reach out or pass for what they are
not.

Each attack holds if it ends in one line (`ValueError`, `OSError` or `TypeError` at the API, exit code 2 at the command)
or in the honest encoder, within seconds and memory, without a connection and without running code of the folder.
"""

import copy
import json
import os
import random
import shutil
import socket
import struct
from pathlib import Path

import pytest
import timm
import torch
import transformers as hf
from attacks import _limits as limits
from attacks import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from hf_orthossl import load_encoder

SECONDS, MEMORY = 60, 6 * 2**30
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
# Saves of both libraries, from which every attack starts.
HONEST = {
    "timm_resnet": lambda: timm.create_model("resnet10t", channels=[8, 8, 16, 16], num_classes=10),
    "timm_vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_classes=10
    ),
    "hf_vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**SMALL, image_size=32, patch_size=8)),
    "hf_convnext": lambda: hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])),
}
LIBRARIES = list(HONEST)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A folder of each library and architecture, as their own functions save it."""
    base = tmp_path_factory.mktemp("honest")
    for name, make in HONEST.items():
        torch.manual_seed(0)
        model = make()
        if name.startswith("timm"):
            save_for_hf(model, base / name, safe_serialization=True, data_config={"input_size": (3, 32, 32)})
        else:
            model.save_pretrained(base / name)
            hf.BitImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(base / name)
        load_encoder(base / name, pretrained=True)
    return base


def one_line(error):
    """The text of an error, which must be one line of a length that can be read."""
    text = str(error)
    assert text, f"no words: {error!r}"
    assert "\n" not in text, f"several lines: {text}"
    assert len(text) < 1000, f"{len(text)} characters"
    return text


@pytest.fixture
def stranger(honest, tmp_path, monkeypatch):
    """Makes a copy of an honest folder with code beside it; afterwards nothing was run and nobody was called."""
    ran, called = tmp_path / "ran", []

    def connect(self, address):
        called.append(address)
        raise OSError("no connections here")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    copies = iter(range(10**6))

    class Stranger:
        def folder(self, kind):
            folder = Path(shutil.copytree(honest / kind, tmp_path / f"copy{next(copies)}"))
            (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
            return folder

        def load(self, folder, pretrained=True, like=None):
            """Loads the folder; fails unless that is refused in one line or gives the weights of `like`."""
            try:
                with limits(SECONDS, MEMORY):
                    encoder = load_encoder(folder, pretrained=pretrained)
            except (ValueError, OSError, TypeError) as error:
                self.unharmed()
                return one_line(error)
            if pretrained:
                saved = load_file(honest / like / "model.safetensors")
                numbers = sorted(float(tensor.double().sum()) for tensor in saved.values())
                for key, tensor in encoder.backbone.state_dict().items():
                    total = float(tensor.double().sum())
                    close = [number for number in numbers if abs(total - number) < 1e-9 + 1e-6 * abs(total)]
                    assert close, f"{key} is not saved"
            with torch.no_grad():
                representation = encoder.eval()(torch.zeros(1, 3, encoder.image_size, encoder.image_size))
            assert representation.isfinite().all(), "not finite"
            self.unharmed()
            return None

        def unharmed(self):
            assert not ran.exists(), "code of the folder was run"
            assert not called, f"connected to {called[0]}"

    yield Stranger()
    for number in range(next(copies)):
        shutil.rmtree(tmp_path / f"copy{number}", ignore_errors=True)


# What may stand in the place of any value of a JSON file.
ODD = st.one_of(
    st.sampled_from(
        [
            *(None, True, False, 0, -1, 1, 2, 3, 7, 10**4, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**12)),
            *(0.0, -0.5, 1e-30, 1e30, 1e308, float("nan"), float("inf"), -float("inf")),
            *("", "x", "gelu", "../../etc/passwd", "/etc/passwd", "http://localhost:1/x", "somebody/else", "🙂" * 50),
            *("a" * 10**5, "evil.Evil", "hf-hub:somebody/else", "__import__('os').abort()", "\x00", "torch.nn.Linear"),
            *([], {}, [[]], [None], [1, "x"], [0], [0, 0, 0], [-1, -1], [10**9] * 3, [1] * 10**4, [1, 2], {"a": 1}),
            *({"model_type": "bert"}, {"height": 10**9, "width": 1}, {"shortest_edge": "x"}, {"height": 5}),
            json.loads("[" * 90 + "]" * 90),
        ]
    ),
    st.integers(-(10**7), 10**7),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(-2, 4096), max_size=5),
)


def places(value, path=()):
    """Paths of all values within a JSON object."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 3)):
            yield from places(value[index], (*path, index))


def replaced(value, path, new):
    """A copy of a JSON object with another value at a path."""
    changed = copy.deepcopy(value)
    target = changed
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = new
    return changed


def fuzz(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("kind", LIBRARIES)
def test_any_value_of_the_configuration_may_be_odd(kind, honest, stranger, attacks):
    config = json.loads((honest / kind / "config.json").read_text())
    if kind == "hf_vit":
        config |= {"backbone": None, "backbone_config": None, "attn_implementation": None, "quantization_config": None}
    folder = stranger.folder(kind)

    @fuzz(60)
    @given(st.sampled_from(list(places(config))), ODD, st.booleans())
    def attack(path, new, pretrained):
        with attacks.attempt(f"{kind} {path} = {str(new)[:60]!r}, pretrained={pretrained}"):
            (folder / "config.json").write_text(json.dumps(replaced(config, path, new)))
            stranger.load(folder, pretrained, kind)

    attack()


@pytest.mark.parametrize("kind", ["hf_vit", "hf_convnext"])
def test_any_value_of_the_processor_may_be_odd(kind, honest, stranger, attacks):
    config = json.loads((honest / kind / "preprocessor_config.json").read_text())
    folder = stranger.folder(kind)

    @fuzz(40)
    @given(st.sampled_from(list(places(config))), ODD)
    def attack(path, new):
        with attacks.attempt(f"{kind} processor {path} = {str(new)[:60]!r}"):
            (folder / "preprocessor_config.json").write_text(json.dumps(replaced(config, path, new)))
            stranger.load(folder, True, kind)

    attack()


@pytest.mark.parametrize("kind", ["timm_resnet", "hf_vit"])
def test_any_byte_of_the_header_may_be_wrong(kind, honest, stranger, attacks):
    content = (honest / kind / "model.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    folder = stranger.folder(kind)

    @fuzz(60)
    @given(st.integers(0, header - 1), st.integers(1, 255), st.sampled_from(["flip", "cut", "insert"]))
    def attack(place, change, how):
        changed = bytearray(content)
        if how == "flip":
            changed[place] ^= change
        elif how == "cut":
            del changed[place:]
        else:
            changed[place:place] = bytes([change])
        with attacks.attempt(f"{kind} header {how} {change} at {place}"):
            (folder / "model.safetensors").write_bytes(changed)
            stranger.load(folder, True, kind)

    attack()


@pytest.mark.parametrize("kind", ["timm_resnet", "hf_vit"])
def test_any_entry_of_the_header_may_be_odd(kind, honest, stranger, attacks):
    content = (honest / kind / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    entries = json.loads(content[8 : 8 + length])
    folder = stranger.folder(kind)

    @fuzz(40)
    @given(st.sampled_from([path for path in places(entries) if "__metadata__" not in path]), ODD)
    def attack(path, new):
        header = json.dumps(replaced(entries, path, new)).encode()
        with attacks.attempt(f"{kind} header {path} = {str(new)[:60]!r}"):
            (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
            stranger.load(folder, True, kind)

    attack()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 45000000\n"
HTML = b"<!doctype html><html><head><title>404</title></head><body>Entry not found</body></html>"


def write(content):
    def apply(path):
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    return apply


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def as_folder(path):
    path.unlink()
    path.mkdir()


def link(target):
    def apply(path):
        elsewhere = path.parent.parent / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        shutil.copy(path, elsewhere / path.name)
        path.unlink()
        path.symlink_to(elsewhere / path.name if target is None else target)

    return apply


def cut(share):
    def apply(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return apply


INSTEAD = {
    "git-lfs pointer": (write(LFS), "git lfs pull"),
    "web page": (write(HTML), "web page"),
    "nothing": (write(b""), "empty"),
    "pickle": (write(b"PK\x03\x04" + bytes(200)), "never read"),
    "gzip": (write(b"\x1f\x8b\x08" + bytes(200)), "gzip"),
    "random bytes": (write(random.Random(0).randbytes(4096)), ""),
    "zeros": (write(bytes(4096)), ""),
    "half of it": (cut(0.5), ""),
    "pipe": (fifo, "pipe"),
    "folder": (as_folder, "folder"),
    "link to another folder": (link(None), "leads out of its folder"),
    "link to nowhere": (link("/nowhere/at/all"), "does not exist"),
    "link to itself": (link("model.safetensors"), ""),
    "device": (link("/dev/zero"), ""),
}


@pytest.mark.parametrize("kind", ["timm_resnet", "hf_vit"])
def test_other_things_in_the_place_of_files(kind, honest, stranger, attacks):
    files = ["config.json", "model.safetensors", *(["preprocessor_config.json"] if kind == "hf_vit" else [])]
    for file in files:
        for what, (put, words) in INSTEAD.items():
            with attacks.attempt(f"{kind}: {what} in the place of {file}"):
                folder = stranger.folder(kind)
                put(folder / file)
                text = stranger.load(folder, True, kind)
                assert text, "was loaded"
                assert words in text, text
                assert file in text, f"{file} is not named: {text}"


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


def of_the_encoder(tensors):
    return sorted(key for key in tensors if not key.startswith(("classifier", "head", "fc")))


def drop(tensors):
    del tensors[of_the_encoder(tensors)[0]]


def rename(tensors):
    key = of_the_encoder(tensors)[0]
    tensors[f"{key}_"] = tensors.pop(key)


def only_foo(tensors):
    tensors.clear()
    tensors["foo"] = torch.ones(2)


def reshape(tensors):
    key = sorted(key for key in tensors if tensors[key].ndim == 4)[0]
    tensors[key] = tensors[key].transpose(0, 1).contiguous()


def flatten(tensors):
    for key in tensors:
        tensors[key] = tensors[key].flatten()


def poison(value):
    def apply(tensors):
        key = [key for key in of_the_encoder(tensors) if tensors[key].ndim >= 2][-1]
        tensors[key].view(-1)[0] = value

    return apply


def as_type(dtype):
    def apply(tensors):
        for key in tensors:
            tensors[key] = tensors[key].to(dtype)

    return apply


def add(name, prefix=""):
    def apply(tensors):
        tensors[prefix + name] = torch.ones(3, 3)

    return apply


WEIGHTS = {
    "one is missing": drop,
    "one has another name": rename,
    "one called foo": only_foo,
    "one has another shape": reshape,
    "all are flat": flatten,
    "a NaN": poison(float("nan")),
    "an infinity": poison(float("inf")),
    "whole numbers": as_type(torch.int8),
    "8 bits": as_type(torch.float8_e4m3fn),
    "complex numbers": as_type(torch.complex64),
    "another one": add("foo"),
}


def test_weights_that_are_not_the_network_s(stranger, attacks):
    for kind in LIBRARIES:
        for what, change in WEIGHTS.items():
            if (kind, what) == ("hf_vit", "another one"):
                change = add("foo", "vit.")
            with attacks.attempt(f"{kind}: {what}"):
                folder = stranger.folder(kind)
                tensors = load_file(folder / "model.safetensors")
                change(tensors)
                save_file(tensors, folder / "model.safetensors", {"format": "pt"})
                assert stranger.load(folder, True, kind), "was loaded"


INDEXES = {
    "parent": {"*": "../elsewhere/model.safetensors"},
    "absolute": {"*": "ELSEWHERE/model.safetensors"},
    "missing shard": {"*": "model-00001-of-00009.safetensors"},
    "number": {"*": 5},
    "nothing": {"*": None},
    "list": {"*": ["part.safetensors"]},
    "pickle": {"*": "evil.py"},
    "empty": {},
    "not an object": [1],
    "absent": None,
    "address": {"*": "http://localhost:1/model.safetensors"},
    "dot": {"*": "."},
    "link": {"*": "link.safetensors"},
    "other tensors": {"foo": "part.safetensors"},
    "half of them": "half",
    "itself": {"*": "model.safetensors.index.json"},
}


def test_indexes_that_leave_the_folder_or_lie(stranger, tmp_path, attacks):
    for what, places_of in INDEXES.items():
        with attacks.attempt(f"index: {what}"):
            folder = stranger.folder("hf_vit")
            elsewhere = tmp_path / "elsewhere"
            elsewhere.mkdir(exist_ok=True)
            shutil.copy(folder / "model.safetensors", elsewhere)
            names = list(load_file(folder / "model.safetensors"))
            (folder / "model.safetensors").rename(folder / "part.safetensors")
            (folder / "link.safetensors").symlink_to(elsewhere / "model.safetensors")
            content = {"metadata": {}, "weight_map": places_of}
            if isinstance(places_of, dict) and "*" in places_of:
                target = places_of["*"]
                target = target.replace("ELSEWHERE", str(elsewhere)) if isinstance(target, str) else target
                content["weight_map"] = dict.fromkeys(names, target)
            elif places_of == "half":
                content["weight_map"] = dict.fromkeys(names[::2], "part.safetensors")
            elif places_of is None:
                del content["weight_map"]
            (folder / "model.safetensors.index.json").write_text(json.dumps(content))
            assert stranger.load(folder, True, "hf_vit"), "was loaded"


def test_an_adapter_beside_the_weights_is_not_followed(stranger, attacks):
    for kind in ("timm_resnet", "hf_vit"):
        with attacks.attempt(f"{kind}: adapter_config.json"):
            folder = stranger.folder(kind)
            adapter = {"base_model_name_or_path": "somebody/else", "peft_type": "LORA", "task_type": None}
            (folder / "adapter_config.json").write_text(json.dumps(adapter))
            stranger.load(folder, True, kind)


def sparse(folder):
    """A header that promises 400 GB, in a file that claims to have them."""
    header = json.dumps({"conv1.weight": {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * 10**11)


def test_headers_of_any_length(stranger, attacks):
    for length in (0, 1, 2, 7, 10**6, 2**31, 2**40, 2**62, 2**64 - 1):
        with attacks.attempt(f"a header of {length} bytes"):
            folder = stranger.folder("timm_resnet")
            content = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + content[8:])
            assert stranger.load(folder, True, "timm_resnet"), "was loaded"
    with attacks.attempt("a sparse file of 400 GB"):
        folder = stranger.folder("timm_resnet")
        sparse(folder)
        assert stranger.load(folder, True, "timm_resnet"), "was loaded"


COMMANDS = {
    "evaluate": lambda folder, out: ("evaluate", folder, "--dataset", "digits", "--output_dir", out),
    "spectra": lambda folder, out: ("spectra", folder, "--output_dir", out),
    "forecast": lambda folder, out: ("forecast", "--dataset", "digits", "--encoder", folder, "--output_dir", out),
    "pretrain": lambda folder, out: (
        *("pretrain", "--dataset", "digits", "--backbone", folder, "--pretrained", "true", "--max_steps", "1"),
        *("--output_dir", out),
    ),
    "publish": lambda folder, out: ("publish", folder, "--repo_id", "somebody/else", "--dry_run"),
}


def to_json(change):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(change(config)))

    return apply


def on(file, put):
    return lambda folder: put(folder / file)


FOLDERS = {
    "git-lfs pointer": on("model.safetensors", write(LFS)),
    "web page": on("config.json", write(HTML)),
    "empty configuration": on("config.json", write(b"")),
    "empty weights": on("model.safetensors", write(b"")),
    "half of the weights": on("model.safetensors", cut(0.5)),
    "pipe for weights": on("model.safetensors", fifo),
    "pipe for a configuration": on("config.json", fifo),
    "link out of the folder": on("model.safetensors", link(None)),
    "a list": on("config.json", write(b"[]")),
    "deep": on("config.json", write(TEXTS["deep"].encode())),
    "a billion layers": to_json(lambda config: config | {"model_args": {"layers": [10**9] * 4}}),
    "6000 pixels": to_json(lambda config: config | {"pretrained_cfg": {"input_size": [3, 6000, 6000]}}),
    "an unknown architecture": to_json(lambda config: config | {"architecture": "../x"}),
    "a word for the mean": to_json(lambda config: config | {"pretrained_cfg": {"mean": "x"}}),
    "weights of 400 GB": sparse,
}
# What is no fault for publishing, which reads no architecture.
NOT_PUBLISHED = {
    "a billion layers",
    "6000 pixels",
    "an unknown architecture",
    "a word for the mean",
    "weights of 400 GB",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_in_one_line(name, stranger, tmp_path, attacks):
    for what, change in FOLDERS.items():
        if name == "publish" and what in NOT_PUBLISHED:
            continue
        with attacks.attempt(f"{name}: {what}"):
            folder = stranger.folder("timm_resnet")
            if name == "publish":
                record = {"backbone": "resnet10t", "num_features": 16, "image_size": 32, "mean": [0.5] * 3}
                record |= {"std": [0.5] * 3, "pooling": "pooler_output", "method": "simclr"}
                to_json(lambda config, record=record: config | {"orthossl": record})(folder)
            change(folder)
            outcome = command(*COMMANDS[name](folder, tmp_path / "out"), seconds=SECONDS, memory=MEMORY)
            outcome.refused(str(folder))
            stranger.unharmed()
