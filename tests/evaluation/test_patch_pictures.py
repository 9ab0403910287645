"""What an encoder makes of places: attention as the libraries compute it, components as scikit-learn does."""

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from sklearn.decomposition import PCA
from torch import nn

from hf_orthossl import ModuleEncoder, load_encoder
from hf_orthossl.cli import main
from hf_orthossl.encoders.attention import attention_maps
from hf_orthossl.evaluation.patch_pictures import describe_components, draw_patches, patch_components

SIDE = 32
VIT = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "image_size": SIDE, "patch_size": 8}
TIMM = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2}
CONFIGS = {
    "vit": hf.ViTConfig(num_hidden_layers=2, **VIT),
    "registers": hf.Dinov2WithRegistersConfig(num_hidden_layers=2, num_register_tokens=3, **VIT),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_attention_of_transformers_is_what_its_eager_code_returns(kind, tmp_path):
    CONFIGS[kind].save_pretrained(tmp_path)
    torch.manual_seed(0)
    encoder = load_encoder(str(tmp_path), image_size=SIDE).train()
    images = torch.randn(3, 3, SIDE, SIDE)
    found = attention_maps(encoder, images)
    assert encoder.training
    encoder.eval().backbone.set_attn_implementation("eager")
    with torch.no_grad():
        weights = encoder.backbone(images, output_attentions=True).attentions[-1]
    expected = weights[:, :, 0, -16:].unflatten(-1, (4, 4))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    # The softmax of code that is not fused is recorded as well.
    torch.testing.assert_close(attention_maps(encoder, images), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("class_token", [True, False])
def test_attention_of_timm_follows_from_queries_and_keys(class_token):
    torch.manual_seed(0)
    options = TIMM if class_token else TIMM | {"class_token": False, "global_pool": "avg"}
    encoder = load_encoder("vit_tiny_patch16_224", image_size=SIDE, **options).eval()
    images = torch.randn(2, 3, SIDE, SIDE)
    seen = []
    last = encoder.backbone.blocks[-1].attn
    handle = last.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        encoder(images)
    handle.remove()
    query, key, _ = seen[0].unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4).double()
    weights = (query @ key.mT / 4).softmax(-1)
    received = weights[:, :, 0, 1:] if class_token else weights.mean(2)
    torch.testing.assert_close(
        attention_maps(encoder, images).double(), received.unflatten(-1, (4, 4)), atol=1e-6, rtol=0
    )


def test_networks_without_attention_are_named():
    with pytest.raises(ValueError, match="'resnet10t' has no patch tokens"):
        attention_maps(load_encoder("resnet10t", image_size=SIDE), torch.randn(1, 3, SIDE, SIDE))


def test_components_are_those_of_scikit_learn():
    torch.manual_seed(0)
    maps = torch.randn(4, 6, 5, 3) * torch.tensor([9.0, 5, 3, 1, 1, 1]).view(-1, 1, 1)
    found = patch_components(maps)
    places = maps.permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    fitted = PCA(3).fit(places)
    np.testing.assert_allclose(found.shares, fitted.explained_variance_ratio_, rtol=1e-10)
    signs = np.sign(fitted.components_[range(3), np.abs(fitted.components_).argmax(1)])
    shown = fitted.transform(places) * signs
    low, high = np.quantile(shown, 0.01, axis=0), np.quantile(shown, 0.99, axis=0)
    expected = ((shown - low) / (high - low)).clip(0, 1).reshape(4, 5, 3, 3)
    np.testing.assert_allclose(found.colours, expected, atol=1e-10)


def test_patches_that_are_the_same_are_said_to_have_collapsed():
    found = patch_components(torch.full((2, 4, 3, 3), 0.1) + 1e-9 * torch.randn(2, 4, 3, 3))
    assert (found.rank, found.colours.min(), found.colours.max()) == (0, 0.5, 0.5)
    assert "collapsed" in describe_components(found)
    # Fewer components than colours: the others stay grey.
    two = patch_components(torch.randn(2, 2, 3, 3))
    assert (two.colours[..., 2] == 0.5).all()
    assert sum(two.shares) == pytest.approx(1)


def test_a_convolutional_network_of_four_channels_is_drawn_without_attention(tmp_path):
    torch.manual_seed(0)
    encoder = ModuleEncoder(nn.Conv2d(4, 8, 8, stride=8), image_size=SIDE, channels=4)
    sheet = draw_patches(encoder, torch.randn(2, 4, SIDE, SIDE), tmp_path / "sheet.svg")
    assert sheet.path.read_text().lstrip().startswith("<?xml")
    assert sheet.heads == 0
    assert "no patch tokens" in sheet.note
    with pytest.raises(ValueError, match="no patch tokens"):
        draw_patches(encoder, torch.randn(2, 4, SIDE, SIDE), tmp_path / "sheet.svg", heads=True)


def test_the_command_draws_a_sheet_and_refuses_what_it_cannot(tmp_path, capsys):
    command = ["patches", "vit_tiny_patch16_224", "--untrained", "--image_size", "32", "--device", "cpu"]
    main([*command, "--images", "2", "-o", str(tmp_path / "sheet.png")])
    said = capsys.readouterr().out
    assert "places   2 × 2 of each image. 3 components: " in said
    assert "heads    3 of the last block" in said
    assert Image.open(tmp_path / "sheet.png").width > 100
    for more, line in (
        (["-o", str(tmp_path / "sheet.png")], "sheet.png exists: pass another file"),
        (["-o", "sheet.txt"], "its name must end in .png"),
        (["--images", "0"], "images is 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*command, *more])
        assert line in capsys.readouterr().err


def test_a_seed_without_effect_is_refused(tmp_path, capsys):
    for command in ("patches", "embed", "neighbours"):
        with pytest.raises(SystemExit, match="2"):
            main([command, str(tmp_path), "--seed", "3"])
        assert "seed is 3, and weights are loaded: pass --untrained too" in capsys.readouterr().err
