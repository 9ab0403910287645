"""List what the studies compare: each piece is one `orthossl compare`, with its arms and options."""

from dataclasses import dataclass, field
from typing import Any

from hf_orthossl.comparison import Arm
from hf_orthossl.methods import METHODS

# Study → its title. `measures` reads the rows of `methods`, and has no runs of its own.
STUDIES = {
    "methods": "Thirteen methods, five remedies",
    "transfer": "Does a strength transfer?",
    "measures": "Which measure without labels ranks runs?",
    "fused": "A fused qkv as three matrices, or as one",
}
METHOD_NAMES = (
    *("dino", "simsiam", "byol", "nnbyol", "swav", "simclr", "dcl", "dclw", "nnclr", "mocov2plus", "mocov3"),
    *("barlowtwins", "vicreg"),
)
BACKBONE = "vit_tiny_patch16_224"
WIDTH, BLOCKS = 96, 4
# Channels of an attention head, whatever the width.
HEAD = 24
# Heads and queues small enough for runs of minutes.
SHORT = {"hidden_dim": 256, "output_dim": 256, "prototypes": 1024, "bottleneck_dim": 64, "queue_size": 2048}
# DINO's target network, at the 0.9995 of runs of 1,000 epochs, would stay as it began.
SHORT |= {"momentum": 0.99, "freeze_last_layer_epochs": 0.0}
# Rates of Muon, which is all that its strength can be; that of the other arms is 1e-3.
MUON_RATES = (1e-3, 3e-3, 1e-2)
# Six values over three decades; λ is at most 1/2.
GAMMAS = (3e-4, 1.2e-3, 5e-3, 2e-2, 8e-2, 0.3)
STRENGTHS = (5e-4, 2e-3, 8e-3, 3e-2, 0.12, 0.5)
# Base rates of the optimizers of `transfer`; each is taken times 1 and times 10.
RATES = {"adamw_torch": 3e-4, "sgd": 0.02}
TRANSFER_METHOD = "dino"


@dataclass(frozen=True)
class Size:
    """How large the runs are.

    Args:
        dataset (`str`): Hub id or folder.
        steps (`int`): Optimizer steps of a run.
        images (`int`): Images to train on.
    """

    dataset: str
    steps: int
    images: int


@dataclass(frozen=True)
class Piece:
    """One comparison of a study.

    Args:
        study (`str`): A key of `STUDIES`.
        name (`str`): Of the piece, within the study.
        about (`dict`): What it varies, for its rows.
        arms (tuple of `str`): Names of arms, as `orthossl compare` reads them.
        made (tuple of [`Arm`]): Arms that have no such name, instead.
        strengths (`dict`): Arm → candidates for its strength, instead of the default ones.
        options (`dict`): Options of its runs that differ from those of [`shared_options`].
        most_seeds (`int`, *optional*): No more seeds than these.
    """

    study: str
    name: str
    about: dict[str, Any]
    arms: tuple[str, ...] = ()
    made: tuple[Arm, ...] = ()
    strengths: dict[str, list[float]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    most_seeds: int | None = None

    @property
    def arm_names(self) -> list[str]:
        """Return the names of its arms."""
        return [*self.arms] or [arm.name for arm in self.made]

    def given(self, size: Size) -> dict[str, Any]:
        """Return the options of its runs."""
        return shared_options(self.about["method"], size) | self.options


def shared_options(method: str, size: Size) -> dict[str, Any]:
    """Return the options of the runs of a method: the same backbone, optimizer and length for all."""
    known = METHODS[method].config_class().to_dict()
    return {
        "dataset": [size.dataset],
        "image_size": 32,
        "backbone": BACKBONE,
        "backbone_config": backbone_config(WIDTH),
        "method": method,
        "method_config": {name: value for name, value in SHORT.items() if name in known},
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "warmup_steps": 0.1,
        "per_device_train_batch_size": 64,
        "max_steps": size.steps,
        "logging_steps": 0.1,
        "spectra_steps": 0.25,
        "use_cpu": True,
    }


def backbone_config(width: int) -> dict[str, Any]:
    """Return the arguments of a vision transformer of a width, on 16 patches of 8 × 8 pixels."""
    return {"patch_size": 8, "embed_dim": width, "depth": BLOCKS, "num_heads": width // HEAD}


def _methods() -> list[Piece]:
    arms = ("none", "so", "srip", "so:decoupled", "muon")
    return [
        Piece("methods", name, {"method": name}, arms, strengths={"muon": list(MUON_RATES)}) for name in METHOD_NAMES
    ]


def _transfer() -> list[Piece]:
    """Return a piece for each setting, in which every strength is an arm of its own: nothing is chosen."""
    arms = [Arm("none", {"regularizer": "none"}), Arm("auto", {"regularizer": "so", "gamma": "auto"})]
    arms += [Arm(f"gamma-{value:g}", {"regularizer": "so"}, "gamma", (value,)) for value in GAMMAS]
    decoupled = {"regularizer": "so", "penalty_mode": "decoupled"}
    arms += [Arm(f"strength-{value:g}", decoupled, "strength", (value,)) for value in STRENGTHS]
    pieces = []
    # The widths differ by 4, around that of the other studies.
    for width in (WIDTH // 2, 2 * WIDTH):
        for optimizer, base in RATES.items():
            for factor in (1, 10):
                rate = base * factor
                about = {"method": TRANSFER_METHOD, "optimizer": optimizer, "width": width, "learning_rate": rate}
                options = {"optim": optimizer, "learning_rate": rate, "backbone_config": backbone_config(width)}
                name = f"{optimizer.partition('_')[0]}-{width}-{rate:g}"
                # 14 runs a setting: one seed for all of them first.
                pieces.append(Piece("transfer", name, about, made=tuple(arms), options=options, most_seeds=1))
    return pieces


def _fused() -> list[Piece]:
    whole = {"regularizer_config": {"split_fused": False}}
    gammas = (5e-4, 5e-3, 5e-2)
    arms = [Arm("none", {"regularizer": "none"})]
    for mode, option, values in (("", "gamma", gammas), (":decoupled", "strength", (1e-2, 5e-2, 2e-1))):
        penalty = {"regularizer": "so"} | ({"penalty_mode": "decoupled"} if mode else {})
        arms.append(Arm(f"so{mode}", penalty, option, values))
        arms.append(Arm(f"so{mode} whole", penalty | whole, option, values))
    return [Piece("fused", "dino", {"method": "dino"}, made=tuple(arms))]


# Study → its pieces, in the order in which they are run.
PIECES = {"methods": _methods(), "transfer": _transfer(), "fused": _fused()}
