"""Decide from the measurements of a run which encoder is kept, and whether the run stops because it has collapsed."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..distributed.collectives import all_reduce_max, rank, wait_for_all
from ..encoders import Encoder
from ..encoders.export import separate_weights
from ..messages import warn_above_bars
from ..modeling import SSLModel
from ..spectra.spectrum import FeatureSpectrum
from .arguments import OrthoSSLTrainingArguments
from .intervals import is_due, steps_between

logger = logging.getLogger(__name__)

# Files of a checkpoint.
STATE, WEIGHTS = "watch.json", "best_encoder.safetensors"
# Measurements in a row that must find a collapse before a run stops.
IN_A_ROW = 2


class Measure(NamedTuple):
    """A measure of a representation that needs no labels.

    Args:
        title (`str`): Its name.
        value (`Callable`): Returns it, `None` where there is none.
        badness (`Callable`): Returns what is smallest for the best value.
    """

    title: str
    value: Callable[[FeatureSpectrum], float | None]
    badness: Callable[[float], float]


# The measures of `select_by`. More directions in use are better; the spectrum's decay α is best at 1.
MEASURES = {
    "rankme": Measure("RankMe", lambda spectrum: spectrum.rankme, lambda value: -value),
    "lidar": Measure("LiDAR", lambda spectrum: spectrum.lidar, lambda value: -value),
    "alpha_req": Measure("α-ReQ", lambda spectrum: spectrum.alpha, lambda value: abs(value - 1)),
    "effective_rank": Measure("effective rank", lambda spectrum: spectrum.effective_rank, lambda value: -value),
}


class Watch:
    """Keep the best encoder of a run, and say when the run has collapsed; both from measurements without labels.

    At each measurement of the representation, on training images, the main process compares it with the best so far and
    keeps the weights of the better encoder, in the memory of the CPU; of equal ones, the earlier. Every checkpoint
    contains them, so that a resumed run goes on exactly. At the end, and at every push before, the encoder that is
    written is the best one; the weights of the last step are in the last checkpoint.

    A representation has collapsed if its effective rank is below `spectra_threshold` of the highest possible, which is
    also what `SpectraCallback` warns of. After two measurements in a row that find this, the run stops.

    Args:
        args ([`OrthoSSLTrainingArguments`]): Settings of the run.

    Attributes:
        measurements (`int`): How many there were of the measure.
        best (`tuple[int, float]`, *optional*): Step and value of the best measurement.
        stopped (`int`, *optional*): The step after which the run stops.
    """

    def __init__(self, args: OrthoSSLTrainingArguments):
        self.args = args
        self.measurements = 0
        self.best: tuple[int, float] | None = None
        self.stopped: int | None = None
        self._weights: dict[str, Tensor] = {}
        self._low: list[str] = []

    def see(self, module: nn.Module, step: int, spectrum: FeatureSpectrum) -> dict[str, float]:
        """Take note of a measurement, on the main process.

        Args:
            module (`nn.Module`): The measured encoder, with whole weights.
            step (`int`): Optimizer steps taken.
            spectrum ([`FeatureSpectrum`]): That of the representation.

        Returns:
            `dict[str, float]`: The step and the value of the best encoder so far, for the log.
        """
        most = spectrum.most_positive
        if spectrum.effective_rank < self.args.spectra_threshold * most:
            self._low.append(f"{spectrum.effective_rank:.3g} of {most} at step {step}")
        else:
            self._low.clear()
        if self.args.select_by is None:
            return {}
        measure = MEASURES[self.args.select_by]
        value = measure.value(spectrum)
        if value is not None:
            self.measurements += 1
            if self.best is None or measure.badness(value) < measure.badness(self.best[1]):
                self.best = step, value
                self._weights = {name: weight.detach().cpu().clone() for name, weight in module.state_dict().items()}
        return {} if self.best is None else {"best_step": self.best[0], f"best_{self.args.select_by}": self.best[1]}

    def agreed_to_stop(self, step: int, max_steps: int) -> bool:
        """Return whether the run stops after a step because it has collapsed; call it on every process.

        It never does after the last step, which ends the run anyway.
        """
        if not self.args.stop_on_collapse or step >= max_steps:
            return False
        # Not in a collective of GPUs, whose limits are torch's: the main process may have measured for long.
        wait_for_all()
        if not all_reduce_max(int(len(self._low) >= IN_A_ROW)):
            return False
        self.stopped = step
        if rank() == 0:
            warn_above_bars(logger, self.reason())
        return True

    def reason(self) -> str:
        """Return why the run stopped, in a sentence."""
        return (
            f"stopped on collapse at step {self.stopped}: the effective rank of the representation was "
            f"{' and '.join(self._low[-IN_A_ROW:])}, below the threshold of {100 * self.args.spectra_threshold:g} %"
        )

    def selected(self, encoder: Encoder) -> Encoder:
        """Return the encoder to write, on the main process: the best one, or the given one if none was measured.

        Args:
            encoder ([`Encoder`]): That of the last step, with whole weights; it is not changed.
        """
        if self.best is None:
            if self.args.select_by is not None:
                logger.warning("%s was never measured: the encoder is that of the last step", self.args.select_by)
            return encoder
        chosen = copy.deepcopy(encoder)
        chosen.load_state_dict(self._weights)
        return chosen

    def describe(self, steps: int) -> dict[str, str]:
        """Return for the card which encoder was selected, if asked, and why the run stopped, if it did."""
        said = {}
        if self.best is not None and self.args.select_by is not None:
            title = MEASURES[self.args.select_by].title
            said["selected"] = (
                f"step {self.best[0]} of {steps}, by {title} ({self.best[1]:.4g}, the best of {self.measurements} "
                f"measurements on {self.args.spectra_images} training images)"
            )
        if self.stopped is not None:
            said["stopped"] = self.reason().removeprefix("stopped ")
        return said

    def save(self, checkpoint: Path) -> None:
        """Write the state into a checkpoint, on the main process."""
        state = {"measurements": self.measurements, "best": self.best, "low": self._low}
        (checkpoint / STATE).write_text(json.dumps(state | {"images": self.args.spectra_images}), encoding="utf-8")
        if self.best is not None:
            save_file(separate_weights(self._weights), checkpoint / WEIGHTS)

    def load(self, checkpoint: Path) -> None:
        """Restore the state of a checkpoint; call it on every process.

        Raises:
            ValueError: The measurements so far were made on another number of images.
        """
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        images = state["images"]
        if self.args.select_by is not None and state["best"] is not None and images != self.args.spectra_images:
            raise ValueError(
                f"spectra_images is {self.args.spectra_images}, and select_by has compared measurements on {images} so "
                f"far: pass --spectra_images {images}"
            )
        self.measurements, self._low = state["measurements"], state["low"]
        self.best = None if state["best"] is None else (int(state["best"][0]), float(state["best"][1]))
        if self.best is not None and rank() == 0:
            self._weights = load_file(checkpoint / WEIGHTS)


def check_watch(model: SSLModel, args: OrthoSSLTrainingArguments, max_steps: int) -> None:
    """Refuse to select an encoder, or to stop, where a run measures too rarely for it.

    Args:
        model ([`SSLModel`]): The model to train.
        args ([`OrthoSSLTrainingArguments`]): Settings of the run.
        max_steps (`int`): Optimizer steps of the whole run.

    Raises:
        ValueError: There are too few measurements, or the encoder cannot be copied.
    """
    # The last measurement is at the end, where there is nothing left to stop.
    needed = IN_A_ROW + 1 if args.stop_on_collapse else 2 if args.select_by else 0
    if not needed:
        return
    measured, before = 0, 0
    every = steps_between(args.logging_steps, max_steps)
    for step in (*range(every, max_steps, every), max_steps):
        if is_due(step, before, args.spectra_steps, max_steps):
            measured, before = measured + 1, step
    if measured < needed:
        name = "stop_on_collapse" if args.stop_on_collapse else "select_by"
        raise ValueError(
            f"{name} is {getattr(args, name)}, which needs {needed} measurements or more, and the run has {measured}: "
            "lower --spectra_steps and --logging_steps, or leave it out"
        )
    if args.select_by:
        try:
            copy.deepcopy(model.encoder)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"select_by is {args.select_by}, which copies the encoder, and this one cannot be copied ({error}): "
                "leave it out"
            ) from error


def watched_options(args: Any) -> str | None:
    """Return the first option of a run that needs measurements of the representation, `None` without any."""
    return "select_by" if args.select_by else "stop_on_collapse" if args.stop_on_collapse else None
