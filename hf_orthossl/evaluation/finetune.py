"""Fine-tune an encoder with a linear head, with a learning rate for each depth, and score it."""

import copy
import shutil
from collections.abc import Collection, Sized
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..data import ImageDataset, ImageSource, Recipe, Views, ViewSpec, collate
from ..data.unreadable import Unreadable, check_unreadable, left_out_note
from ..encoders import Encoder
from ..encoders.depth import layer_scales
from ..options import check_layer_decay
from .labels import lost_classes, match_splits, row_labels
from .results import Result, unreadable_counts
from .scoring import accuracy, accuracy_results


@dataclass
class FineTuningArguments(TrainingArguments):
    """The settings of [`finetune_encoder`], in addition to those of `transformers.TrainingArguments`.

    Args:
        output_dir (`str`, defaults to "runs/finetune"): Folder for the best weights during training.
        layer_decay (`float`, defaults to 0.75): Factor of the learning rate from each layer to the one below it,
            starting at the head; in (0, 1].
        mixup (`float`, defaults to 0): α of mixup (Zhang et al., ICLR 2018); 0 for none.
        cutmix (`float`, defaults to 0): α of CutMix (Yun et al., ICCV 2019); 0 for none. With both, one of them is
            chosen for each batch, with equal probability.
        min_crop (`float`, defaults to 0.35): Minimum share of an image's area in a training crop, in (0, 1].
        flip (`float`, *optional*): Probability that a training image is mirrored; by default 0 for digits and 0.5 for
            other data.
        validation_share (`float`, defaults to 0.1): Share of each class's training images that is held out to choose
            the best epoch, in (0, 1).
        patience (`int`, defaults to 10): Number of epochs without improvement after which training stops.
    """

    output_dir: str = field(default="runs/finetune")
    per_device_train_batch_size: int = field(default=128)
    per_device_eval_batch_size: int = field(default=256)
    learning_rate: float = field(default=1e-3)
    weight_decay: float = field(default=0.05)
    num_train_epochs: float = field(default=50.0)
    warmup_steps: float = field(default=0.1)
    lr_scheduler_type: str = field(default="cosine")
    layer_decay: float = field(default=0.75)
    mixup: float = field(default=0.0)
    cutmix: float = field(default=0.0)
    min_crop: float = field(default=0.35)
    flip: float | None = field(default=None)
    validation_share: float = field(default=0.1)
    patience: int = field(default=10)
    # With these settings, fine-tuning uses the epoch with the best validation accuracy.
    eval_strategy: str = field(default="epoch")
    save_strategy: str = field(default="best")
    logging_strategy: str = field(default="epoch")
    load_best_model_at_end: bool = field(default=True)
    metric_for_best_model: str | None = field(default="top1")
    save_only_model: bool = field(default=True)
    save_total_limit: int | None = field(default=1)
    remove_unused_columns: bool = field(default=False)
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])

    def __post_init__(self) -> None:
        check_layer_decay(self.layer_decay)
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}: α must be 0 or more, as in 0.8")
        if not 0 < self.min_crop <= 1 or not (self.flip is None or 0 <= self.flip <= 1):
            raise ValueError(f"min_crop is {self.min_crop} and flip {self.flip}: both must lie between 0 and 1")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}: it must lie between 0 and 1, as in 0.1")
        if self.patience < 1 or self.per_device_train_batch_size < 2:
            raise ValueError(
                f"patience is {self.patience}, per_device_train_batch_size {self.per_device_train_batch_size}: they "
                "must be at least 1 and 2"
            )
        super().__post_init__()


def layer_decay_groups(
    encoder: Encoder, head: nn.Module, *, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict]:
    """Return the parameter groups of an encoder and its head, with a learning rate for each depth.

    The learning rate of the head and of the modules after the last layer is `learning_rate`, that of the last layer is
    `layer_decay` times as large, and so on down to the stem. Layers are the blocks of a ViT and the stages of a
    convolutional network. Frozen parameters are left out. Parameters with one dimension, and those that timm's
    `no_weight_decay` names, have no weight decay.

    Source: Clark et al., "ELECTRA", ICLR 2020; for ViTs Bao et al., "BEiT", ICLR 2022.

    Args:
        encoder ([`Encoder`]): The encoder.
        head (`nn.Module`): The classifier on top of it.
        learning_rate (`float`): Learning rate of the head.
        layer_decay (`float`): Factor per layer, in (0, 1]; 1 for the same rate everywhere.
        weight_decay (`float`): Weight decay, at least 0.

    Returns:
        `list[dict]`: Groups of `params`, `lr` and `weight_decay`, as torch optimizers expect them.

    Raises:
        ValueError: If `layer_decay` is out of range.
    """
    check_layer_decay(layer_decay)
    scales = layer_scales(encoder, layer_decay)
    undecayed: Collection[str] = getattr(encoder.backbone, "no_weight_decay", set)()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in encoder.backbone.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not any(fnmatch(name, pattern) for pattern in undecayed)
            key = scales[name], weight_decay if decays else 0.0
            groups.setdefault(key, []).append(parameter)
    for parameter in head.parameters():
        groups.setdefault((1.0, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


CHECKPOINTS = ".finetune"
# The label that torch's cross-entropy leaves out.
_IGNORED = -100


class EncoderClassifier(nn.Module):
    """An encoder with a linear classifier.

    Args:
        encoder ([`Encoder`]): The encoder, which is not copied.
        num_classes (`int`): Number of classes C.
    """

    def __init__(self, encoder: Encoder, num_classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores `(B, C)` of normalized images `(B, C, H, W)`."""
        return self.head(self.encoder(images))


@dataclass(frozen=True)
class FineTuned:
    """The outcome of [`finetune_encoder`].

    Args:
        model ([`EncoderClassifier`]): The classifier, with the weights of the best epoch.
        class_names (`list[str]`): Names of the C classes.
        results (`list[Result]`): Top-1 and top-5 accuracy on the test split.
        notes (`list[str]`): One sentence for each reason for which images were excluded.
    """

    model: EncoderClassifier
    class_names: list[str]
    results: list[Result]
    notes: list[str]


def finetune_encoder(
    encoder: Encoder, train: ImageSource, test: ImageSource, args: FineTuningArguments | None = None
) -> FineTuned:
    """Train a copy of an encoder with a linear head on labelled images, and score it on the test split.

    A part of the training split is held out for validation; the accuracy on it after each epoch decides when to stop
    and which epoch's weights are used. Frozen parameters of the encoder remain frozen; the encoder itself does not
    change. Classes are matched by name, see [`match_classes`].

    Args:
        encoder ([`Encoder`]): From [`load_encoder`].
        train ([`ImageSource`]): Labelled training images.
        test ([`ImageSource`]): Labelled test images.
        args ([`FineTuningArguments`], *optional*): The settings.

    Raises:
        ValueError: If labels are missing, the splits do not match, no class has enough images for validation, or more
            images cannot be read than are allowed.
        FloatingPointError: If the loss is not finite.
    """
    args = args or FineTuningArguments()
    test = test.as_in(train)
    train_labels, test_labels, names, notes = match_splits(train, test, row_labels(train), row_labels(test))
    rows, validation = validation_split(train_labels, args.validation_share, args.seed)
    set_seed(args.seed)
    model = EncoderClassifier(copy.deepcopy(encoder), len(names)).float()
    args = copy.copy(args)
    folder = Path(args.output_dir) / CHECKPOINTS
    args.output_dir = str(folder)
    args.per_device_train_batch_size = min(args.per_device_train_batch_size, len(rows))
    size = encoder.image_size
    recipe = _recipe(train, args)
    # Small images are enlarged as a whole: a crop cannot be larger than its image.
    views = recipe if train.shorter_side >= size else None
    trainer = _FineTuner(
        model,
        args,
        recipe=recipe,
        train_dataset=_Rows(train, train_labels, rows, image_size=size, views=views, seed=args.seed),
        eval_dataset=_Rows(train, train_labels, validation, image_size=size, unreadable="omit"),
        data_collator=collate,
        compute_metrics=lambda scored: {"top1": _share_right(scored.predictions, scored.label_ids)},
        callbacks=[EarlyStoppingCallback(args.patience)],
    )
    labelled = torch.nonzero(test_labels >= 0).flatten()
    trainer.begin_count(train, len(rows) + len(validation))
    try:
        trainer.train()
        training_unreadable = trainer.begin_count(test, len(labelled))
        scored = trainer.predict(_Rows(test, test_labels, labelled, image_size=size, unreadable="omit"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    test_unreadable = trainer.begin_count(test, len(labelled))
    scores, classes = torch.from_numpy(scored.predictions), torch.from_numpy(scored.label_ids)
    measured = accuracy(scores, classes, names)
    notes += left_out_note(training_unreadable, len(rows) + len(validation), train.split)
    notes += left_out_note(test_unreadable, len(labelled), test.split)
    if test_unreadable:
        lost = sorted(set(test_labels[labelled].tolist()) - set(classes.tolist()))
        notes += lost_classes(test.split, [names[label] for label in lost])
    held_out = {image.index for image in training_unreadable} & set(validation.tolist())
    about = _settings(args, trainer) | {
        "train_images": len(rows) - len(training_unreadable) + len(held_out),
        "validation_images": len(validation) - len(held_out),
        **train.pixels.settings(),
        **unreadable_counts(len(training_unreadable), len(test_unreadable)),
    }
    return FineTuned(model, names, accuracy_results("finetune", test.name, test.split, measured, about), notes)


def validation_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows into training and validation rows, stratified by class; rows labelled −1 are excluded.

    Args:
        labels (`Tensor` of shape `(N,)`): Classes, or −1.
        share (`float`): Share of validation rows, in (0, 1); each class has at least one training row.
        seed (`int`): Seed of the split.

    Returns:
        `tuple[Tensor, Tensor]`: Training rows and validation rows, ascending.

    Raises:
        ValueError: If no class has two images.
    """
    generator = np.random.default_rng(seed)
    train_parts, validation_parts = [], []
    for label in labels[labels >= 0].unique():
        members = generator.permutation(torch.nonzero(labels == label).flatten().numpy())
        cut = min(max(round(share * len(members)), 1), len(members) - 1)
        validation_parts.append(members[:cut])
        train_parts.append(members[cut:])
    rows, validation = np.sort(np.concatenate(train_parts)), np.sort(np.concatenate(validation_parts))
    if len(validation) == 0 or len(rows) < 2:
        raise ValueError(
            f"{len(rows)} labelled training images are too few to hold out some for validation: pass at least two "
            "images of a class"
        )
    return torch.from_numpy(rows), torch.from_numpy(validation)


def _share_right(scores: np.ndarray, labels: np.ndarray) -> float:
    known = labels != _IGNORED
    return float((scores.argmax(1) == labels)[known].mean()) if known.any() else 0.0


class _Rows(ImageDataset):
    """Rows of a source with replaced labels; those of omitted images are ignored by the loss."""

    def __init__(self, source: ImageSource, labels: Tensor, rows: Tensor, **kwargs: Any):
        super().__init__(source, indices=rows.tolist(), **kwargs)
        self.labels = labels

    def __getitems__(self, positions: list[int]) -> list[dict[str, Any]]:
        # Use the row of the item: an image that replaces an unreadable one has another label.
        return [item | {"labels": self._label(item)} for item in super().__getitems__(positions)]

    def _label(self, item: dict[str, Any]) -> int:
        return _IGNORED if self.omits and item["unreadable"] else int(self.labels[item["index"]])


class _FineTuner(Trainer):
    """A Trainer that augments training batches on the device and scales learning rates by depth."""

    args: FineTuningArguments

    def __init__(self, model: EncoderClassifier, args: FineTuningArguments, *, recipe: Recipe, **kwargs: Any):
        plain = copy.copy(args)
        # The Trainer's label smoothing needs a model with a configuration.
        plain.label_smoothing_factor = 0.0
        super().__init__(model, plain, **kwargs)
        self.classifier = model
        self.smoothing = args.label_smoothing_factor
        # The Trainer's default callbacks print several lines per epoch.
        for callback in (ProgressCallback, PrinterCallback):
            self.pop_callback(callback)
        if not args.disable_tqdm:
            self.add_callback(_Bar())
        encoder, classes = model.encoder, model.head.out_features
        self.views = Views(recipe, encoder.image_size, encoder.mean, encoder.std)
        mixes = [(v2.MixUp, args.mixup), (v2.CutMix, args.cutmix)]
        mixes = [mix(alpha=alpha, num_classes=classes) for mix, alpha in mixes if alpha > 0]
        self.mix = v2.RandomChoice(mixes) if mixes else None
        self._unreadable: dict[int, Unreadable] = {}

    def begin_count(self, source: ImageSource, images: int) -> list[Unreadable]:
        """Count the unreadable images of a source from now on, and return those counted before.

        Args:
            source ([`ImageSource`]): The images.
            images (`int`): How many of them are used.
        """
        counted = list(self._unreadable.values())
        self._unreadable = {}
        self._limit = images, source.max_unreadable
        return counted

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of training batches, without a last batch of one image."""
        # Batch norm cannot be trained on one image. All other batches, and all of evaluation, are used.
        assert isinstance(self.train_dataset, Sized)
        alone = len(self.train_dataset) % self._train_batch_size == 1
        self.args.dataloader_drop_last, before = alone, self.args.dataloader_drop_last
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = before

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer, with a learning rate for each depth."""
        if self.optimizer is None:
            groups = layer_decay_groups(
                self.classifier.encoder,
                self.classifier.head,
                learning_rate=self.args.learning_rate,
                layer_decay=self.args.layer_decay,
                weight_decay=self.args.weight_decay,
            )
            # Annotated for a PreTrainedModel, although the Trainer passes any module.
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, cast(PreTrainedModel, model or self.model))
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the cross-entropy of a batch, augmented and mixed in training."""
        if inputs["unreadable"]:
            self._unreadable |= {index: Unreadable(index, *rest) for index, *rest in inputs["unreadable"]}
            check_unreadable(list(self._unreadable.values()), *self._limit)
        images, labels = inputs["crops" if "crops" in inputs else "pixel_values"], inputs["labels"]
        if model.training:
            (images,) = self.views(images)
            if self.mix is not None:
                images, labels = self.mix(images, labels)
        else:
            images = (images.float() / 255 - self.views.mean.to(images.device)) / self.views.std.to(images.device)
        scores = model(images).float()
        smoothing = self.smoothing if model.training else 0.0
        loss = F.cross_entropy(scores, labels, label_smoothing=smoothing)
        if model.training and not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of fine-tuning is not finite at step {self.state.global_step}: lower the learning rate"
            )
        return (loss, {"scores": scores}) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0, because the Trainer's estimate counts text tokens."""
        return 0


class _Bar(ProgressCallback):
    """A progress bar over the whole run that shows the validation accuracy, instead of lines and bars per epoch."""

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Suppress the progress bar of validation."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the validation accuracy next to the progress bar."""
        if self.training_bar is not None and logs and "eval_top1" in logs:
            self.training_bar.set_postfix_str(f"validation top1={logs['eval_top1']:.4f}")


def _recipe(train: ImageSource, args: FineTuningArguments) -> Recipe:
    # Mirroring changes the class of digits.
    flip = args.flip if args.flip is not None else 0.0 if train.name == "digits" else 0.5
    return Recipe("finetune", (ViewSpec(scale=(args.min_crop, 1.0), flip=flip, jitter=0.0, grayscale=0.0),))


def _settings(args: FineTuningArguments, trainer: Trainer) -> dict:
    scores = [(entry["eval_top1"], -entry["epoch"]) for entry in trainer.state.log_history if "eval_top1" in entry]
    best, epoch = max(scores)
    named = ("learning_rate", "weight_decay", "layer_decay", "mixup", "cutmix", "label_smoothing_factor", "seed")
    return {
        "epochs": args.num_train_epochs,
        "epochs_run": trainer.state.epoch,
        "best_epoch": -epoch,
        "validation_top1": best,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        **{name: getattr(args, name) for name in named},
    }
