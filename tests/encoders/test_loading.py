"""What a user gets from `load_encoder`: the library's own network, its representation, its stages, its errors."""

import copy
import fnmatch
import json

import pytest
import timm
import torch
import transformers as hf
from torch import nn

from hf_orthossl.encoders import export_encoder, load_encoder

VIT = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
HF_CONFIGS = {
    "vit": hf.ViTConfig(num_hidden_layers=8, **VIT),
    "dinov2": hf.Dinov2Config(num_hidden_layers=2, **VIT),
    "deit": hf.DeiTConfig(num_hidden_layers=2, **VIT),
    "vit_mae": hf.ViTMAEConfig(num_hidden_layers=2, **VIT),
    "resnet": hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "convnext": hf.ConvNextConfig(hidden_sizes=[8, 16, 24], depths=[1, 1, 1], num_stages=3),
    "swin": hf.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, image_size=32, patch_size=4),
}
# Pooled output of each model, as its documentation says, from the model's own outputs.
HF_POOLED = {
    "vit": lambda out: out.last_hidden_state[:, 0],
    "dinov2": lambda out: out.last_hidden_state[:, 0],
    "deit": lambda out: out.last_hidden_state[:, 0],
    "vit_mae": lambda out: out.last_hidden_state[:, 0],
    "resnet": lambda out: out.last_hidden_state.mean((2, 3)),
    "convnext": lambda out: out.pooler_output,
    "swin": lambda out: out.last_hidden_state.mean(1),
}
TIMM_FAMILIES = [
    ("resnet18", 32, {}),
    ("convnext_atto", 64, {}),
    ("vit_tiny_patch16_224", 32, {"patch_size": 8, "depth": 8}),
    ("swin_tiny_patch4_window7_224", 64, {"depths": (2, 2, 2, 2), "embed_dim": 24}),
    ("mobilenetv3_small_100", 64, {}),
    ("regnetx_002", 64, {}),
    ("efficientnet_b0", 64, {}),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def hf_folder(tmp_path):
    def save(kind):
        HF_CONFIGS[kind].save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return save


def assert_every_parameter_is_used(encoder, images):
    encoder(images).sum().backward()
    unused = [key for key, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


@pytest.mark.parametrize(("name", "size", "kwargs"), TIMM_FAMILIES, ids=[family[0] for family in TIMM_FAMILIES])
def test_timm_families_give_their_own_features(name, size, kwargs):
    encoder = load_encoder(name, image_size=size, **kwargs).eval()
    backbone, images = encoder.backbone, torch.randn(2, 3, size, size)
    with torch.no_grad():
        stages = encoder.stages(images)
        features = backbone.forward_features(images)
        _, own = backbone.forward_intermediates(images, output_fmt="NCHW")
        pooled = backbone.forward_head(features, pre_logits=True)
    assert encoder.library == "timm"
    assert encoder.mean == tuple(timm.get_pretrained_cfg(name).mean)
    assert list(stages) == encoder.stage_names
    torch.testing.assert_close(stages["representation"], pooled)
    assert stages["representation"].shape == (2, encoder.num_features)
    for stage, output in stages.items():
        if stage == "representation":
            continue
        index = [info["module"] for info in backbone.feature_info].index(stage)
        if output.ndim == 3:  # tokens: the same without class token, as a map
            height, width = own[index].shape[2:]
            output = output[:, 1:].transpose(1, 2).unflatten(2, (height, width))
        torch.testing.assert_close(output, own[index])
    assert_every_parameter_is_used(encoder, images)


def test_stage_names_are_the_field_s():
    assert load_encoder("resnet18", image_size=32).stage_names == [
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "representation",
    ]
    vit = load_encoder("vit_tiny_patch16_224", image_size=32)
    assert vit.stage_names == ["blocks.2", "blocks.5", "blocks.8", "blocks.11", "representation"]


@pytest.mark.parametrize("kind", HF_CONFIGS)
def test_transformers_models_give_their_own_features(kind, hf_folder):
    encoder = load_encoder(str(hf_folder(kind)), image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.manual_seed(1)  # a masked autoencoder shuffles its tokens
        stages = encoder.stages(images)
        torch.manual_seed(1)
        outputs = encoder.backbone(images, output_hidden_states=True)
    assert encoder.library == "transformers"
    assert encoder.num_features == stages["representation"].shape[1]
    torch.testing.assert_close(stages["representation"], HF_POOLED[kind](outputs), atol=1e-5, rtol=1e-5)
    assert list(stages) == encoder.stage_names
    assert len(stages) > 2
    for stage in list(stages.values())[:-1]:
        assert any(stage.shape == own.shape and torch.equal(stage, own) for own in outputs.hidden_states)
    assert_every_parameter_is_used(encoder, images)


def test_masked_autoencoder_sees_whole_images(hf_folder):
    encoder = load_encoder(str(hf_folder("vit_mae"))).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(images), encoder(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "deit"])
def test_position_embeddings_are_resampled_as_transformers_does(kind, tmp_path):
    encoder = load_encoder(str(_saved(HF_CONFIGS[kind], tmp_path / "config"))).eval()
    nn.init.normal_(encoder.backbone.embeddings.position_embeddings)
    export_encoder(encoder, tmp_path / "weights")
    resized = load_encoder(str(tmp_path / "weights"), pretrained=True, image_size=48).eval()
    images = torch.randn(2, 3, 48, 48)
    kwargs = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    expected = encoder.backbone(images, **kwargs).last_hidden_state[:, 0]
    assert resized.image_size == 48
    torch.testing.assert_close(resized(images), expected, atol=1e-5, rtol=1e-5)
    # Multi-crop: another size goes through the same network.
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


def _saved(config, folder):
    config.save_pretrained(folder)
    return folder


def test_pooling_is_chosen_where_timm_has_none():
    torch.manual_seed(0)
    encoder = load_encoder("resnet18", image_size=32, global_pool="").eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(images), encoder.backbone.forward_features(images).mean((2, 3)))


def test_defaults_come_from_the_model(hf_folder, tmp_path):
    assert load_encoder("resnet18_cifar").image_size == 32
    encoder = load_encoder(str(hf_folder("resnet")))
    assert (encoder.image_size, encoder.mean) == (224, (0.485, 0.456, 0.406))
    vit = _saved(HF_CONFIGS["vit"], tmp_path / "own")
    (vit / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2, "size": {"height": 32, "width": 32}}
        )
    )
    encoder = load_encoder(str(vit))
    assert (encoder.image_size, encoder.mean, encoder.std) == (32, (0.5,) * 3, (0.25,) * 3)
    assert encoder.interpolation == "bilinear"


def test_target_network_is_an_independent_copy():
    encoder = load_encoder("resnet18_cifar").eval()
    target = copy.deepcopy(encoder)
    images = torch.randn(2, 3, 32, 32)
    before = target(images)
    nn.init.zeros_(encoder.backbone.conv1.weight)
    torch.testing.assert_close(target(images), before)
    assert list(target.stages(images)) == encoder.stage_names


class Holder(hf.PreTrainedModel):
    """A model that holds an encoder, as `SSLModel` does."""

    config_class = hf.PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = load_encoder(
            "swin_tiny_patch4_window7_224", image_size=64, embed_dim=24, depths=(2, 2, 2, 2), window_size=4
        )
        self.post_init()

    def _init_weights(self, module):
        pass

    def initialize_weights(self):
        super().initialize_weights()
        self.encoder.restore_buffers()


def test_from_pretrained_of_a_model_that_holds_an_encoder(tmp_path):
    model = Holder(hf.PreTrainedConfig()).eval()
    images = torch.randn(2, 3, 64, 64)
    model.save_pretrained(tmp_path)
    loaded = Holder.from_pretrained(tmp_path).eval()
    tables = dict(loaded.encoder.backbone.named_buffers())
    for key, table in model.encoder.backbone.named_buffers():
        assert torch.equal(tables[key], table), key
    torch.testing.assert_close(loaded.encoder(images), model.encoder(images))


def test_folder_is_found_in_a_run(tmp_path):
    encoder = load_encoder("resnet18_cifar").eval()
    export_encoder(encoder, tmp_path / "run" / "encoder")
    images = torch.randn(2, 3, 32, 32)
    for name in (str(tmp_path / "run"), tmp_path / "run" / "encoder"):
        torch.testing.assert_close(load_encoder(name, pretrained=True).eval()(images), encoder(images))
    untrained = load_encoder(str(tmp_path / "run")).eval()
    assert not torch.equal(untrained.backbone.conv1.weight, encoder.backbone.conv1.weight)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A Hub whose every repository is a snapshot of the classifier that the test puts into it."""
    snapshot = tmp_path / "snapshot"

    def download(repo_id, revision, allow_patterns):
        assert not any(fnmatch.fnmatch("pytorch_model.bin", pattern) for pattern in allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("hf_orthossl.encoders.loading.snapshot_download", download)
    return snapshot


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vit_tiny_patch16_224", "hf-hub:timm/some", "timm/some@main"])
def test_pretrained_timm_weights(name, fake_hub, tmp_path):
    architecture = "vit_tiny_patch16_224" if name.startswith("vit") else "resnet18"
    classifier = timm.create_model(architecture, num_classes=1000).eval()
    timm.models.save_for_hf(classifier, fake_hub, safe_serialization=True)
    size = 64
    encoder = load_encoder(name, pretrained=True, image_size=size).eval()
    assert type(encoder.backbone.get_classifier()) is nn.Identity
    resized = {"img_size": size} if architecture.startswith("vit") else {}
    overlay = {"file": str(fake_hub / "model.safetensors"), "custom_load": False}
    expected = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **resized).eval()
    images = torch.randn(2, 3, size, size)
    features = expected.forward_head(expected.forward_features(images), pre_logits=True)
    torch.testing.assert_close(encoder(images), features)
    folder = export_encoder(encoder, tmp_path / "encoder")
    assert str(tmp_path) not in (folder / "config.json").read_text()  # no path of this machine is published
    torch.testing.assert_close(load_encoder(str(folder), pretrained=True).eval()(images), features)
