"""The options of commands that read the images of a data set with one encoder."""

from dataclasses import dataclass, field

from ...data.options import ImageOptions


@dataclass
class EncoderArguments(ImageOptions):
    """Which encoder, at which size and where it runs."""

    _argument_group_name = "encoder"

    model: str = field(
        kw_only=True,
        metadata={"positional": True, "metavar": "MODEL", "help": "run folder, encoder folder, timm name or Hub id"},
    )
    image_size: int | None = field(default=None, metadata={"help": "side of the input (default: the model's)"})
    untrained: bool = field(default=False, metadata={"help": "use random weights, for comparison"})
    seed: int = field(default=0, metadata={"help": "seed of untrained weights"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, … (default: a GPU if there is one)"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed and not self.untrained:
            raise ValueError(f"seed is {self.seed}, and weights are loaded: pass --untrained too, or leave it out")
