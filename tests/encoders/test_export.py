"""An exported encoder loads where this package does not exist, and gives training's own features."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file

from hf_orthossl.encoders import export_encoder, load_encoder
from hf_orthossl.spectra import weight_spectra

# Runs in a Python that cannot import this package and cannot reach the Hub.
STRANGER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_orthossl":
            raise ImportError("hf_orthossl is not installed here")
sys.meta_path.insert(0, Refuse())

import json, pathlib, timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline
root = pathlib.Path(sys.argv[1])
image = Image.open(root / "image.png")
for case in json.loads((root / "cases.json").read_text()):
    folder = str(root / case["folder"])
    images = torch.load(root / "images.pt", weights_only=True)[case["size"]]
    found = {"images": images}
    with torch.no_grad():
        trust = {"trust_remote_code": True} if case["remote"] else {}
        model = AutoModel.from_pretrained(folder, **trust).eval()
        outputs = model(images)
        pooled = outputs.last_hidden_state[:, 0] if case["pooling"] == "cls" else outputs.pooler_output
        found["AutoModel"] = pooled.flatten(1)
        if case["timm"]:
            found["timm"] = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
        processor = AutoImageProcessor.from_pretrained(folder)
        found["processed"] = processor(image, return_tensors="pt")["pixel_values"]
        extract = pipeline("image-feature-extraction", model=model, image_processor=processor)
        found["pipeline"] = extract(image, return_tensors=True)
        found["expected_by_pipeline"] = model(found["processed"]).last_hidden_state
    torch.save(found, root / f"{case['folder']}.pt")
"""
VIT = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
CASES = {
    "timm_resnet18": ("resnet18", {"image_size": 32}),
    "timm_vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "depth": 2}),
    "timm_swin": ("swin_tiny_patch4_window7_224", {"image_size": 64, "embed_dim": 24, "depths": (2, 2, 2, 2)}),
    "resnet18_cifar": ("resnet18_cifar", {}),
    "wide_resnet28_2": ("wide_resnet28_2", {}),
    "hf_vit": (hf.ViTConfig(num_hidden_layers=2, **VIT), {}),
    "hf_dinov2": (hf.Dinov2Config(num_hidden_layers=2, **VIT), {"image_size": 64}),
    "hf_resnet": (
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        {"image_size": 32},
    ),
}
METADATA = {"method": "byol", "gamma": 1e-6, "nested": {"steps": [1, 2]}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """All cases exported, and what a stranger's process made of them."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("exported")
    images = {size: torch.randn(2, 3, size, size) for size in (32, 64)}
    torch.save(images, root / "images.pt")
    pixels = torch.randint(0, 256, (48, 48, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(root / "image.png")
    encoders, cases = {}, []
    for folder, (name, kwargs) in CASES.items():
        if not isinstance(name, str):
            name.save_pretrained(root / "configs" / folder)
            name = str(root / "configs" / folder)
        encoder = load_encoder(name, **kwargs)
        with torch.no_grad():  # untrained statistics and zero-initialised norms would hide most mistakes
            for _ in range(2):
                encoder(images[encoder.image_size])
            for parameter in encoder.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        encoder = encoder.eval().to(memory_format=torch.channels_last)
        export_encoder(encoder, root / folder, metadata=METADATA)
        encoders[folder] = encoder
        cases.append(
            {
                "folder": folder,
                "size": encoder.image_size,
                "timm": encoder.library == "timm" and "cifar" not in folder and "wide" not in folder,
                "remote": "cifar" in folder or "wide" in folder,
                "pooling": encoder.pooling,
            }
        )
    (root / "cases.json").write_text(json.dumps(cases))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf_home")}
    run = subprocess.run(
        [sys.executable, "-c", STRANGER, str(root)], cwd=root, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return root, encoders


@pytest.mark.parametrize("case", CASES)
def test_loads_without_this_package(case, exported):
    root, encoders = exported
    encoder = encoders[case]
    found = torch.load(root / f"{case}.pt", weights_only=True)
    with torch.no_grad():
        expected = encoder(found["images"])
    assert expected.std(0).max() > 1e-3  # the features are those of the images
    for way in {"AutoModel", "timm"} & found.keys():
        torch.testing.assert_close(found[way], expected, atol=1e-5, rtol=1e-5)
    assert found["pipeline"].shape == found["expected_by_pipeline"].shape
    torch.testing.assert_close(found["pipeline"], found["expected_by_pipeline"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_image_processor_prepares_what_the_encoder_was_trained_on(case, exported):
    root, encoders = exported
    encoder, found = encoders[case], torch.load(root / f"{case}.pt", weights_only=True)
    size = encoder.image_size
    assert found["processed"].shape == (1, 3, size, size)
    image = Image.open(root / "image.png").resize((size, size), Image.Resampling[encoder.interpolation.upper()])
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)
    mean, std = torch.tensor(encoder.mean), torch.tensor(encoder.std)
    expected = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    # Pillow and torchvision round a resized pixel differently by at most a few of 255 levels.
    assert (found["processed"][0] - expected).abs().max() < 4 / 255 / std.min()


@pytest.mark.parametrize("case", CASES)
def test_round_trip_and_metadata(case, exported):
    root, encoders = exported
    encoder = encoders[case]
    images = torch.randn(2, 3, encoder.image_size, encoder.image_size)
    loaded = load_encoder(str(root / case), pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), encoder(images), atol=1e-5, rtol=1e-5)
    for attribute in ("image_size", "mean", "std", "interpolation", "num_features", "stage_names"):
        assert getattr(loaded, attribute) == getattr(encoder, attribute), attribute
    assert json.loads((root / case / "config.json").read_text())["orthossl"] == METADATA


@pytest.mark.parametrize("case", CASES)
def test_spectra_bear_the_names_of_the_published_weights(case, exported):
    """Also where transformers writes other names than it has in memory (ViT, DINOv2)."""
    root, encoders = exported
    published = load_file(root / case / "model.safetensors")
    spectra = weight_spectra(encoders[case])
    assert len(spectra) > 3
    for name, spectrum in spectra.items():
        weight, part = published[name.partition("[")[0]], "qkv".find(name.partition("[")[2][:1] or "q")
        rows = weight.flatten(1).double().split(spectrum.shape[1])[part]
        torch.testing.assert_close(torch.linalg.svdvals(rows), spectrum.singular_values, atol=1e-5, rtol=1e-5)
    first = next(iter(spectra)).partition("[")[0]
    assert list(weight_spectra(encoders[case], include=first)) == [n for n in spectra if n.partition("[")[0] == first]


def test_own_preprocessing_is_published(tmp_path):
    encoder = load_encoder("resnet18", image_size=32)
    encoder.mean, encoder.std, encoder.interpolation = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear"
    loaded = load_encoder(str(export_encoder(encoder, tmp_path / "encoder")), pretrained=True)
    assert (loaded.mean, loaded.std, loaded.interpolation) == (encoder.mean, encoder.std, encoder.interpolation)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"encoder": "resnet18"}, "encoder must be an Encoder, got 'resnet18': pass one from load_encoder"),
        ({"encoder": torch.nn.Linear(2, 2)}, "encoder must be an Encoder, got Linear("),
        ({"folder": 5}, "folder must be a path, got 5"),
        ({"metadata": ["byol"]}, "metadata must be a dict of JSON values, got ['byol']"),
        ({"metadata": {"loss": torch.zeros(2)}}, "metadata must be a dict of JSON values ("),
    ],
)
def test_wrong_types_are_one_clear_line_and_write_nothing(arguments, words, tmp_path):
    given = {"encoder": load_encoder("linear", image_size=8), "folder": tmp_path / "encoder", **arguments}
    with pytest.raises(TypeError) as raised:
        export_encoder(given.pop("encoder"), given.pop("folder"), **given)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_export_leaves_the_encoder_alone(tmp_path):
    encoder = load_encoder("resnet18_cifar").to(memory_format=torch.channels_last)
    export_encoder(encoder, tmp_path / "encoder")
    assert encoder.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_second_export_replaces_its_own_files_only(tmp_path):
    folder = export_encoder(load_encoder("resnet18_cifar"), tmp_path / "encoder")
    (folder / "README.md").write_text("a card")
    encoder = load_encoder("resnet18", image_size=32).eval()
    export_encoder(encoder, folder)
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {"encoder"}
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load_encoder(str(folder), pretrained=True).eval()(images), encoder(images))


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_full_disk_leaves_the_previous_encoder(library, tmp_path):
    name = "wide_resnet28_2"
    if library == "transformers":
        hf.ViTConfig(num_hidden_layers=8, **{**VIT, "hidden_size": 64}).save_pretrained(tmp_path / "config")
        name = str(tmp_path / "config")
    folder = tmp_path / "out" / "encoder"
    export_encoder(load_encoder(name), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    encoder = load_encoder(name)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # as on a full disk, files grow no further
    try:
        with pytest.raises(OSError, match=r"cannot be written .*needed.*: raise the limit") as raised:
            export_encoder(encoder, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(raised.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in Path(folder).parent.iterdir()] == ["encoder"]


def test_tied_weights_are_written_under_each_name(tmp_path):
    sizes = {"embed_dims": (64,) * 4, "serial_depths": (1,) * 4, "parallel_depth": 1}
    encoder = load_encoder("coat_tiny", pretrained=False, image_size=32, **sizes).eval()
    export_encoder(encoder, tmp_path / "encoder")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = encoder(images)
        for found in (
            timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()(images),
            hf.AutoModel.from_pretrained(tmp_path / "encoder").eval()(images).pooler_output,
            load_encoder(str(tmp_path / "encoder"), pretrained=True).eval()(images),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["timm_vit", "hf_vit", "hf_dinov2", "resnet18_cifar"])
def test_a_rehearsal_writes_all_but_the_weights(case, tmp_path):
    name, settings = CASES[case]
    if not isinstance(name, str):
        name.save_pretrained(tmp_path / "config")
        name = str(tmp_path / "config")
    encoder = load_encoder(name, pretrained=False, **settings)
    export_encoder(encoder, tmp_path / "whole")
    export_encoder(encoder, tmp_path / "rehearsal", rehearsal=True)
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        path.name for path in (tmp_path / "rehearsal").iterdir()
    }
    for file in ("config.json", "preprocessor_config.json"):
        if (tmp_path / "whole" / file).exists():
            assert (tmp_path / "whole" / file).read_text() == (tmp_path / "rehearsal" / file).read_text()
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("rehearsal", "whole")]
    assert sizes[0] < sizes[1] / 2
