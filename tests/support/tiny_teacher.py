"""Encoder folders small enough to be teachers in tests."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import torch

from hf_orthossl.encoders import load_encoder
from hf_orthossl.encoders.export import export_encoder


@functools.cache
def tiny_teacher(backbone: str = "test_vit", **arguments) -> str:
    """The path of an encoder folder with random weights, the same in each process that asks for one."""
    folder = Path(tempfile.mkdtemp(prefix="teacher-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_teacher(folder, backbone, **(arguments or {"image_size": 16, "patch_size": 4}))


def write_teacher(folder: Path, backbone: str = "test_vit", seed: int = 7, **arguments) -> str:
    """An encoder folder with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = load_encoder(backbone, **arguments)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        export_encoder(encoder, folder)
    return str(folder)
