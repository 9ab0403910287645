import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTModel

from hf_orthossl.spectra import (
    StreamingCovariance,
    guess_stages,
    last_weights,
    lidar,
    spectral_report,
    weight_spectra,
)


class Stub(nn.Module):
    """What an encoder looks like from here: a method `stages`."""

    name = "stub"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 10, 3)
        self.calls = 0

    def stages(self, images):
        self.calls += 1
        first = self.norm(self.first(images))
        second = self.second(first)
        return {"one": first, "two": second, "representation": second.mean((2, 3))}


@pytest.fixture
def images():
    return torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _oracle(vectors):
    values = np.linalg.eigvalsh(np.cov(vectors.double().numpy(), rowvar=False))[::-1]
    return values / values[0]


def test_an_encoder_is_read_layer_by_layer_against_numpy(images):
    model = Stub()
    report = spectral_report(model, images, batch_size=32, metadata={"dataset": "noise"})
    assert list(report.features) == ["input", "one", "two", "representation"]
    assert model.calls == 3
    with torch.no_grad():
        outputs = model.eval().stages(images)
    expected = {"input": images.flatten(1), **{k: v.mean((2, 3)) if v.ndim == 4 else v for k, v in outputs.items()}}
    for layer, vectors in expected.items():
        found = report.features[layer]
        np.testing.assert_allclose(found.eigenvalues, _oracle(vectors), rtol=0, atol=1e-6)
        sigma = np.linalg.svd(vectors.double().numpy(), compute_uv=False)
        p = sigma / sigma.sum() + 1e-7
        assert found.rankme == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
        centred = np.linalg.svd((vectors - vectors.mean(0)).double().numpy(), compute_uv=False)
        p = centred[centred > 1e-6] / centred.sum()
        assert found.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert report.metadata == {"model": "stub", "num_images": 70, "dataset": "noise"}
    assert list(report.weights) == ["first.weight", "second.weight"]
    assert report.features["input"].num_positive == 69
    assert report.features["input"].num_non_positive == 192 - 69
    assert report.notes == [
        "70 images cap the rank of the features at 69, below the dimension of input (192): "
        "this limit of the sample is no collapse; use more images to see beyond it."
    ]


def test_the_form_of_the_images_does_not_matter(images):
    whole = spectral_report(Stub(), images)
    loader = DataLoader(TensorDataset(images, torch.zeros(70)), batch_size=33)
    dicts = [{"pixel_values": batch, "labels": None} for batch in images.split(20)]
    for form in (loader, dicts, iter(images.split(7))):
        other = spectral_report(Stub(), form)
        for layer in whole.features:
            a, b = whole.features[layer].eigenvalues, other.features[layer].eigenvalues
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_modes_statistics_and_hooks_are_as_before(images):
    model = Stub()
    model.second.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    spectral_report(model, images, layers=["first", "one"])
    assert (model.training, model.norm.training, model.second.training) == (True, True, False)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="did you mean"):
        spectral_report(model, images, layers=["firs"])
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_embedding_and_lidar_come_from_projector_and_views(images):
    model, projector = Stub(), nn.Linear(10, 4)
    views = images[:60].reshape(20, 3, 3, 8, 8)
    report = spectral_report(model, images, projector=projector, views=views, batch_size=16)
    assert list(report.features)[-2:] == ["representation", "embedding"]
    with torch.no_grad():
        model.eval()
        embeddings = projector(model.stages(views.flatten(0, 1))["representation"])
    assert report.features["embedding"].lidar == pytest.approx(lidar(embeddings.reshape(20, 3, 4)), rel=1e-4)
    assert report.features["representation"].lidar is not None
    assert report.features["two"].lidar is None
    assert report.features["embedding"].dim == 4


class Switching(nn.Module):
    """A representation that is the last stage averaged, until an image has a negative first pixel."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 12, 8)

    def stages(self, images):
        last = self.layer(images)
        representation = last.flatten(1)
        negative = images[:, 0, 0, 0] < 0
        return {"last": last, "representation": torch.where(negative[:, None], 2 * representation + 1, representation)}


@pytest.mark.parametrize("from_batch", [None, 0, 1, 2])
def test_a_representation_equal_to_the_last_stage_is_accumulated_once(images, from_batch, monkeypatch):
    images = images.abs()
    if from_batch is not None:
        images[20 * from_batch :, 0, 0, 0] *= -1
    updates, update = [], StreamingCovariance.update
    monkeypatch.setattr(
        StreamingCovariance, "update", lambda self, rows, *more: (updates.append(rows), update(self, rows))
    )
    model = Switching()
    views = images[:60].reshape(20, 3, 3, 8, 8)
    report = spectral_report(model, images, batch_size=20, layers=["last", "representation"], views=views)
    # Four batches, and the representation's own from where it differs.
    assert len(updates) == 4 + (0 if from_batch is None else 4 - from_batch)
    with torch.no_grad():
        outputs = model.stages(images)
    for layer in ("last", "representation"):
        found = report.features[layer]
        np.testing.assert_allclose(found.eigenvalues, _oracle(outputs[layer].flatten(1)), rtol=0, atol=1e-10)
        assert found.num_images == 70
    assert (report.features["last"].pool, report.features["representation"].pool) == ("avg", "none")
    assert report.features["last"].lidar is None
    assert report.features["representation"].lidar > 0


def test_views_in_batches_give_the_same_lidar(images):
    views = images[:60].reshape(20, 3, 3, 8, 8)
    whole, parts = (spectral_report(Stub(), images, views=v) for v in (views, iter(views.split(7))))
    assert parts.features["representation"].lidar == pytest.approx(whole.features["representation"].lidar, rel=1e-6)


def test_weights_under_spectral_norm_are_read_without_moving_its_vectors():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    spectral_report(layer)
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    assert layer.training


def test_flattened_maps_beyond_the_limit_are_sketched_and_the_report_says_so(images):
    report = spectral_report(Stub(), images, pool="flatten", max_dim=200, layers=["input", "two", "one"])
    exact = spectral_report(Stub(), images, pool="flatten", layers=["one"]).features["one"]
    sketched = report.features["one"]
    assert (sketched.dim, sketched.exact, sketched.pool, len(sketched.eigenvalues)) == (216, False, "flatten", 108)
    assert sketched.num_non_positive is None
    # 70 images span fewer dimensions than the sketch has: it must be right.
    torch.testing.assert_close(sketched.eigenvalues, exact.eigenvalues[:108], rtol=0, atol=1e-9)
    assert sketched.total_variance == pytest.approx(exact.total_variance)
    assert (report.features["input"].exact, report.features["two"].exact) == (True, True)
    assert any("one has 216 dimensions, more than max_dim = 200" in note for note in report.notes)
    assert "≥ 69 / 69" in report.table()


@pytest.mark.parametrize(
    ("name", "stages", "dim", "weight"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"], 512, "conv1.*"),
        ("convnext_atto", ["stages.0", "stages.1", "stages.2", "stages.3"], 320, "stem*"),
        ("swin_tiny_patch4_window7_224", ["layers.0", "layers.1", "layers.2", "layers.3"], 768, "patch*"),
        ("vit_tiny_patch16_224", ["blocks.2", "blocks.5", "blocks.8", "blocks.11"], 192, "patch*"),
    ],
)
def test_stages_of_timm_models_are_found_and_the_representation_is_before_the_classifier(name, stages, dim, weight):
    size = {} if "resnet" in name or "convnext" in name else {"img_size": 32}
    if "swin" in name:
        size["window_size"] = 2
    model = timm.create_model(name, num_classes=7, **size)
    images = torch.randn(6, 3, 32, 32)
    report = spectral_report(model, images, include=weight, batch_size=3, max_dim=1000)
    patches = ["patch_tokens"] if name.startswith("vit") else []
    assert list(report.features) == ["input", *stages, *patches, "representation"]
    assert report.features["representation"].dim == dim
    with torch.no_grad():
        features = model.eval().forward_features(images)
        oracle = _oracle(model.forward_head(features, pre_logits=True))
    np.testing.assert_allclose(report.features["representation"].eigenvalues, oracle, rtol=0, atol=1e-5)
    if "swin" in name:
        # Channels come last in this one: 96, not the 16 rows of the map.
        assert report.features["layers.0"].dim == 96


def test_transformers_models_are_read():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], layer_type="basic")
    report = spectral_report(ResNetForImageClassification(config), torch.randn(9, 3, 32, 32), max_dim=1000)
    dims = {layer: spectrum.dim for layer, spectrum in report.features.items()}
    stages = [layer for layer in dims if "stages" in layer]
    assert [dims[stage] for stage in stages] == [8, 12, 16, 20]
    assert dims["representation"] == 20
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16
    )
    report = spectral_report(ViTModel(vit, add_pooling_layer=False), torch.randn(9, 3, 32, 32), max_dim=1000)
    assert {layer: spectrum.dim for layer, spectrum in report.features.items()} == {
        "input": 3072, "layers.0": 16, "layers.1": 16, "class_token": 16, "patch_tokens": 16, "representation": 16
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layers": ["tow"]}, r"no layer 'tow': did you mean 'two'"),
        ({"layers": ["embedding"]}, "needs the projector"),
        ({"layers": ["unused"]}, "not used in the model's forward pass"),
        ({"pool": "max"}, "pool must be one of avg, flatten, got 'max'"),
        ({"batch_size": 0}, "batch_size"),
        ({"images": None, "layers": ["two"]}, "need images"),
        ({"images": torch.randn(1, 3, 8, 8)}, "at least 2 images for a covariance, got 1"),
        ({"images": torch.zeros(0, 3, 8, 8)}, "at least 2 images for a covariance, got 0"),
        ({"images": []}, "at least 2 images for a covariance, got 0"),
        ({"images": torch.randn(3, 8, 8)}, r"images must be \(N, C, H, W\)"),
        ({"images": [{"label": 1}]}, r"'pixel_values', got the keys \['label'\]"),
        ({"images": ["cat.png"]}, "got 'cat.png'"),
        ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, "normalized, finite floats, got torch.uint8"),
        ({"images": torch.full((4, 3, 8, 8), float("nan"))}, "NaN or infinity"),
        ({"images": [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 9, 9)]}, "same size"),
        ({"views": torch.randn(4, 1, 3, 8, 8)}, "views has shape"),
        ({"include": "frist*"}, "first.weight"),
    ],
)
def test_bad_input_is_refused_in_one_line(images, kwargs, message):
    model = Stub()
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message) as caught:
        spectral_report(model, **{"images": images, **kwargs})
    assert "\n" not in str(caught.value)


def test_divergence_is_named_by_weight_and_by_layer(images):
    model = Stub()
    model.norm.running_var.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"layer 'one': .*diverged"):
        spectral_report(model, images)
    model.second.weight.data[0] = float("inf")
    with pytest.raises(ValueError, match=r"weight 'second\.weight': .*diverged"):
        weight_spectra(model)


def test_a_model_without_recognizable_stages_is_read_at_its_ends_and_says_so(images):
    report = spectral_report(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), images)
    assert list(report.features) == ["input", "representation"]
    assert "No stages were recognized" in report.notes[-1]


def test_stages_and_their_last_weights_by_name():
    names = ["conv1", "layer1", "layer1.0", "layer1.1", "layer2", "layer2.0", "layer2.1"]
    assert guess_stages(names) == ["layer1", "layer2"]
    assert guess_stages(["encoder", "encoder.layer.0", "encoder.layer.0.x", "encoder.layer.1"]) == [
        "encoder.layer.0",
        "encoder.layer.1",
    ]
    assert guess_stages(["a", "b"]) == []
    model = timm.create_model("resnet50")
    weights = [name for name, p in model.named_parameters() if p.ndim > 1]
    last = [f"layer{i}.{n}.conv3.weight" for i, n in ((1, 2), (2, 3), (3, 5), (4, 2))]
    assert last_weights(weights) == last
    assert last_weights(["a.weight", "b.weight"]) == ["a.weight", "b.weight"]


class WithLoss(nn.Sequential):
    def forward(self, images):
        logits = super().forward(images)
        return {"loss": logits.mean(), "logits": logits}


def test_layers_of_a_model_that_returns_a_dict_are_measured(images):
    torch.manual_seed(0)
    model = WithLoss(nn.Flatten(), nn.Linear(192, 5))
    found = spectral_report(model, images, layers=["1"]).features
    with torch.no_grad():
        np.testing.assert_allclose(found["1"].eigenvalues, _oracle(model[1](images.flatten(1))), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="'representation' returned dict"):
        spectral_report(model, images)
    never = iter(lambda: pytest.fail("images were read"), None)
    with pytest.raises(ValueError, match="no layer 'representatoin': did you mean 'representation'"):
        spectral_report(model, never, layers=["representatoin"])
