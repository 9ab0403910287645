"""Recomputed activations give the run that kept ones give: losses, gradients, statistics, random numbers."""

import contextlib
import copy

import pytest
import torch
from engines_on_cpu import ddp, fsdp2
from live_memory import LiveMemory
from survival_runs import digits, tiny_arguments
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_orthossl import OrthoSSLTrainer, SSLConfig, SSLModel, load_encoder
from hf_orthossl.cli import main
from hf_orthossl.distributed.sharding import gather_module
from hf_orthossl.encoders import Encoder
from hf_orthossl.encoders.checkpointing import keep_statistics
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history

VIT = {"depth": 3, "embed_dim": 24, "num_heads": 2, "patch_size": 8, "drop_path_rate": 0.3, "proj_drop_rate": 0.2}
RESNET = {"channels": [8, 8, 16, 16]}
BACKBONES = {
    "resnet10t": RESNET,
    "vit_tiny_patch16_224": VIT,
    "wide_resnet28_2": {"depth": 10, "widen_factor": 1},
    "resnet18_cifar": {"channels": [8, 8, 16, 16]},
}
ENGINES = {"one": contextlib.nullcontext, "ddp": ddp, "fsdp2": fsdp2}


def gradients(encoder, images):
    """Representations, gradients and buffers of one step, each as it was computed."""
    encoder.zero_grad()
    torch.manual_seed(3)
    representations = encoder(images)
    representations.square().sum().backward()
    taken = {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}
    return representations.detach(), taken, {name: buffer.clone() for name, buffer in encoder.named_buffers()}


@pytest.mark.parametrize("name", BACKBONES)
def test_one_step_is_the_same_bit_for_bit(name):
    kept = load_encoder(name, image_size=32, **BACKBONES[name]).double()
    recomputed = copy.deepcopy(kept)
    recomputed.set_gradient_checkpointing()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    before, after = gradients(kept, images), gradients(recomputed, images)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert any(buffer.any() for buffer in after[2].values()) == any(isinstance(m, _BatchNorm) for m in kept.modules())


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("vit", {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}),
        ("resnet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}),
    ],
)
def test_networks_of_transformers(model_type, settings, tmp_path):
    from transformers import AutoConfig

    AutoConfig.for_model(model_type, image_size=32, **settings).save_pretrained(tmp_path)
    kept = load_encoder(tmp_path).double()
    recomputed = copy.deepcopy(kept)
    if model_type == "resnet":
        with pytest.raises(
            ValueError, match=r"gradient_checkpointing cannot be used with backbone .*: omit it, or pass"
        ):
            recomputed.set_gradient_checkpointing()
        return
    recomputed.set_gradient_checkpointing()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(gradients(recomputed, images), gradients(kept, images), rtol=0, atol=0)


def test_stages_are_read_although_blocks_are_passed_over():
    """timm calls the blocks of a stage, not the stage, while it recomputes."""
    encoder = load_encoder("resnet10t", image_size=32, **RESNET)
    images = torch.randn(2, 3, 32, 32)
    expected = encoder.eval().stages(images)
    encoder.set_gradient_checkpointing()
    found = encoder.stages(images)
    assert list(found) == encoder.stage_names
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert encoder.backbone.grad_checkpointing
    with torch.no_grad():
        seen = []
        encoder.backbone.layer1.register_forward_hook(lambda *given: seen.append(True))
        encoder(images)
    assert seen
    encoder.set_gradient_checkpointing(False)
    assert not encoder.backbone.grad_checkpointing


@pytest.mark.parametrize(("name", "share"), [("resnet26", 0.85), ("vit_tiny_patch16_224", 0.4)])
def test_memory_falls(name, share):
    peaks = []
    for checkpointed in (False, True):
        encoder = load_encoder(name, image_size=64)
        encoder.set_gradient_checkpointing(checkpointed)
        images = torch.randn(64, 3, 64, 64)
        for parameter in encoder.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with LiveMemory() as memory:
            encoder(images).sum().backward()
        peaks.append(memory.peak)
    assert peaks[1] < share * peaks[0]


class Counting(nn.Module):
    """A layer that changes what it computes with, as spectral norm does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def test_a_layer_that_would_compute_something_else_the_second_time_is_named():
    encoder = load_encoder("resnet10t", image_size=32, **RESNET)
    encoder.backbone.layer1[0].act1 = Counting()
    encoder.set_gradient_checkpointing()
    with pytest.raises(ValueError, match="recomputes Counting, which changes its buffer 'calls'"):
        encoder(torch.randn(2, 3, 32, 32)).sum().backward()


def test_layers_are_watched_once():
    norm = nn.BatchNorm2d(3)
    keep_statistics(norm)
    keep_statistics(norm)
    assert (len(norm._forward_pre_hooks), len(norm._forward_hooks)) == (1, 1)


def fit(engine, front, folder, checkpointed, *, backbone="resnet10t", config=None, **settings):
    """Trains a tiny model here in float64; losses and, on the main process, the weights and buffers in the end."""
    with ENGINES[engine]():
        torch.manual_seed(0)
        arguments = {"backbone": backbone, "backbone_config": BACKBONES[backbone], "image_size": 32, "method": "byol"}
        model = SSLModel(SSLConfig(**arguments | (config or {}))).double()
        for module in model.modules():
            if isinstance(module, Encoder):
                module.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        defaults = {"gradient_accumulation_steps": 1, "max_steps": 3, "logging_steps": 1, "save_strategy": "no"}
        defaults |= {"per_device_train_batch_size": 32 if engine == "one" else 16, "learning_rate": 0.02}
        defaults |= {"spectra_steps": 0, "gradient_checkpointing": checkpointed}
        args = tiny_arguments(folder, **defaults | settings)
        if front == "loop":
            pretrain_loop(model, digits(96), args)
        else:
            OrthoSSLTrainer(model=model, args=args, train_dataset=digits(96)).train()
        switched = [module.gradient_checkpointing for module in model.modules() if isinstance(module, Encoder)]
        encoder = gather_module(model.encoder)
        state = encoder and {name: value.clone() for name, value in encoder.state_dict().items()}
        losses = [entry["loss"] for entry in read_history(folder) if "loss" in entry] if state else None
        return losses, state, switched


def fit_here(arguments, settings):
    return fit(*arguments, **settings)


@pytest.mark.parametrize("front", ["trainer", "loop"])
@pytest.mark.parametrize("backbone", ["resnet10t", "vit_tiny_patch16_224"])
def test_a_run_is_the_same_bit_for_bit(front, backbone, tmp_path):
    """BYOL: its momentum encoder, which has no gradient, keeps its activations."""
    settings = {"backbone": backbone, "config": {"regularizer": "so"}}
    kept, state, none = fit("one", front, tmp_path / "kept", False, **settings)
    recomputed, again, switched = fit("one", front, tmp_path / "recomputed", True, **settings)
    assert (none, switched) == ([False, False], [True, False])
    assert len(kept) == 3
    assert recomputed == kept
    torch.testing.assert_close(again, state, rtol=0, atol=0)


@pytest.mark.parametrize("more", [{"gradient_cache": 8}, {"gradient_accumulation_steps": 2}])
def test_with_chunks_and_accumulation(more, tmp_path):
    settings = {"per_device_train_batch_size": 16, **more}
    kept, state, _ = fit("one", "loop", tmp_path / "kept", False, **settings)
    recomputed, again, _ = fit("one", "loop", tmp_path / "recomputed", True, **settings)
    assert recomputed == kept
    torch.testing.assert_close(again, state, rtol=0, atol=0)


@pytest.mark.parametrize(("engine", "front"), [("ddp", "loop"), ("ddp", "trainer"), ("fsdp2", "loop")])
def test_on_two_processes(engine, front, two_processes, tmp_path):
    kept = two_processes.run(fit_here, (engine, front, tmp_path / "kept", False), {})[0]
    recomputed = two_processes.run(fit_here, (engine, front, tmp_path / "recomputed", True), {})[0]
    assert len(kept[0]) == 3
    assert recomputed[0] == pytest.approx(kept[0], rel=1e-12)
    torch.testing.assert_close(recomputed[1], kept[1], rtol=1e-9, atol=1e-12)


def test_the_command_refuses_or_records(tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["pretrain", "--dataset", "digits", "--split", "train[:16]", "--max_steps", "1", "--spectra_steps", "0"]
    command += ["--per_device_train_batch_size", "8", "--knn_images", "0", "--output_dir", str(folder)]
    command += ["--disable_tqdm", "true", "--gradient_checkpointing"]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--backbone", "linear"])
    error = capsys.readouterr().err
    assert "gradient_checkpointing cannot be used with backbone 'linear'" in error
    assert len(error.strip().splitlines()) == 1
    assert not folder.exists()
    main(command)
    assert "activations recomputed (gradient checkpointing)" in (folder / "encoder" / "README.md").read_text()
