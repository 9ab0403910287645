"""Fine-tuning an encoder with a linear head: the whole network learns, and the test split is looked at once."""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import EarlyStoppingCallback, Trainer, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..data import ImageDataset, ImageSource, Recipe, Views, ViewSpec, collate
from ..encoders import Encoder
from .accuracy import accuracy, accuracy_results
from .classes import match_splits, row_labels
from .finetuning_arguments import FineTuningArguments
from .layer_decay import layer_decay_groups
from .results import Result

CHECKPOINTS = ".finetune"


class EncoderClassifier(nn.Module):
    """An encoder with a linear layer on its representations.

    Args:
        encoder ([`Encoder`]): Used as it is, not copied.
        num_classes (`int`): C.
    """

    def __init__(self, encoder: Encoder, num_classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores `(B, C)` of normalized images `(B, 3, H, W)`."""
        return self.head(self.encoder(images))


@dataclass(frozen=True)
class FineTuned:
    """What [`finetune_encoder`] gives.

    Args:
        model ([`EncoderClassifier`]): With the weights of the best epoch.
        class_names (`list[str]`): Names of its C classes.
        results (`list[Result]`): Top-1 and top-5 on the test split.
        notes (`list[str]`): What was left out, one sentence each.
    """

    model: EncoderClassifier
    class_names: list[str]
    results: list[Result]
    notes: list[str]


def finetune_encoder(
    encoder: Encoder, train: ImageSource, test: ImageSource, args: FineTuningArguments | None = None
) -> FineTuned:
    """Trains a copy of an encoder with a linear head on labelled images, and scores it on the test split.

    Part of the training split is set aside; its accuracy after each epoch decides which epoch's weights are kept and
    when to stop. Parameters of the encoder that are frozen stay so; the encoder itself is not changed. Classes are
    matched by name, see [`match_classes`].

    Args:
        encoder ([`Encoder`]): From [`load_encoder`].
        train, test ([`ImageSource`]): Labelled images.
        args ([`FineTuningArguments`], *optional*): How to train.

    Raises:
        ValueError: labels are missing, the splits do not go together, or a class is too small to set images aside.
        FloatingPointError: the loss is not finite.
    """
    args = args or FineTuningArguments()
    train_labels, test_labels, names, notes = match_splits(train, test, row_labels(train), row_labels(test))
    rows, aside = validation_split(train_labels, args.validation_share, args.seed)
    set_seed(args.seed)
    model = EncoderClassifier(copy.deepcopy(encoder), len(names)).float()
    args = copy.copy(args)
    folder = Path(args.output_dir) / CHECKPOINTS
    args.output_dir = str(folder)
    args.per_device_train_batch_size = min(args.per_device_train_batch_size, len(rows))
    size = encoder.image_size
    recipe = _recipe(train, args)
    # Small images are enlarged whole: a crop cannot be larger than the image it is from.
    views = recipe if train.shorter_side >= size else None
    trainer = _FineTuner(
        model,
        args,
        recipe=recipe,
        train_dataset=_Rows(train, train_labels, rows, image_size=size, views=views, seed=args.seed),
        eval_dataset=_Rows(train, train_labels, aside, image_size=size),
        data_collator=collate,
        compute_metrics=lambda scored: {"top1": float((scored.predictions.argmax(1) == scored.label_ids).mean())},
        callbacks=[EarlyStoppingCallback(args.patience)],
    )
    try:
        trainer.train()
        kept = torch.nonzero(test_labels >= 0).flatten()
        scored = trainer.predict(_Rows(test, test_labels, kept, image_size=size))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    measured = accuracy(torch.from_numpy(scored.predictions), torch.from_numpy(scored.label_ids), names)
    about = _settings(args, trainer) | {"train_images": len(rows), "validation_images": len(aside)}
    return FineTuned(model, names, accuracy_results("finetune", test.name, test.split, measured, about), notes)


def validation_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows set aside, the same share of each class; rows labelled −1 are in neither.

    Args:
        labels (`Tensor` of shape `(N,)`): Classes, or −1.
        share (`float`): Set aside, in (0, 1); of each class at least one image stays.
        seed (`int`): Decides which.

    Raises:
        ValueError: no class is large enough to set an image aside.
    """
    generator = np.random.default_rng(seed)
    rows, aside = [], []
    for label in labels[labels >= 0].unique():
        members = generator.permutation(torch.nonzero(labels == label).flatten().numpy())
        cut = min(max(round(share * len(members)), 1), len(members) - 1)
        aside.append(members[:cut])
        rows.append(members[cut:])
    rows, aside = np.sort(np.concatenate(rows)), np.sort(np.concatenate(aside))
    if len(aside) == 0 or len(rows) < 2:
        raise ValueError(
            f"{len(rows)} labelled training images are too few to set some aside for validation: fine-tuning needs at "
            "least two images of a class"
        )
    return torch.from_numpy(rows), torch.from_numpy(aside)


class _Rows(ImageDataset):
    """Rows of a source with labels of their own."""

    def __init__(self, source: ImageSource, labels: Tensor, rows: Tensor, **kwargs):
        super().__init__(source, indices=rows.tolist(), **kwargs)
        self.labels = labels

    def __getitems__(self, positions):
        # By the row that an item comes from: the stand-in of an unreadable image has another label.
        return [item | {"labels": int(self.labels[item["index"]])} for item in super().__getitems__(positions)]


class _FineTuner(Trainer):
    """Augments training batches on the device and weighs learning rates by depth."""

    def __init__(self, model: EncoderClassifier, args: FineTuningArguments, *, recipe: Recipe, **kwargs):
        plain = copy.copy(args)
        # The Trainer's own smoothing asks for a configuration of the model.
        plain.label_smoothing_factor = 0.0
        super().__init__(model, plain, **kwargs)
        self.smoothing = args.label_smoothing_factor
        # Its own callbacks print several lines an epoch, with and without a bar.
        for callback in (ProgressCallback, PrinterCallback):
            self.pop_callback(callback)
        if not args.disable_tqdm:
            self.add_callback(_Bar())
        encoder, classes = model.encoder, model.head.out_features
        self.views = Views(recipe, encoder.image_size, encoder.mean, encoder.std)
        mixes = [(v2.MixUp, args.mixup), (v2.CutMix, args.cutmix)]
        mixes = [mix(alpha=alpha, num_classes=classes) for mix, alpha in mixes if alpha > 0]
        self.mix = v2.RandomChoice(mixes) if mixes else None

    def get_train_dataloader(self) -> DataLoader:
        # Batch normalization cannot train on a last batch of one image; all others stay, those of evaluation too.
        alone = len(self.train_dataset) % self._train_batch_size == 1
        self.args.dataloader_drop_last, before = alone, self.args.dataloader_drop_last
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = before

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = layer_decay_groups(
                self.model.encoder,
                self.model.head,
                learning_rate=self.args.learning_rate,
                layer_decay=self.args.layer_decay,
                weight_decay=self.args.weight_decay,
            )
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        images, labels = inputs.get("crops", inputs.get("pixel_values")), inputs["labels"]
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

    def floating_point_ops(self, inputs) -> int:
        """0: the Trainer's estimate counts text tokens."""
        return 0


class _Bar(ProgressCallback):
    """A bar over the whole run, with the validation accuracy beside it instead of lines and bars of each epoch."""

    def on_prediction_step(self, args, state, control, **kwargs):
        pass

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "eval_top1" in logs:
            self.training_bar.set_postfix_str(f"validation top1={logs['eval_top1']:.4f}")


def _recipe(train: ImageSource, args: FineTuningArguments) -> Recipe:
    # A mirrored digit is no digit.
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
