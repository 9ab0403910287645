"""How a run was trained, in the words of its card."""

import math
from typing import Any

from torch.utils.data import Dataset

from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments


def training_record(
    model: SSLModel, dataset: Dataset, args: OrthoSSLTrainingArguments, *, front: str, step: int | None = None
) -> dict[str, str | float | int | bool]:
    """The settings of a run as JSON values, for the `training` of [`write_encoder_folder`].

    Args:
        model ([`SSLModel`]): What was trained; its method's recipe fills what `args` leaves open.
        dataset (`Dataset`): What it was trained on; its length and the batch size give the steps.
        args ([`OrthoSSLTrainingArguments`]): The settings, with `views` chosen.
        front (`str`): "Trainer" or "accelerate loop".
        step (`int`, *optional*): Optimizer steps taken so far; all of them by default.

    Returns:
        `dict`: `front`, `views`, `epochs` (passes over the data; left out for a stream), `steps` (taken),
        `planned_steps` (of a run that has not ended), `images_per_step`, `processes`, `optim`, `learning_rate` (peak),
        `lr_scheduler_type`, `weight_decay`, `momentum` (where the optimizer has one), `warmup_steps`, `penalty_every`
        (steps between two penalties, of a lazy one), `precision`, `seed` and `pretrained` (whether it started from
        published weights; left out where that is not known).
    """
    args = args.with_recipe(model.method.recipe)
    steps, epochs = args.max_steps, None
    if hasattr(dataset, "__len__"):
        batch = args.train_batch_size * args.world_size
        batches = len(dataset) // batch if args.dataloader_drop_last else math.ceil(len(dataset) / batch)
        per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        epochs = round((steps if step is None else step) / per_epoch, 3)
    optimizer = str(getattr(args.optim, "value", args.optim))
    record: dict[str, Any] = {
        "front": front,
        "views": args.views,
        "epochs": epochs,
        "steps": steps if step is None else step,
        "planned_steps": steps if step is not None and step < steps else None,
        "images_per_step": args.images_per_step,
        "processes": args.world_size,
        "optim": optimizer,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "weight_decay": args.weight_decay,
        "momentum": args.momentum if optimizer in ("sgd", "lars") else None,
        "warmup_steps": args.get_warmup_steps(steps),
        "penalty_every": model.config.penalty_every if model.regularizer and model.config.penalty_every > 1 else None,
        "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        "seed": args.seed,
        # A checkpoint that was loaded does not say what it once started from.
        "pretrained": None if model.name_or_path else model.encoder.pretrained,
    }
    return {name: value for name, value in record.items() if value is not None}
