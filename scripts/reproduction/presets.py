"""The experiments and their arms, at the size of a CPU (also for two readings of fused weights) or of an H200.

Everything an experiment fixes is an option of `orthossl pretrain`; its arms differ by the penalty alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Arm:
    """One way to prevent collapse.

    Args:
        name (`str`): As folders and tables show it.
        regularizer (`str`, defaults to "none"): As `orthossl pretrain` takes it.
        option (`str`, *optional*): Its option that takes the weight γ; none for the arm without any.
        weights (tuple of `float`, *optional*): What γ is chosen from, on held-out training images; one is taken.
        regularizer_config (tuple of `str`, *optional*): Further options of the penalty, as `orthossl pretrain` takes
            them.
    """

    name: str
    regularizer: str = "none"
    option: str | None = None
    weights: tuple[float, ...] = ()
    regularizer_config: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One table: a method and a backbone, several arms, the same seeds for each.

    Args:
        name (`str`): Folder of its runs.
        title (`str`): Heading of its part of the report.
        claim (`str`): What the paper reports of it, for SO and SRIP against no penalty.
        method, backbone (`str`): As `orthossl pretrain` takes them.
        options (`dict`): Its further options, the same for all arms.
        arms (sequence of [`Arm`]): The first is the one that the others are compared with.
        epochs (`float`): Of every run that counts.
        tuning_epochs (`float`): Of the runs that choose γ.
        train (`str`): Split that all runs learn from; probes and kNN have its labels.
        validation (`str`): Split that chooses γ: training images that no run of a CPU learns from.
        test (`str`): Split that the report is of.
        spectra_images (`int`, defaults to 4096): Test images whose features' spectra are taken, as in the paper.
    """

    name: str
    title: str
    claim: str
    method: str
    backbone: str
    options: dict
    arms: Sequence[Arm]
    epochs: float
    tuning_epochs: float
    train: str = "train"
    validation: str = "train[45000:]"
    test: str = "test"
    spectra_images: int = 4096


def _arms(
    so: tuple[float, ...],
    srip: tuple[float, ...],
    whitening: tuple[float, ...] = (),
    regularizer_config: tuple[str, ...] = (),
) -> list[Arm]:
    # Whitening acts on a predictor's output; not every method has one.
    arms = [Arm("none")] + ([Arm("whitening", "none", "whitening", whitening)] if whitening else [])
    penalties = [
        Arm(name, name, "gamma", weights, regularizer_config) for name, weights in (("so", so), ("srip", srip))
    ]
    return [*arms, *penalties]


_CLAIMS = {
    "byol": "a higher linear accuracy with SO and with SRIP, by about 1 point with a ResNet-18 on CIFAR-100",
    "dino": "a higher linear accuracy with SO and with SRIP, by about 6 points with a ResNet-18 and up to 12 with ViTs",
}

# The paper's pull, γ times the number of steps, over some 700 steps instead of 195,000: its grids times 300, rounded.
_SHORT = {"so": (3e-4, 3e-3, 3e-2), "srip": (3e-3, 3e-2, 3e-1)}
_SMALL = {
    "image_size": 24,
    "per_device_train_batch_size": 128,
    "optim": "adamw_torch",
    "learning_rate": 2e-3,
    "weight_decay": 1e-4,
    "warmup_steps": 0.1,
}

_CPU = [
    Experiment(
        name="byol",
        title="BYOL, a ResNet-18 of a quarter of the width",
        claim=_CLAIMS["byol"],
        method="byol",
        backbone="resnet18_cifar",
        options={
            "backbone_config": ["channels=[16,32,64,128]"],
            "method_config": ["hidden_dim=1024"],
            **_SMALL,
        },
        arms=_arms(**_SHORT, whitening=(3e-3, 3e-2, 3e-1)),
        epochs=9,
        tuning_epochs=3,
        train="train[:10000]",
    ),
    Experiment(
        name="dino",
        title="DINO, a ViT of half ViT-tiny's width and a third of its depth",
        claim=_CLAIMS["dino"],
        method="dino",
        backbone="vit_tiny_patch16_224",
        options={
            "backbone_config": ["patch_size=4", "embed_dim=96", "depth=4"],
            "method_config": ["hidden_dim=512", "prototypes=1024", "momentum=0.99", "freeze_last_layer_epochs=0"],
            **_SMALL,
            "learning_rate": 1e-3,
        },
        arms=_arms(**_SHORT),
        epochs=3,
        tuning_epochs=1,
        train="train[:10000]",
    ),
]

# Two readings of a ViT's fused qkv weight, between which the paper's text does not decide: three matrices, or one.
_WIDER = (3e-3, 3e-2, 3e-1)
_FUSED = [
    replace(
        _CPU[1],
        arms=[
            Arm("none"),
            Arm("so", "so", "gamma", _WIDER, ("split_fused=True",)),
            Arm("so-whole-qkv", "so", "gamma", _WIDER, ("split_fused=False",)),
        ],
    )
]

# solo-learn's recipes, which are the methods' defaults here; the weights are the middle of the paper's grids.
_PAPER = {"so": (1e-6,), "srip": (1e-4,)}
_H200 = [
    Experiment(
        name="byol",
        title="BYOL, ResNet-18",
        claim=_CLAIMS["byol"],
        method="byol",
        backbone="resnet18_cifar",
        options={"per_device_train_batch_size": 256, "bf16": True},
        arms=_arms(**_PAPER, whitening=(1e-4,)),
        epochs=20,
        tuning_epochs=0,
    ),
    Experiment(
        name="dino",
        title="DINO, ViT-tiny with patches of 4 pixels",
        claim=_CLAIMS["dino"],
        method="dino",
        backbone="vit_tiny_patch16_224",
        options={
            "backbone_config": ["patch_size=4"],
            "image_size": 32,
            "per_device_train_batch_size": 256,
            "bf16": True,
            "optim": "adamw_torch",
            "learning_rate": 5e-4,
            "weight_decay": 0.04,
            "warmup_steps": 0.1,
        },
        # A loop over layers, as the paper describes it, has one matrix for a fused qkv.
        arms=_arms(**_PAPER, regularizer_config=("split_fused=False",)),
        epochs=20,
        tuning_epochs=0,
    ),
]

PRESETS = {"cpu": _CPU, "fused": _FUSED, "h200": _H200}
