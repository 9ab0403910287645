"""Encoders whose weights FSDP2 shards over two processes: put together, exported, watched."""

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_orthossl.data import load_source
from hf_orthossl.distributed.collectives import rank
from hf_orthossl.distributed.sharding import block_classes, gather_module, has_sharded_weights
from hf_orthossl.encoders import export_encoder, load_encoder
from hf_orthossl.evaluation import KNNMonitor
from hf_orthossl.training import KNNCallback, SpectraCallback

PLAIN = {"channels": [8, 8, 16, 16]}


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
    with pytest.raises(ValueError, match="sharded over processes"):
        export_encoder(encoder, folder / "never")
    whole = gather_module(encoder)
    part = gather_module(encoder, {"backbone.layer4.0.conv2.weight"})
    assert has_sharded_weights(encoder)
    assert all(isinstance(parameter, DTensor) for parameter in encoder.parameters())
    if rank():
        return whole
    assert not has_sharded_weights(whole)
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
