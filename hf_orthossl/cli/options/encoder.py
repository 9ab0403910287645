"""Share the options of commands that read the images of a data set with one encoder."""

from dataclasses import dataclass, field

from ...data.options import ImageOptions


@dataclass
class EncoderArguments(ImageOptions):
    """Name the encoder of a command, the size of its input, and the seed of weights that are not loaded."""

    _argument_group_name = "encoder"

    model: str = field(
        kw_only=True,
        metadata={"positional": True, "metavar": "MODEL", "help": "run folder, encoder folder, timm name or Hub id"},
    )
    image_size: int | None = field(default=None, metadata={"help": "side of the input (default: the model's)"})
    untrained: bool = field(default=False, metadata={"help": "use random weights, for comparison"})
    seed: int = field(default=0, metadata={"help": "seed of untrained weights"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed and not self.untrained:
            raise ValueError(f"seed is {self.seed}, and weights are loaded: pass --untrained too, or leave it out")
