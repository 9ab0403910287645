"""Build the optimizer of a run, for both the Trainer and the loop."""

from typing import Any, cast

import torch
from timm.optim import Lars
from torch import nn
from transformers import PreTrainedModel, Trainer

from .arguments import OrthoSSLTrainingArguments

SOLO_LEARN_LARS = {"trust_coeff": 0.02, "trust_clip": True}


def build_optimizer(model: nn.Module, args: OrthoSSLTrainingArguments) -> torch.optim.Optimizer:
    """Return LARS, SGD with momentum or Adam as in SSL frameworks, or any optimizer of the Trainer.

    Weight decay and the layer-wise scaling of LARS exclude parameters with one dimension (norms, biases), as in
    solo-learn. SGD and Adam decay every parameter through its gradient, as in the recipes of solo-learn and LightlySSL.

    Args:
        model (`nn.Module`): The model; its parameters that require a gradient are optimized.
        args ([`OrthoSSLTrainingArguments`]): The settings, with `optim`, `learning_rate` and `weight_decay`.
            `optim_args` applies to LARS as well: `trust_coeff=0.001,trust_clip=False` is LARS as in the ImageNet runs
            of the BYOL and SimCLR papers.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # The recipe has set them.
    assert args.learning_rate is not None
    assert args.weight_decay is not None
    if args.optim == "sgd":
        return torch.optim.SGD(trained, lr=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay)
    if args.optim == "adam":
        betas = (args.adam_beta1, args.adam_beta2)
        return torch.optim.Adam(
            trained, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, weight_decay=args.weight_decay
        )
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if args.optim == "lars":
        # timm scales a group layer by layer only if it has weight decay, which excludes the right parameters; with a
        # decay of zero it would scale none, so `always_adapt` keeps the scaling for the matrices.
        groups[0]["always_adapt"] = True
        settings = SOLO_LEARN_LARS | args.optimizer_arguments
        return Lars(groups, lr=args.learning_rate, momentum=args.momentum, **settings)
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args, cast(PreTrainedModel, model))
    return optimizer_class(groups, **settings)
