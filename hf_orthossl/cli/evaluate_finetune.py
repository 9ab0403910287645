"""`orthossl evaluate --task finetune`: its options, and the call that they end in."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..data import ImageSource
from ..encoders import Encoder
from ..evaluation import FineTuningArguments, Result, finetune_encoder


@dataclass
class FineTuneOptions:
    """How to fine-tune the whole encoder with a linear head."""

    _argument_group_name = "fine-tuning"

    finetune_epochs: int = field(default=50, metadata={"help": "passes over the training images at most"})
    finetune_lr: float = field(default=1e-3, metadata={"help": "learning rate of the head"})
    finetune_batch_size: int = field(default=128, metadata={"help": "images per step"})
    layer_decay: float = field(default=0.75, metadata={"help": "factor of the learning rate from layer to layer"})
    mixup: float = field(default=0.0, metadata={"help": "α of mixup; 0 for none"})
    cutmix: float = field(default=0.0, metadata={"help": "α of CutMix; 0 for none"})
    label_smoothing: float = field(default=0.0, metadata={"help": "share of the label spread over all classes"})
    validation_share: float = field(
        default=0.1, metadata={"help": "of the training images, set aside to choose the best epoch"}
    )
    patience: int = field(default=10, metadata={"help": "epochs without improvement after which training stops"})
    bf16: bool = field(default=False, metadata={"help": "fine-tune in bfloat16"})

    def arguments(self, *, output_dir: str, device: str | None, num_workers: int, seed: int) -> FineTuningArguments:
        """The same for [`finetune_encoder`].

        Raises:
            ValueError: an option is out of range.
        """
        return FineTuningArguments(
            output_dir,
            num_train_epochs=self.finetune_epochs,
            learning_rate=self.finetune_lr,
            per_device_train_batch_size=self.finetune_batch_size,
            layer_decay=self.layer_decay,
            mixup=self.mixup,
            cutmix=self.cutmix,
            label_smoothing_factor=self.label_smoothing,
            validation_share=self.validation_share,
            patience=self.patience,
            bf16=self.bf16,
            use_cpu=device == "cpu",
            dataloader_num_workers=num_workers,
            seed=seed,
            report_to=[],
        )


def measure_finetune(
    encoder: Encoder, train: ImageSource, test: ImageSource, runs: Sequence[FineTuningArguments]
) -> tuple[list[Result], list[str]]:
    """Results and notes of one fine-tuning per element of `runs`."""
    results, notes = [], []
    for args in runs:
        tuned = finetune_encoder(encoder, train, test, args)
        results += tuned.results
        notes = tuned.notes
    return results, notes
