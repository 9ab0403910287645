"""`orthossl convert`: checkpoints as other projects write them, and files that are refused."""

import argparse
import zipfile

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from hf_orthossl import load_encoder
from hf_orthossl.cli import main

NARROW = ["--backbone", "resnet10t", "--backbone_config", "channels=[8,8,16,16]", "--image_size", "32"]


def network():
    torch.manual_seed(7)
    return timm.create_model("resnet10t", channels=[8, 8, 16, 16], num_classes=0)


@pytest.fixture(scope="module")
def state():
    module = network()
    with torch.no_grad():
        for buffer in module.buffers():
            buffer.add_(torch.rand(buffer.shape).to(buffer))
    return module.state_dict()


def under(prefix, state, **more):
    return {f"{prefix}{name}": value for name, value in state.items()} | more


def moved(state):
    return {name: value + 1 for name, value in state.items()}


HEAD = {"fc.weight": torch.ones(3, 16), "fc.bias": torch.ones(3)}
# What each project writes → the key and the prefix that are taken.
WRITTEN = {
    "plain": (lambda s: s, "", ""),
    "timm": (lambda s: {"state_dict": s | HEAD, "epoch": 3, "arch": "resnet10t"}, "state_dict", ""),
    "timm's average": (lambda s: {"state_dict": moved(s), "state_dict_ema": s}, "state_dict_ema", ""),
    "solo-learn": (
        lambda s: {
            "state_dict": under("backbone.", s)
            | under("momentum_backbone.", moved(s))
            | {"projector.0.weight": torch.ones(2, 16)},
            "hyper_parameters": {"lr": 0.1},
        },
        "state_dict",
        "backbone.",
    ),
    "DINO": (
        lambda s: {
            "student": under("module.backbone.", moved(s), **{"module.head.mlp.0.weight": torch.ones(2, 2)}),
            "teacher": under("backbone.", s, **{"head.mlp.0.weight": torch.ones(2, 2)}),
        },
        "teacher",
        "backbone.",
    ),
    "MoCo": (
        lambda s: {
            "state_dict": under("module.encoder_q.", s | HEAD)
            | under("module.encoder_k.", moved(s) | HEAD)
            | {"module.queue": torch.ones(4, 4)}
        },
        "state_dict",
        "module.encoder_q.",
    ),
    "DistributedDataParallel": (lambda s: {"model": under("module.", s)}, "model", "module."),
    "transformers": (lambda s: under("timm_model.", s), "", "timm_model."),
    "half precision": (lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}, "", ""),
}


def convert(file, folder, *more):
    main(["convert", str(file), *NARROW, "-o", str(folder), *more])


@pytest.mark.parametrize("kind", WRITTEN)
def test_checkpoints_of_projects(kind, state, tmp_path, capsys):
    write, key, prefix = WRITTEN[kind]
    file = tmp_path / "weights.pth"
    torch.save(write(state), file)
    convert(file, tmp_path / "out")
    said = capsys.readouterr().out
    assert f"tensors of {key!r}" in said or (not key and "of the whole file" in said)
    assert f"with the prefix {prefix!r}" in said
    loaded = load_encoder(tmp_path / "out", pretrained=True).backbone.state_dict()
    for name, value in state.items():
        expected = value.half() if kind == "half precision" and value.is_floating_point() else value
        assert torch.equal(loaded[name], expected.to(loaded[name])), name


def test_what_fits_too_and_what_is_left_out_is_said_and_chosen(state, tmp_path, capsys):
    file = tmp_path / "dino.ckpt"
    torch.save(WRITTEN["DINO"][0](state), file)
    convert(file, tmp_path / "out")
    said = capsys.readouterr().out
    assert "left out  1 tensors: head.mlp (1)" in said
    assert "fits too  --key student --prefix 'module.backbone.'" in said
    convert(file, tmp_path / "student", "--key", "student", "--prefix", "module.backbone.")
    assert "of 'student'" in capsys.readouterr().out
    loaded = load_encoder(tmp_path / "student", pretrained=True).backbone.state_dict()
    assert torch.equal(loaded["conv1.0.weight"], state["conv1.0.weight"] + 1)


def test_safetensors_and_what_old_files_lack(state, tmp_path, capsys):
    file = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in state.items() if "num_batches" not in name}, file)
    convert(file, tmp_path / "out")
    assert "taken     " in capsys.readouterr().out
    loaded = load_encoder(tmp_path / "out", pretrained=True).backbone.state_dict()
    assert torch.equal(loaded["bn1.weight"], state["bn1.weight"])


def test_a_torchvision_resnet_and_one_that_lightly_took_apart(tmp_path):
    resnet = torchvision.models.resnet18()
    images = torch.randn(2, 3, 64, 64)
    features = nn.Sequential(*list(resnet.children())[:-1])
    expected = features.eval()(images).flatten(1)
    for name, weights in (("whole", resnet.state_dict()), ("apart", under("backbone.", features.state_dict()))):
        file = tmp_path / f"{name}.pt"
        torch.save({"state_dict": weights}, file)
        main(["convert", str(file), "--backbone", "resnet18", "--output_dir", str(tmp_path / name)])
        torch.testing.assert_close(load_encoder(tmp_path / name, pretrained=True).eval()(images), expected)


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(["convert", *map(str, argv)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


FAULTS = {
    "lacks one": (lambda s: without(s, "layer1.0.conv1.weight"), "1 are missing, among them 'layer1.0.conv1.weight'"),
    "other shape": (
        lambda s: s | {"bn1.weight": torch.ones(5)},
        "1 have another shape: 'bn1.weight' is [5] instead of",
    ),
    "another network": (lambda s: {"a.b": torch.ones(2)}, "has no tensor of 'resnet10t'; its first is 'a.b'"),
    "deeper": (lambda s: s | {"layer4.1.conv1.weight": torch.ones(2)}, "holds 1 tensors of parts of 'resnet10t'"),
    "not finite": (
        lambda s: s | {"bn1.weight": torch.full((64,), float("nan"))},
        "not finite, among them 'bn1.weight'",
    ),
    "no tensors": (lambda s: {"epoch": 3}, "holds no tensors by name"),
    "a list": (lambda s: [s], "holds no tensors by name"),
    "code": (
        lambda s: {"args": argparse.Namespace(lr=1), "model": s},
        "holds code besides its weights (argparse.Namespace)",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_files_that_are_refused(kind, state, tmp_path, capsys):
    write, message = FAULTS[kind]
    file = tmp_path / "weights.pth"
    torch.save(write(state), file)
    assert message in refused(capsys, file, *NARROW, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Attack:
    """Would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_is_never_run(tmp_path, capsys):
    torch.save({"model": Attack(tmp_path / "ran")}, tmp_path / "evil.pth")
    assert "which is never run" in refused(capsys, tmp_path / "evil.pth", *NARROW, "-o", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_checkpoints(state, tmp_path, capsys):
    torch.save(state, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**6))
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "half.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:2000])
    out = ["-o", tmp_path / "out"]
    assert "is a compressed archive" in refused(capsys, tmp_path / "packed.pth", *NARROW, *out)
    for name in ("text.pth", "half.pth"):
        line = refused(capsys, tmp_path / name, *NARROW, *out)
        assert "damaged" in line or "holds code" in line
    assert "there is no such file" in refused(capsys, tmp_path / "none.pth", *NARROW, *out)
    assert "is a folder" in refused(capsys, tmp_path, *NARROW, *out)
    assert "key is 'techer'" in refused(capsys, tmp_path / "good.pth", *NARROW, *out, "--key", "techer")
    assert "--backbone is missing" in refused(capsys, tmp_path / "good.pth", *out)
    assert "--output_dir is missing" in refused(capsys, tmp_path / "good.pth", "--backbone", "resnet18")
    assert "exists and is not an empty folder" in refused(capsys, tmp_path / "good.pth", *NARROW, "-o", tmp_path)
