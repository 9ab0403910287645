"""Say in lines what a run is about to do, before its first step, and what it came to, after the last."""

import resource
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from ..configuration import AUTO
from ..data import ImageSource, UnreadableLog
from ..evaluation import KNNMonitor, Result
from ..messages import readable_size
from ..methods import get_method
from ..modeling import SSLModel
from ..spectra import SpectralReport
from .auto_gamma import gamma_text
from .data import UNREADABLE_IMAGES, TrainingData
from .display import duration
from .freezing import Freezing


@dataclass(frozen=True)
class Spent:
    """Hold what a training took, in this process.

    Args:
        seconds (`float`): From its begin to its end, with the measurements in between.
        images (`int`): Images that were trained on, in all processes.
        memory (`int`): Most bytes of this process in memory so far, of the GPU if it trained there.
        where (`str`): "memory", or "memory of the GPU".
    """

    seconds: float
    images: int
    memory: int
    where: str

    @classmethod
    def of(cls, seconds: float, images: int) -> Self:
        """Return what was spent, with the memory that this process needed at most."""
        if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            return cls(seconds, images, torch.cuda.max_memory_allocated(), "memory of the GPU")
        # In bytes on macOS, else in KiB.
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return cls(seconds, images, most, "memory")

    def describe(self) -> str:
        """Return duration, speed and memory in words."""
        speed = self.images / max(self.seconds, 1e-9)
        return (
            f"{duration(self.seconds)}, {speed:,.{0 if speed >= 10 else 1}f} images/s, at most "
            f"{readable_size(self.memory)} of {self.where}"
        )


def describe(model: SSLModel, source: ImageSource, data: TrainingData, monitor: KNNMonitor | None) -> str:
    """Return lines that describe the run: what was taken of the data, the views, and the model."""
    others = [] if monitor is None or monitor.queries_from is source else [monitor.queries_from]
    config, encoder = model.config, model.encoder
    size = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    changed = f" ({data.views.changes})" if data.views.changes else ""
    normalized = f"pixels   {data.measured}\n" if data.measured else ""
    penalty = "no penalty" if config.constrain is None else f"weights kept {config.constrain}"
    if config.regularizer is not None:
        decoupled = config.penalty_mode == "decoupled"
        weight = f"decoupled, λ = {config.strength:g}" if decoupled else f"γ = {gamma_text(config.gamma)}"
        penalty = f"{config.regularizer}, {weight}"
    if config.embedding_regularizer is not None:
        penalty += f"; {config.embedding_regularizer} of the {config.embedding_layer}, w = {config.embedding_weight:g}"
    start = "" if encoder.start is None else f"\nstart    {encoder.start.describe()}"
    facts = "".join(f"\n{name:<8} {value}" for name, value in model.method.facts().items())
    constraint = "" if model.constraint is None else f"\nweights  {model.constraint.describe()}"
    if model.constraint is not None and encoder.start is not None and model.constraint.moved is not None:
        constraint += f"; the given ones moved by {model.constraint.moved:.0%} of their norm"
    freezing = Freezing.of(model, data.args)
    frozen = "" if freezing is None else f"\nfrozen   {freezing.describe(model)}"
    return (
        f"data     {source.describe(*others, use=' for kNN')}\n"
        f"views    {data.views.recipe.name} at {encoder.image_size} px{changed}\n"
        f"{normalized}"
        f"model    {config.backbone} ({size:.1f} M parameters), {get_method(config.method).title}, {penalty}"
        f"{start}{facts}{frozen}{constraint}"
        + ("" if model.regularizer is None else f"\npenalty  {model.regularizer.summary()}")
    )


def summarize(
    folder: Path,
    results: list[Result],
    penalties: list[float],
    model: SSLModel,
    report: SpectralReport,
    watched: dict[str, str],
    ranks: list[tuple[float, int]],
    spent: Spent,
) -> str:
    """Return lines that summarize the results and files of a run folder, and what its measurements have decided.

    Args:
        folder (`Path`): The folder.
        results (`list[Result]`): kNN accuracies and drift.
        penalties (`list[float]`): Σ OR(W) before and after.
        model ([`SSLModel`]): The trained model.
        report ([`SpectralReport`]): The spectra of the encoder that was written.
        watched (`dict[str, str]`): Which encoder was selected.
        ranks (`list[tuple[float, int]]`): Effective rank of the representation and its largest possible value, before
            and after training, of the same images.
        spent ([`Spent`]): What the training took.
    """
    lines = [f"training {spent.describe()}"]
    lines += [f"collapse {' '.join(sentences)}"] if (sentences := report.complete_collapse()) else []
    if top1 := [result for result in results if result.metric == "top1"]:
        first, last = top1[0].value, top1[-1].value
        lines.append(f"kNN      top-1 {first:.3f} before training, {last:.3f} after ({top1[-1].split})")
    if len(ranks) > 1:
        (first, _), (last, most) = ranks[0], ranks[-1]
        lines.append(
            f"rank     {first:.1f} before training, {last:.1f} after (effective, of the representation, ≤ {most})"
        )
    if drift := {result.metric: result.value for result in results if result.task == "drift"}:
        lines.append(
            f"drift    linear CKA {drift['linear_cka']:.3f}, mean cosine {drift['mean_cosine']:.3f} with the start"
        )
    if len(penalties) > 1:
        before = " (before γ)" if model.config.penalty_mode == "loss" else ""
        before += " of the last step" if watched.get("selected") else ""
        lines.append(
            f"{model.config.regularizer:<8} {penalties[0]:.5g} before training, {penalties[-1]:.5g} after{before}"
        )
    if model.config.gamma == AUTO:
        lines.append(f"gamma    {model.gamma:.3g}, measured by the first steps")
    unreadable = folder / UNREADABLE_IMAGES
    if count := len(UnreadableLog(unreadable)):
        lines.append(f"images   {count:,} unreadable, left out: {unreadable}")
    lines += [
        f"results  {folder / 'results.json'}",
        f"encoder  {folder / 'encoder'} (README.md shows how to load it)",
    ]
    if selected := watched.get("selected"):
        lines.insert(-1, f"selected {selected}")
    return "\n".join(lines)


def next_command(folder: Path, dataset: list[str] | None, collapsed: bool) -> str:
    """Return the line that says which command to type next.

    Args:
        folder (`Path`): The folder of the run.
        dataset (`list[str]`, *optional*): The images, as the command names them; `None` for a data set in memory.
        collapsed (`bool`): Whether the encoder has collapsed completely, so that it is of no use.
    """
    images = "" if dataset is None else f" --dataset {shlex.join(dataset)}"
    if collapsed and images:
        return f"next     orthossl compare{images} (which remedy works on these images)"
    if not images:
        return f"next     orthossl spectra {shlex.quote(str(folder))} (how many directions it uses)"
    return f"next     orthossl embed {shlex.quote(str(folder))}{images} (a vector for each image)"
