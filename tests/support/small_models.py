"""SSL models small enough for float64, and training steps of theirs on one process or shared out over several."""

import contextlib
from dataclasses import dataclass

import torch
import torch.distributed as dist
from tiny_encoder import TinyEncoder
from tiny_teacher import tiny_teacher
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hf_orthossl.configuration import SSLConfig
from hf_orthossl.distributed.collectives import all_reduce_mean, rank, world_size
from hf_orthossl.distributed.sync_batchnorm import synchronize_batchnorm
from hf_orthossl.encoders import load_encoder
from hf_orthossl.methods import Progress, get_method
from hf_orthossl.modeling import SSLModel

IMAGES, STEPS = 16, 4
SIZES = {"hidden_dim": 16, "output_dim": 6, "predictor_dim": 8, "prototypes": 9, "bottleneck_dim": 6, "queue_size": 32}
SIZES |= {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2, "predictor_depth": 1, "predictor_heads": 2}
SIZES |= {"patch_prototypes": 7, "patch_bottleneck_dim": 5}


class PlainEncoder(nn.Module):
    """Without batch norm: what an image gives does not depend on the others."""

    num_features = 12

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 12)
        )

    def forward(self, images):
        return self.layers(images)


ENCODERS = {
    "tiny": TinyEncoder,
    "plain": PlainEncoder,
    # Sixteen patches, a class token and a register.
    "vit": lambda: load_encoder(
        "test_vit", image_size=8, patch_size=2, embed_dim=12, depth=2, num_heads=2, reg_tokens=1, dynamic_img_size=True
    ),
    # timm's batch norm with activation, depthwise convolutions.
    "efficientnet": lambda: load_encoder("test_efficientnet", image_size=32),
}


def encoder_for(method: str, kind: str = "tiny") -> nn.Module:
    """An encoder of a kind, or a vision transformer if the method needs one, or the map that the others pool."""
    return ENCODERS["vit" if get_method(method).needs_patches or method == "simmim" else kind]()


def required(method: str) -> dict:
    """The hyper-parameters without which a method cannot be built."""
    return {"teacher": tiny_teacher()} if method == "distill" else {}


@dataclass(frozen=True)
class Run:
    """What [`train`] trains and how."""

    method: str
    encoder: str = "tiny"
    micro_batches: int = 1
    whitening: float = 0.0
    regularizer: str | None = None
    gradient_cache: int | None = None
    sharded: bool = False
    embedding: str | None = None
    layer: str = "embedding"
    size: int = 8


def small_model(run: Run) -> SSLModel:
    torch.manual_seed(0)
    known = get_method(run.method).config_class.from_dict(None).to_dict()
    config = SSLConfig(
        method=run.method,
        method_config={key: value for key, value in SIZES.items() if key in known} | required(run.method),
        whitening=run.whitening,
        regularizer=run.regularizer,
        gamma=0.01,
        embedding_regularizer=run.embedding,
        embedding_weight=0.5 if run.embedding else None,
        embedding_layer=run.layer,
    )
    return SSLModel(config, encoder_for(run.method, run.encoder)).double()


def views_of_step(step: int, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(IMAGES, 3, size, size, generator=generator, dtype=torch.float64)
    return [images + 0.5 * torch.randn(images.shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def train(run: Run) -> dict:
    """Losses, gradients of every step, what was logged, and the state in the end; on all processes there are."""
    model = synchronize_batchnorm(small_model(run))
    model.gradient_cache = run.gradient_cache
    wrapped = distributed(model, run.sharded) if dist.is_initialized() else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    losses, gradients, spread = [], [], []
    for step in range(STEPS):
        model.begin_step(Progress(step, STEPS, steps_per_epoch=1))
        loss = 0
        for number in range(run.micro_batches):
            last = number == run.micro_batches - 1
            share = number * world_size() + rank()
            mine = [view.chunk(run.micro_batches * world_size())[share] for view in views_of_step(step, run.size)]
            with contextlib.nullcontext() if last or wrapped is model else wrapped.no_sync():
                output = wrapped(mine, penalty_weight=run.micro_batches if last else 0)
                (output.loss / run.micro_batches).backward()
            loss = loss + all_reduce_mean(output.loss.detach()) / run.micro_batches
            spread.append(output.parts["embedding_std"])
        model.before_optimizer_step()
        losses.append(loss)
        gradients.append({n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
        model.end_step()
    state = {key: whole(value) for key, value in model.state_dict().items()}
    return {"losses": losses, "gradients": gradients, "spread": spread, "state": state}


def distributed(model: SSLModel, sharded: bool) -> nn.Module:
    """Wrapped as accelerate does for data parallelism, or sharded over processes (FSDP2)."""
    if not sharded:
        return DistributedDataParallel(model)
    for module in [*model.modules()]:
        if isinstance(module, TinyEncoder | PlainEncoder):
            fully_shard(module)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which each process may hold a part."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def assert_same_training(record: dict, expected: dict, tolerance: float = 1e-9) -> None:
    assert expected["gradients"][0].keys() == record["gradients"][0].keys()
    torch.testing.assert_close(record, expected, rtol=tolerance, atol=tolerance)
