"""A network of the user's own: trained, measured, and never exported half."""

import logging

import pytest
import torch
import torchvision
from survival_runs import digits, tiny_arguments
from torch import nn

from hf_orthossl import ModuleEncoder, OrthoSSLTrainer, SSLConfig, SSLModel, export_encoder, pretrain, spectral_report
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history


class Own(nn.Module):
    """A feature map `(B, 12, H/4, W/4)`."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU())

    def forward(self, images):
        return self.layer2(self.layer1(images))


def test_a_feature_map_is_averaged_and_stages_are_found():
    network = Own().eval()
    encoder = ModuleEncoder(network, 32, name="mine").eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(images), network(images).flatten(2).mean(2))
    assert encoder.stage_names == ["layer1", "layer2", "representation"]
    assert (encoder.num_features, encoder.name, encoder.image_size) == (12, "mine", 32)
    assert encoder.mean == (0.485, 0.456, 0.406)
    of_network = spectral_report(network, images, layers=["layer1"]).features["layer1"]
    assert spectral_report(encoder, images).features["layer1"].total_variance == pytest.approx(
        of_network.total_variance
    )


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_both_fronts_train_it_and_what_is_recorded_is_its_name(front, tmp_path):
    torch.manual_seed(0)
    network = Own()
    before = network.layer1[0].weight.detach().clone()
    model = SSLModel(SSLConfig(method="simclr", image_size=32, method_config={"hidden_dim": 8}), encoder=network)
    assert (model.config.backbone, model.encoder.image_size) == ("Own", 32)
    args = tiny_arguments(tmp_path, max_steps=2, logging_steps=1, save_strategy="no", gradient_accumulation_steps=1)
    if front == "loop":
        pretrain_loop(model, digits(), args, write_encoder=False)
    else:
        OrthoSSLTrainer(model, args, train_dataset=digits(), write_encoder=False).train()
    assert len([entry for entry in read_history(tmp_path) if "loss" in entry]) == 2
    assert not torch.equal(network.layer1[0].weight, before)


def test_an_export_is_refused_before_the_first_step_with_the_remedy(tmp_path):
    model = SSLModel(SSLConfig(image_size=32), encoder=Own())
    with pytest.raises(ValueError, match=r"network of your own, .*save_file.* and train with write_encoder=False"):
        export_encoder(model.encoder, tmp_path / "encoder")
    with pytest.raises(ValueError, match="write_encoder=False"):
        OrthoSSLTrainer(model, tiny_arguments(tmp_path / "run"), train_dataset=digits()).train()
    assert not (tmp_path / "encoder").exists()
    assert not (tmp_path / "run" / "encoder").exists()


def test_torchvision_with_and_without_its_classifier(caplog):
    network = torchvision.models.resnet18()
    with caplog.at_level(logging.WARNING, "hf_orthossl"):
        assert ModuleEncoder(network, 32).num_features == 1000
    assert "what its classifier fc returns, 1000 numbers" in caplog.text
    caplog.clear()
    network.fc = nn.Identity()
    encoder = ModuleEncoder(network, 32)
    assert encoder.num_features == 512
    assert encoder.stage_names == ["layer1", "layer2", "layer3", "layer4", "representation"]
    assert not caplog.text


def test_what_cannot_be_an_encoder_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"its output is of shape \(1, 4, 36\), and must be a tensor \(B, D\)"):
        ModuleEncoder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2)), 8)
    with pytest.raises(ValueError, match="'Flatten' has no parameters"):
        ModuleEncoder(nn.Flatten())
    with pytest.raises(TypeError, match="encoder must be a torch module"):
        ModuleEncoder("resnet18")
    with pytest.raises(TypeError, match="model is Own: pass SSLModel"):
        OrthoSSLTrainer(Own(), tiny_arguments(tmp_path), train_dataset=digits())
    with pytest.raises(
        ValueError, match="backbone is a Own: pass the name of a backbone, or train a network of your own"
    ):
        pretrain("digits", backbone=Own())


def test_its_own_switch_recomputes_activations():
    encoder = ModuleEncoder(Own(), 32)
    with pytest.raises(ValueError, match="it has no method set_grad_checkpointing"):
        encoder.set_gradient_checkpointing()
