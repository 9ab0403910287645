"""Models that FSDP2 shards over two processes, through accelerate's engine: training, watching, resuming, export."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from fsdp_on_cpu import fsdp2
from safetensors.torch import load_file
from survival_runs import digits, tiny_arguments, tiny_model
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from hf_orthossl import OrthoSSLTrainer
from hf_orthossl.data import load_source
from hf_orthossl.encoders import block_classes, export_encoder, is_sharded, load_encoder, unsharded
from hf_orthossl.evaluation import KNNMonitor
from hf_orthossl.processes import rank
from hf_orthossl.training import KNNCallback, SpectraCallback, pretrain_loop

# Blocks with batch norm and matrices large enough to be shared out; no stochastic depth, which draws per process.
PLAIN = {"channels": [8, 8, 16, 16]}
WATCHED = {"spectra_steps": 2, "knn_steps": 4, "linear_probe_steps": 4}


def fit(front, folder, images=32, **changes):
    """Trains a tiny model in this process, or this process's part of it, and returns it."""
    config = {name: changes.pop(name) for name in ("method", "regularizer", "optim") if name in changes}
    optimizer = {"optim": config.pop("optim", "sgd"), "learning_rate": 0.02}
    model = tiny_model(backbone_config=PLAIN, method_config=None, **{"method": "byol", "gamma": 1e-2} | config)
    args = tiny_arguments(
        folder,
        **{"per_device_train_batch_size": images, "max_steps": 4, "logging_steps": 1, "save_strategy": "no"}
        | optimizer
        | changes,
    )
    if front == "loop":
        pretrain_loop(model, digits(), args)
    else:
        OrthoSSLTrainer(model=model, args=args, train_dataset=digits()).train()
    return model


def history(folder):
    return [json.loads(line) for line in (Path(folder) / "history.jsonl").read_text().splitlines()]


def weights_of(model):
    """Whole weights of the encoder, on the main process."""
    encoder = unsharded(model.encoder)
    return None if encoder is None else {name: p.clone() for name, p in encoder.state_dict().items()}


def fit_sharded(front, folder, **changes):
    with fsdp2():
        model = fit(front, folder, images=16, **changes)
        parts = [p for p in model.parameters() if isinstance(p, DTensor)]
        blocks = sum(isinstance(module, FSDPModule) for module in model.modules())
        return weights_of(model), blocks, len(parts) / len(list(model.parameters()))


@pytest.mark.parametrize(
    ("front", "changes"),
    [
        ("loop", {"method": "byol", "regularizer": "so", "optim": "lars"}),
        ("trainer", {"method": "swav", "regularizer": "srip", "gradient_accumulation_steps": 1, "max_grad_norm": 0.5}),
    ],
)
def test_a_sharded_run_is_that_of_one_process(front, changes, two_processes, tmp_path):
    """Losses, penalty, spectra and accuracies as logged, and the weights trained."""
    one = weights_of(fit(front, tmp_path / "one", **changes, **WATCHED))
    (sharded, blocks, share), (nothing, _, _) = two_processes.run(
        _fit_sharded_watched, front, tmp_path / "two", changes
    )
    assert nothing is None
    assert blocks > 4
    assert share == 1
    expected, found = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(found) >= 4
    for before, after in zip(expected, found, strict=True):
        assert before.keys() == after.keys()
        # Gradients are of the weights before the step: in the first entry of the same ones. Later on rounding grows.
        first = before["step"] == 1
        for name in before.keys() - {"grad_norm"} if not first else before:
            if not name.startswith("train_"):
                # An accuracy moves by whole images.
                tolerance = 0.03 if "top" in name else 0
                close = pytest.approx(before[name], rel=1e-5 if first else 1e-3, abs=tolerance + 1e-6)
                assert after[name] == close, name
    assert any("knn/top1" in entry for entry in found)
    assert any("linear_probe/top1" in entry for entry in found)
    for name, value in one.items():
        assert torch.allclose(sharded[name].float(), value.float(), rtol=1e-2, atol=1e-3), name


def _fit_sharded_watched(front, folder, changes):
    return fit_sharded(front, folder, **changes, **WATCHED)


@pytest.mark.slow
def test_resuming_a_sharded_run_changes_nothing(two_processes, tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2, "method": "mocov2plus"}
    (whole, _, _), _ = two_processes.run(_fit_sharded_queue, tmp_path / "run", changes)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    (resumed, _, _), _ = two_processes.run(_fit_sharded_queue, tmp_path / "run", changes | {"resume": True})
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    with pytest.raises(ValueError, match="was saved with FSDP and this run is without FSDP"):
        fit("loop", tmp_path / "run", **changes, resume=True)


def _fit_sharded_queue(folder, changes):
    with fsdp2():
        model = fit("loop", folder, images=16, **changes)
        return weights_of(model), 0, 0


def test_whole_weights_are_the_main_process_s_and_are_exported(two_processes, tmp_path):
    encoder = load_encoder("resnet10t", image_size=32, **PLAIN)
    images = torch.randn(4, 3, 32, 32)
    torch.save(encoder.state_dict(), tmp_path / "weights.pt")
    encoder.eval()
    with torch.no_grad():
        expected = encoder(images)
    (found, shapes, kept), others = two_processes.run(_shard_and_put_together, tmp_path, images)
    assert others is None
    assert torch.allclose(found, expected, atol=1e-6)
    saved = load_file(tmp_path / "encoder" / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in encoder.backbone.state_dict().items())
    # What was not asked for is not there, but has its shape.
    assert shapes == {name: p.shape for name, p in encoder.named_parameters()}
    assert kept == ["backbone.layer4.0.conv2.weight"]


def _shard_and_put_together(folder, images):
    encoder = load_encoder("resnet10t", image_size=32, **PLAIN)
    encoder.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    for module in encoder.modules():
        if type(module).__name__ in block_classes(encoder):
            fully_shard(module)
    fully_shard(encoder)
    with pytest.raises(ValueError, match="unsharded"):
        export_encoder(encoder, folder / "never")
    whole = unsharded(encoder)
    part = unsharded(encoder, {"backbone.layer4.0.conv2.weight"})
    assert is_sharded(encoder)
    assert all(isinstance(parameter, DTensor) for parameter in encoder.parameters())
    if rank():
        return whole
    assert not is_sharded(whole)
    export_encoder(whole, folder / "encoder")
    whole.eval()
    with torch.no_grad():
        found = whole(images)
    shapes = {name: p.shape for name, p in part.named_parameters()}
    return found, shapes, [name for name, p in part.named_parameters() if not p.is_meta]


def test_watching_a_sharded_model_of_one_s_own(two_processes):
    encoder = load_encoder("resnet10t", image_size=32, **PLAIN)
    expected = _watch(encoder, torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(5)))
    found, nothing = two_processes.run(_watch_sharded, encoder.state_dict())
    assert nothing == {}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def _watch(encoder, images):
    source = load_source("digits")
    monitor = KNNMonitor(source, None, 32, images=100, progress=False)
    scalars = {}
    for callback in (SpectraCallback(1, images=images), KNNCallback(monitor, 1)):
        callback.begin(encoder, [{"step": 1, "loss": 1.0}])
        scalars |= callback.measure(2, 10)
    return scalars


def _watch_sharded(weights):
    encoder = load_encoder("resnet10t", image_size=32, **PLAIN)
    encoder.load_state_dict(weights)
    fully_shard(encoder)
    return _watch(encoder, torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet10t", ["BasicBlock"]),
        ("vit_tiny_patch16_224", ["Block"]),
        ("swin_tiny_patch4_window7_224", ["SwinTransformerBlock"]),
        ("convnext_atto", ["ConvNeXtBlock"]),
        ("wide_resnet28_2", ["PreActivationBlock"]),
        ("linear", []),
    ],
)
def test_blocks_are_the_innermost_repeated_modules(name, expected):
    with torch.device("meta"):
        assert block_classes(timm.create_model(name)) == expected
