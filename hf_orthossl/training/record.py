"""How a run was trained, in the words of its card."""

import math
from typing import Any

from torch.utils.data import Dataset

from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments


def training_record(
    model: SSLModel, dataset: Dataset, args: OrthoSSLTrainingArguments, *, front: str
) -> dict[str, str | float | int]:
    """The settings of a run as JSON values, for the `training` of [`write_encoder_folder`].

    Args:
        model ([`SSLModel`]): What was trained; its method's recipe fills what `args` leaves open.
        dataset (`Dataset`): What it was trained on; its length and the batch size give the steps.
        args ([`OrthoSSLTrainingArguments`]): The settings, with `views` chosen.
        front (`str`): "Trainer" or "accelerate loop".

    Returns:
        `dict`: `front`, `views`, `epochs` (passes over the data; left out for a stream), `steps`, `images_per_step`,
        `processes`, `optim`, `learning_rate` (peak), `lr_scheduler_type`, `weight_decay`, `momentum` (where the
        optimizer has one), `warmup_steps`, `precision` and `seed`.
    """
    args = args.with_recipe(model.method.recipe)
    steps, epochs = args.max_steps, None
    if hasattr(dataset, "__len__"):
        batch = args.train_batch_size * args.world_size
        batches = len(dataset) // batch if args.dataloader_drop_last else math.ceil(len(dataset) / batch)
        per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        epochs = round(steps / per_epoch, 3)
    optimizer = str(getattr(args.optim, "value", args.optim))
    record: dict[str, Any] = {
        "front": front,
        "views": args.views,
        "epochs": epochs,
        "steps": steps,
        "images_per_step": args.images_per_step,
        "processes": args.world_size,
        "optim": optimizer,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "weight_decay": args.weight_decay,
        "momentum": args.momentum if optimizer in ("sgd", "lars") else None,
        "warmup_steps": args.get_warmup_steps(steps),
        "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        "seed": args.seed,
    }
    return {name: value for name, value in record.items() if value is not None}
