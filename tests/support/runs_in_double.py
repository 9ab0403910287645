"""Short runs in float64, in one process or as one of two, whose weights are compared."""

import contextlib

import torch
from engines_on_cpu import ddp, fsdp2
from survival_runs import digits, tiny_arguments, tiny_model
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hf_orthossl import OrthoSSLTrainer
from hf_orthossl.distributed.sharding import gather_module
from hf_orthossl.encoders import Encoder
from hf_orthossl.training import pretrain_loop

ENGINES = {"one": contextlib.nullcontext, "ddp": ddp, "fsdp2": fsdp2}


def fit(engine, front, folder, *, model, **settings):
    """Train a tiny model here for four steps, on this process's share of 32 images a step.

    Returns:
        Weights and buffers of the encoder, whole, on the main process; how many units FSDP made, and the share of
        parameters that it shards.
    """
    with ENGINES[engine]():
        # No stochastic depth: which samples it drops depends on the process.
        trained = tiny_model(
            **{"backbone_config": {"channels": [16, 16, 32, 32]}, "method_config": None} | model
        ).double()
        if trained.constraint is not None:
            # The start was made orthonormal in float32.
            trained.constraint.begin()
        for module in trained.modules():
            if isinstance(module, Encoder):
                module.register_forward_pre_hook(_in_double)
        trained.method.register_forward_pre_hook(_views_in_double)
        batch = 32 if engine == "one" else 16
        defaults = {"gradient_accumulation_steps": 1, "max_steps": 4, "logging_steps": 1, "save_strategy": "no"}
        defaults |= {"optim": "sgd", "learning_rate": 0.02, "per_device_train_batch_size": batch}
        args = tiny_arguments(folder, **defaults | settings)
        if front == "loop":
            pretrain_loop(trained, digits(160), args)
        else:
            OrthoSSLTrainer(model=trained, args=args, train_dataset=digits(160)).train()
        encoder = gather_module(trained.encoder)
        state = encoder and {name: value.clone() for name, value in encoder.state_dict().items()}
        sharded = [isinstance(parameter, DTensor) for parameter in trained.parameters()]
        units = sum(isinstance(module, FSDPModule) for module in trained.modules())
        return state, units, sum(sharded) / len(sharded)


def fit_here(arguments, settings):
    """Call [`fit`], for processes that take no keywords."""
    return fit(*arguments, **settings)


def assert_close(state, expected, *, rtol=1e-9, atol=1e-9):
    """Check that the weights and buffers of two runs agree."""
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(state[name].double(), value.double(), rtol=rtol, atol=atol), name


def _in_double(module, inputs):
    return (inputs[0].double(),)


def _views_in_double(module, inputs):
    encoder, views = inputs
    return encoder, [view.double() for view in views]
