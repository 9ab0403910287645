"""Spectra of class token and patch tokens of vision transformers: every patch is a vector by itself."""

import pytest
import timm
import torch
import transformers as hf

from hf_orthossl.encoders import load_encoder
from hf_orthossl.spectra import SpectralReport, effective_rank, spectral_report

TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 0}
SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def images(count=40):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def rank_of(vectors):
    vectors = vectors.detach().double()
    return float(effective_rank(torch.linalg.svdvals(vectors - vectors.mean(dim=0))))


# The network, the number of tokens before the patches, and whether the class token is the representation.
NETWORKS = {
    "class token": (lambda: timm.create_model("vit_tiny_patch16_224", **TIMM), 1, True),
    "average": (lambda: timm.create_model("vit_tiny_patch16_224", **TIMM, global_pool="avg"), 1, False),
    "no class token": (lambda: timm.create_model("vit_base_patch16_siglip_gap_224", **TIMM), 0, False),
    "registers": (lambda: timm.create_model("vit_small_patch14_reg4_dinov2", **TIMM), 5, True),
    "beit": (lambda: timm.create_model("beit_base_patch16_224", **TIMM), 1, False),
    "transformers": (lambda: hf.ViTModel(hf.ViTConfig(**SMALL), add_pooling_layer=False), 1, False),
    "transformers, registers": (lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**SMALL)), 5, True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_all_patches_of_all_images_are_vectors(name):
    torch.manual_seed(0)
    build, prefix, same = NETWORKS[name]
    model = build().eval()
    report = spectral_report(model, images(), batch_size=16)
    with torch.no_grad():
        whole = model.forward_features(images()) if hasattr(model, "forward_features") else model(images())[0]
    patches = report.features["patch_tokens"]
    assert (patches.num_images, patches.tokens_per_image, patches.pool, patches.dim) == (40, 16, "each", 24)
    assert patches.num_vectors == 640
    assert patches.effective_rank == pytest.approx(rank_of(whole[:, prefix:].flatten(0, 1)), rel=1e-6)
    assert ("class_token" in report.features) == (prefix > 0 and not same)
    if "class_token" in report.features:
        assert report.features["class_token"].effective_rank == pytest.approx(rank_of(whole[:, 0]), rel=1e-6)
    assert list(report.features)[-1] == "representation"
    assert not any(hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks))


def test_an_encoder_reports_them_and_one_can_ask_for_them():
    encoder = load_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=4)
    report = spectral_report(encoder, images())
    assert [*report.features][-2:] == ["patch_tokens", "representation"]
    alone = spectral_report(encoder, images(), layers=["class_token", "patch_tokens"]).features
    assert [*alone] == ["class_token", "patch_tokens"]
    torch.testing.assert_close(alone["patch_tokens"].eigenvalues, report.features["patch_tokens"].eigenvalues)
    torch.testing.assert_close(alone["class_token"].eigenvalues, report.features["representation"].eigenvalues)
    assert spectral_report(encoder, images(), layers="patch_tokens").metadata["num_images"] == 40


def test_other_networks_have_none():
    encoder = load_encoder("resnet10t", image_size=32)
    assert "patch_tokens" not in spectral_report(encoder, images()).features
    assert (
        "patch_tokens"
        not in spectral_report(load_encoder("swin_tiny_patch4_window7_224", image_size=32), images(4)).features
    )
    with pytest.raises(ValueError, match="no layer 'patch_tokens'"):
        spectral_report(encoder, images(), layers=["patch_tokens"])


def test_dense_collapse_is_said_in_words_and_survives_the_file(tmp_path):
    """Each image has its class token, and all of its patches are alike."""

    class Flat(torch.nn.Module):
        num_prefix_tokens = 1

        def __init__(self):
            super().__init__()
            self.cls_token = torch.nn.Parameter(torch.zeros(1))
            self.embed = torch.nn.Linear(3, 6)
            self.norm = torch.nn.Identity()

        def forward(self, x):
            token = self.embed(x.mean(dim=(2, 3)))
            return self.norm(torch.cat([token[:, None], torch.ones(len(x), 9, 6)], dim=1))[:, 0]

    report = spectral_report(Flat(), images())
    assert any("patch tokens of all 40 images are equal" in sentence for sentence in report.collapse())
    report.save(tmp_path)
    again = SpectralReport.load(tmp_path).features["patch_tokens"]
    assert (again.tokens_per_image, again.num_positive) == (9, 0)
