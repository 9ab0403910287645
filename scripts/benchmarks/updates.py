"""Measure one update of the weights under each remedy: AdamW alone and with SO, Muon, AdaMuon, the constraint."""

import argparse
import copy
from collections.abc import Callable

import torch
from torch import nn

from hf_orthossl import OrthoSSLTrainingArguments
from hf_orthossl.encoders import load_encoder
from hf_orthossl.regularization import OrthogonalConstraint, OrthogonalityRegularizer
from hf_orthossl.training.optimizers import build_optimizer

from .measure import check_models, measure, peak_memory

MODELS = ("resnet18", "resnet50", "vit_small_patch16_224")
# Remedy → the optimizer that it goes with, the first being what the others are compared with.
REMEDIES = {
    "AdamW": "adamw_torch",
    "AdamW, SO in the loss": "adamw_torch",
    "AdamW, SO decoupled": "adamw_torch",
    "AdamW, orthonormal weights": "adamw_torch",
    "Muon": "muon",
    "AdaMuon": "adamuon",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--models", nargs="+", default=MODELS, help="timm names of the encoders")


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row for each encoder and remedy; prints them as they are measured."""
    check_models(args.models)
    print("after the backward pass of the method's loss: penalty, optimizer, and what follows it")
    print(f"{'encoder':<24}{'remedy':<28}{'ms':>16}{'of AdamW':>10}{'extra MB':>10}{'state MB':>10}")
    rows = []
    for name in args.models:
        calls, optimizers = {}, {}
        encoder = load_encoder(name).to(args.device)
        for remedy, optim in REMEDIES.items():
            # Each changes weights of its own.
            own = copy.deepcopy(encoder)
            for parameter in own.parameters():
                parameter.grad = 1e-3 * torch.randn_like(parameter)
            optimizers[remedy] = build_optimizer(own, _settings(optim, args.device))
            calls[remedy] = _update(remedy, own, optimizers[remedy])
        for remedy, time in measure(calls, args.device, args.repeats).items():
            memory, state = peak_memory(calls[remedy], args.device), _state_bytes(optimizers[remedy])
            milliseconds = f"{time['median_ms']:.1f} ± {time['iqr_ms'] / 2:.1f}"
            megabytes = f"{memory / 1e6:>10.1f}{state / 1e6:>10.1f}"
            print(f"{name:<24}{remedy:<28}{milliseconds:>16}{time['ratio']:>9.2f}×{megabytes}", flush=True)
            rows.append({"encoder": name, "remedy": remedy, **time, "bytes": memory, "state_bytes": state})
    return rows


def _update(remedy: str, encoder: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return a function that makes one update from the gradients that are there."""
    parts: list[Callable[[], object]] = [optimizer.step]
    if remedy == "AdamW, orthonormal weights":
        constraint = OrthogonalConstraint(encoder)
        constraint.begin()
        parts.append(constraint.apply)
    elif ", SO" in remedy:
        regularizer = OrthogonalityRegularizer(encoder)
        if remedy.endswith("decoupled"):
            parts.append(lambda: regularizer.step(0.05))
        else:
            parts.insert(0, lambda: (1e-6 * regularizer()).backward())

    def update() -> None:
        for part in parts:
            part()

    return update


def _settings(optim: str, device: str) -> OrthoSSLTrainingArguments:
    """Return the settings of an optimizer; nothing is written to their folder."""
    rates = {"learning_rate": 1e-4, "weight_decay": 0.01, "momentum": None if optim == "adamw_torch" else 0.95}
    return OrthoSSLTrainingArguments("unused", optim=optim, use_cpu=device == "cpu", **rates)


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of what an optimizer keeps."""
    held = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(value.numel() * value.element_size() for value in held)
