"""Encoders as ONNX, TorchScript and torch.export programs give what the encoders give."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from torch import nn

from hf_orthossl import ModuleEncoder, load_encoder
from hf_orthossl.cli import main
from hf_orthossl.encoders import programs
from hf_orthossl.encoders.programs import export_program

SIDE = 32
CASES = {
    "timm_cnn": ("resnet10t", {"channels": [8, 8, 16, 16]}),
    "timm_vit": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2}),
    "hf_vit": (
        hf.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=SIDE,
            patch_size=8,
        ),
        {},
    ),
    "cifar_stem": ("wide_resnet28_2", {}),
}
# Runs where neither torch nor this package can be imported: onnxruntime, NumPy and Pillow alone.
STRANGER = """
import sys
for name in ("torch", "timm", "transformers", "hf_orthossl"):
    sys.modules[name] = None
import json, pathlib
import numpy as np, onnxruntime
from PIL import Image
root = pathlib.Path(sys.argv[1])
for folder in sys.argv[2:]:
    made = json.loads((root / folder / "preprocessor_config.json").read_text())
    batch = []
    for path in sorted(root.glob("image-*.png")):
        image = Image.open(path).convert("RGB")
        side, crop = made["size"]["shortest_edge"], made["crop_size"]
        scale = side / min(image.size)
        image = image.resize([round(length * scale) for length in image.size], made["resample"])
        left, top = (image.width - crop["width"]) // 2, (image.height - crop["height"]) // 2
        image = image.crop((left, top, left + crop["width"], top + crop["height"]))
        pixels = np.asarray(image, np.float32) * made["rescale_factor"]
        batch.append(((pixels - made["image_mean"]) / made["image_std"]).transpose(2, 0, 1))
    session = onnxruntime.InferenceSession(root / folder / "model.onnx")
    outputs = session.run(None, {"images": np.stack(batch).astype(np.float32)})
    np.savez(root / f"{folder}.npz", **dict(zip([output.name for output in session.get_outputs()], outputs)))
"""


def encoder_of(case, folder):
    name, arguments = CASES[case]
    if not isinstance(name, str):
        name.save_pretrained(folder)
        name = str(folder)
    torch.manual_seed(0)
    return load_encoder(name, image_size=SIDE, **arguments)


@pytest.fixture(scope="module")
def pictures():
    """Photograph-like images of 40 × 32 pixels, whose centre is the encoder's input."""
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (5, 4, 5, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((40, SIDE), Image.Resampling.BICUBIC) for each in smooth]


@pytest.fixture(scope="module")
def normalized(pictures):
    """The same as the encoder takes them, by numbers of pixels alone."""
    centres = torch.stack([torch.from_numpy(np.asarray(each.crop((4, 0, 36, SIDE))).copy()) for each in pictures])
    pixels = centres.permute(0, 3, 1, 2).double() / 255

    def of(encoder):
        mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (encoder.mean, encoder.std))
        return ((pixels - mean) / std).float()

    return of


def outputs_of(encoder, images):
    with torch.no_grad():
        return encoder.eval().representation_and_map(images)


def test_onnx_runs_without_torch_and_without_this_package(tmp_path, pictures, normalized):
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"image-{number}.png")
    encoders = {case: encoder_of(case, tmp_path / "config") for case in CASES}
    for case, encoder in encoders.items():
        # Three images are compared, and a batch of five is run: it is dynamic.
        export_program(encoder, tmp_path / case, normalized(encoder)[:3], tokens=True)
    subprocess.run([sys.executable, "-c", STRANGER, tmp_path, *CASES], check=True, timeout=300)
    for case, encoder in encoders.items():
        representation, places = outputs_of(encoder, normalized(encoder))
        found = np.load(tmp_path / f"{case}.npz")
        for name, expected in (("representation", representation), ("tokens", places.flatten(2).mT)):
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
        grid = json.loads((tmp_path / case / "program.json").read_text())["grid"]
        assert grid == list(places.shape[2:])


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("format", ["torchscript", "torch.export"])
def test_torch_programs_give_the_same(tmp_path, normalized, format, tokens):
    encoder = encoder_of("timm_vit", tmp_path)
    images = normalized(encoder)
    export = export_program(encoder, tmp_path / "program", images[:3], format=format, tokens=tokens)
    load = torch.jit.load if format == "torchscript" else lambda file: torch.export.load(file).module()
    found = load(str(export.file))(images)
    representation, places = outputs_of(encoder, images)
    torch.testing.assert_close(found[0], representation, atol=1e-5, rtol=0)
    assert len(found) == 1 + tokens
    if tokens:
        torch.testing.assert_close(found[1], places.flatten(2).mT, atol=1e-5, rtol=0)


def test_mode_of_the_encoder_is_restored(tmp_path, normalized):
    encoder = encoder_of("timm_cnn", tmp_path).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    export_program(encoder, tmp_path / "program", normalized(encoder), format="torch.export")
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


class Branching(nn.Module):
    """A network whose path depends on the image, which a trace cannot record."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 8, stride=8)

    def forward(self, images):
        return self.layer(images) * (1 if images[0].mean() > 0 else -1)


def test_a_program_that_differs_is_not_left(tmp_path):
    encoder = ModuleEncoder(Branching(), image_size=SIDE)
    images = torch.stack([torch.full((3, SIDE, SIDE), value) for value in (1.0, -1.0, 1.0)])
    with pytest.raises(ArithmeticError, match="representation of 'Branching' as torchscript differs"):
        export_program(encoder, tmp_path / "program", images, format="torchscript")
    assert not (tmp_path / "program").exists()
    with pytest.raises(ValueError, match="torch cannot write 'Branching' as torch"):
        export_program(encoder, tmp_path / "program", images, format="torch.export")


def test_what_cannot_be_written_is_refused(tmp_path, normalized, monkeypatch):
    encoder = encoder_of("timm_cnn", tmp_path)
    images = normalized(encoder)
    with pytest.raises(ValueError, match=r"unknown format 'onx': did you mean .*onnx"):
        export_program(encoder, tmp_path, images, format="onx")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 32, 32\): they must be 3 or more"):
        export_program(encoder, tmp_path, images[:2])
    with pytest.raises(TypeError, match="encoder must be an Encoder"):
        export_program(encoder.backbone, tmp_path, images)
    flat = ModuleEncoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 4)), image_size=SIDE)
    with pytest.raises(ValueError, match="neither patch tokens nor a feature map"):
        export_program(flat, tmp_path, images, tokens=True)
    monkeypatch.setattr(programs, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(ValueError, match=r"needs onnxruntime: pip install 'hf-orthossl\[onnx\]'"):
        export_program(encoder, tmp_path, images)


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    folder = tmp_path / "program"
    command = ["export", "resnet18_cifar", "--untrained", "--format", "torchscript", "-o", str(folder)]
    main([*command, "--tokens", "--images", "4"])
    said = capsys.readouterr().out
    assert "digits, test: 360 images" in said
    assert f"program  {folder}/model.ts, 4" in said
    assert "input    images (batch, 3, 32, 32), float32, made by preprocessor_config.json" in said
    assert "output   tokens (batch, 16, 512), 4 rows of 4" in said
    assert json.loads((folder / "program.json").read_text())["parity"]["images"] == 4
    for line, more in (
        ("exists and is not an empty folder", []),
        ("--output_dir is missing", ["--output_dir"]),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(command[:-2] if more else command)
        assert line in capsys.readouterr().err
