"""Detectors on encoders: the weights really are the encoder's, and the whole chain learns."""

import pytest
import torch
from torch import nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from hf_orthossl import load_encoder
from hf_orthossl.evaluation.detection import (
    build_detector,
    detect,
    detection_scores,
    detection_splits,
    finetune_detector,
)
from hf_orthossl.evaluation.detection.detr import DETR, load_into_backbone, timm_backbone_config
from hf_orthossl.evaluation.detection.models import feature_levels

NETS = ("test_resnet", "test_convnext", "test_efficientnet")
SMALL_DETR = {
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_in_channels": [32, 32, 32],
    "num_queries": 20,
    "num_denoising": 10,
}


@pytest.fixture(scope="module")
def splits():
    return detection_splits("shapes", train_split="train[:16]", test_split="test[:4]")


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96)


def trained(name):
    """An encoder whose weights and statistics no constructor makes."""
    encoder = load_encoder(name)
    for tensor in encoder.backbone.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.2 + 0.05)
    return encoder


def batch(count=2, side=64):
    images = [torch.randint(0, 256, (3, side, side + 32 * (i % 2)), dtype=torch.uint8) for i in range(count)]
    targets = [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])} for _ in range(count)]
    return images, targets


@pytest.mark.parametrize("name", NETS)
def test_the_encoders_weights_are_the_detectors(name, images):
    encoder = trained(name)
    state = encoder.backbone.state_dict()
    maps = encoder.eval().backbone.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")

    fpn = build_detector(encoder, 3, "fpn", image_size=64, fpn_channels=8).eval()
    trunk = fpn.network.backbone.trunk
    carried = trunk.body.state_dict()
    assert carried.keys() == state.keys()
    assert all(torch.equal(carried[key], tensor) for key, tensor in state.items())
    assert not {part.data_ptr() for part in carried.values()} & {part.data_ptr() for part in state.values()}
    for level, features in zip(feature_levels(encoder)[-4:], trunk(images), strict=True):
        assert torch.equal(features, maps[level.index])

    c4 = build_detector(encoder, 3, "c4", image_size=64).eval()
    before = c4.network.backbone.trunk(images)[0]
    assert torch.equal(before, maps[-2])
    stage = c4.network.roi_heads.box_head.stage
    assert torch.allclose(stage(before), maps[-1], atol=1e-6)
    assert sum(part.numel() for part in stage.parameters()) > 0
    # The last stage is the second stage's head alone, not in the trunk again.
    assert len(c4.network.backbone.trunk.state_dict()) + len(stage.state_dict()) == len(state)

    detr = build_detector(encoder, 3, "detr", image_size=64).eval()
    carried = detr.network.state_dict()
    prefix = "model.backbone.model._backbone."
    for level, features in zip(
        feature_levels(encoder)[-3:], detr.network.model.backbone.model(images).feature_maps, strict=True
    ):
        assert torch.equal(features, maps[level.index])
    if name == "test_resnet":
        loaded = {key.removeprefix(prefix): tensor for key, tensor in carried.items() if key.startswith(prefix)}
        assert len(loaded) > 50
        assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.items())


@pytest.mark.parametrize("image_size", [32, 100, 250])
def test_strides_are_the_architectures_at_any_size(image_size):
    for name, coarsest in (("test_resnet", 32), ("resnet18_cifar", 8)):
        levels = feature_levels(load_encoder(name, image_size=image_size))
        strides = [stride for stride in (2, 4, 8, 16, 32) if stride <= coarsest]
        assert [level.stride for level in levels] == strides


@pytest.mark.parametrize("family", ["detr", "deformable_detr", "rt_detr_v2"])
def test_any_detr_takes_the_weights(family, images):
    encoder = trained("test_resnet")
    backbone = timm_backbone_config(encoder, [2, 3, 4])
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    if family == "detr":
        network = DetrForObjectDetection(DetrConfig(backbone_config=backbone, **small))
    elif family == "deformable_detr":
        small |= {"num_feature_levels": 3}
        network = DeformableDetrForObjectDetection(DeformableDetrConfig(backbone_config=backbone, **small))
    else:
        channels = [level.channels for level in feature_levels(encoder)[-3:]]
        network = RTDetrV2ForObjectDetection(
            RTDetrV2Config(backbone_config=backbone, encoder_in_channels=channels, **SMALL_DETR)
        )
    maps = encoder.eval().backbone.forward_intermediates(images, indices=[2, 3, 4], intermediates_only=True)
    body = network.eval().model.backbone.model
    body = getattr(body, "_backbone", body)
    assert not torch.allclose(body(images)[-1], maps[-1])
    assert load_into_backbone(network, encoder) is body
    for ours, theirs in zip(maps, body(images), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="does not fit"):
        load_into_backbone(network, load_encoder("test_efficientnet"))
    with pytest.raises(ValueError, match="0 timm backbones"):
        load_into_backbone(nn.Linear(2, 2), encoder)


@pytest.mark.parametrize("head", ["fpn", "c4", "detr"])
@pytest.mark.parametrize("mode", ["trained", "frozen"])
def test_batch_norm(head, mode):
    encoder = trained("test_resnet")
    detector = build_detector(encoder, 3, head, image_size=64, batch_norm=mode, roi_samples=8, fpn_channels=8)
    named = {name: module for name, module in detector.named_modules() if isinstance(module, nn.BatchNorm2d)}
    own = [module for name, module in named.items() if any(part in name for part in ("_backbone", "trunk", "stage"))]
    heads = [module for module in named.values() if module not in own]
    before = [module.running_mean.clone() for module in own]
    detector.train()
    sum(detector(*batch()).values()).backward()
    moved = [not torch.equal(module.running_mean, mean) for module, mean in zip(own, before, strict=True)]
    learning = [module.weight.requires_grad and module.weight.grad is not None for module in own]
    assert len(own) == sum(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    assert all(moved) if mode == "trained" else not any(moved)
    assert all(learning) if mode == "trained" else not any(learning)
    assert all(module.training and module.weight.requires_grad for module in heads)
    assert bool(heads) == (head == "detr")
    assert detector.settings["batch_norm"] == mode


@pytest.mark.parametrize("head", ["fpn", "c4", "detr"])
def test_images_of_several_sizes_and_without_boxes(head):
    detector = build_detector(load_encoder("test_resnet"), 2, head, image_size=64, roi_samples=8, fpn_channels=8)
    images, targets = batch(3)
    targets[1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    for given in (targets, [targets[1]] * 3):
        loss = sum(detector(images, given).values())
        assert torch.isfinite(loss)
        loss.backward()
    detector.eval()
    with torch.no_grad():
        found = detector(images)
    for image, part in zip(images, found, strict=True):
        height, width = image.shape[1:]
        assert len(part["boxes"]) == len(part["scores"]) == len(part["labels"]) <= 100
        assert part["labels"].numel() == 0 or 0 <= int(part["labels"].min()) <= int(part["labels"].max()) <= 1
        assert (part["boxes"] >= 0).all()
        assert (part["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert (part["scores"].diff() <= 0).all()


def test_detr_reads_queries_as_its_family_does():
    class Fixed(nn.Module):
        def __init__(self, kind, logits):
            super().__init__()
            self.config = type("Config", (), {"model_type": kind})
            self.logits = torch.tensor(logits)

        def forward(self, pixels, labels=None):
            centres = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 1.0]]])
            return type("Output", (), {"pred_boxes": centres, "logits": self.logits[None]})

    def read(kind, logits):
        network = Fixed(kind, logits)
        detector = DETR(network, 2, {}, mean=(0, 0, 0), std=(1, 1, 1), side=32).eval()
        (part,) = detector([torch.zeros(3, 40, 80, dtype=torch.uint8)])
        return part

    boxes = [[20.0, 10, 60, 30], [0, 0, 40, 40]]
    part = read("rt_detr_v2", [[3.0, -9], [-9, 1.0]])
    assert part["boxes"][:2].tolist() == boxes
    assert part["labels"][:2].tolist() == [0, 1]
    assert part["scores"][:2].tolist() == pytest.approx([0.952574, 0.731059], abs=1e-5)
    # The first DETR's last class is "nothing": the second query is sure of it.
    part = read("detr", [[2.0, -9, 2.0], [-9, 1.0, 9.0]])
    assert part["boxes"][0].tolist() == boxes[0]
    assert part["scores"][:2].tolist() == pytest.approx([0.5, 0.000335], abs=1e-4)


def test_a_detector_learns_and_leaves_the_encoder_alone():
    train, _ = detection_splits("shapes", train_split="train[:4]", test_split="test[:1]")
    encoder = load_encoder("test_resnet")
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    torch.manual_seed(0)
    detector = build_detector(encoder, 3, "fpn", image_size=128, roi_samples=32, fpn_channels=32)
    state = torch.get_rng_state()
    settings = finetune_detector(detector, train, steps=80, batch_size=2, optimizer="adamw", learning_rate=2e-3)
    assert torch.equal(torch.get_rng_state(), state)
    assert settings | {"learning_rate": 2e-3, "steps": 80, "detector": "fpn", "image_size": 128} == settings
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
    assert not any(module.training for module in detector.modules())
    positions, found = detect(detector, train)
    assert positions == list(range(4))
    # Labels, scales and coordinates all have to be right for this.
    assert detection_scores(found, [train.truth(i) for i in positions], 3)["AP50"] > 0.3


def test_the_same_seed_gives_the_same_detector(splits):
    train, _ = splits

    def weights(seed):
        torch.manual_seed(1)
        detector = build_detector(load_encoder("test_resnet"), 3, "fpn", image_size=64, roi_samples=8, fpn_channels=8)
        settings = finetune_detector(detector, train, steps=2, batch_size=3, optimizer="sgd", seed=seed)
        assert settings["learning_rate"] == pytest.approx(0.01 / 3)
        return torch.cat([weight.flatten() for weight in detector.parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_what_is_no_detector(splits):
    train, _ = splits
    encoder = load_encoder("test_resnet")
    with pytest.raises(ValueError, match="head 'yolo' is unknown"):
        build_detector(encoder, 3, "yolo")
    with pytest.raises(ValueError, match="batch_norm 'off' is unknown"):
        build_detector(encoder, 3, batch_norm="off")
    with pytest.raises(ValueError, match="num_classes is 0"):
        build_detector(encoder, 0)
    with pytest.raises(ValueError, match="accepts only images of 160×160"):
        build_detector(load_encoder("test_coatnet"), 3)
    with pytest.raises(ValueError, match="one resolution"):
        build_detector(load_encoder("test_vit"), 3)
    with pytest.raises(ValueError, match="does not fit transformers'"):
        build_detector(load_encoder("resnet10t", channels=[8, 8, 16, 16]), 3, "detr")
    detector = build_detector(encoder, 2, image_size=64, fpn_channels=8)
    with pytest.raises(ValueError, match=r"shapes has 3 classes, the detector's head 2: .*num_classes=3"):
        finetune_detector(detector, train)
    detector = build_detector(encoder, 3, image_size=64, fpn_channels=8)
    for wrong, said in (
        ({"steps": 0}, "steps is 0"),
        ({"optimizer": "adam"}, "optimizer 'adam' is unknown"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
    ):
        with pytest.raises(ValueError, match=said):
            finetune_detector(detector, train, **wrong)
    next(detector.parameters()).data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="nan after 0 steps: lower the learning rate"):
        finetune_detector(detector, train, steps=2, batch_size=2)
