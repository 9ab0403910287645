"""Settings of fine-tuning."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .layer_decay import check_layer_decay


@dataclass
class FineTuningArguments(TrainingArguments):
    """`transformers.TrainingArguments` for [`finetune_encoder`]; `bf16` and the rest mean what they do there.

    Args:
        output_dir (`str`, defaults to "runs/finetune"): Where the best weights are kept until training has ended.
        layer_decay (`float`, defaults to 0.75): Factor by which the learning rate falls from layer to layer, towards
            the images; in (0, 1].
        mixup (`float`, defaults to 0): α of mixup (Zhang et al., ICLR 2018); 0 for none.
        cutmix (`float`, defaults to 0): α of CutMix (Yun et al., ICCV 2019); 0 for none. With both, each batch has one
            of them, either as likely.
        min_crop (`float`, defaults to 0.35): Least share of an image's area in a training crop, in (0, 1].
        flip (`float`, *optional*): Probability that a training image is mirrored; 0 for digits and else 0.5.
        validation_share (`float`, defaults to 0.1): Of each class's training images, set aside to choose the best
            epoch; in (0, 1).
        patience (`int`, defaults to 10): Epochs without improvement after which training stops.
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
    # The rest belongs to what fine-tuning is: the best epoch on validation wins.
    eval_strategy: str = field(default="epoch")
    save_strategy: str = field(default="best")
    logging_strategy: str = field(default="epoch")
    load_best_model_at_end: bool = field(default=True)
    metric_for_best_model: str | None = field(default="top1")
    save_only_model: bool = field(default=True)
    save_total_limit: int | None = field(default=1)
    remove_unused_columns: bool = field(default=False)
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])

    def __post_init__(self):
        check_layer_decay(self.layer_decay)
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}: α must be 0 or more, as in 0.8")
        if not 0 < self.min_crop <= 1 or not (self.flip is None or 0 <= self.flip <= 1):
            raise ValueError(f"min_crop is {self.min_crop} and flip {self.flip}: both are shares of at most 1")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}: it must lie between 0 and 1, as in 0.1")
        if self.patience < 1 or self.per_device_train_batch_size < 2:
            raise ValueError(
                f"patience is {self.patience}, per_device_train_batch_size {self.per_device_train_batch_size}: they "
                "must be at least 1 and 2"
            )
        super().__post_init__()
