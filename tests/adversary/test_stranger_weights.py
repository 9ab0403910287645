"""Weights of strangers: headers with any byte or entry wrong, tensors that are not the network's, indexes that lie.

Each attack holds if it ends in one line or in the honest encoder, as in `test_stranger_configs.py`.
"""

import json
import shutil
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from stranger_folders import HONEST, ODD, fuzz, places, replaced, sparse


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
    for kind in HONEST:
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
