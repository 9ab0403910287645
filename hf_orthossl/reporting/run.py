"""Read what a run has written into its folder, as far as it has come."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation import Result, read_results
from ..hub.encoder_record import EncoderRecord
from ..options import read_config
from ..spectra import SpectralReport
from ..spectra.report import SCALARS
from ..spectra.stages import REPRESENTATION
from ..training.callbacks.reporting import read_history
from ..training.run_folder import is_run
from ..training.starting import START

RANK = f"spectra/features/{REPRESENTATION}/effective_rank"
RELATIVE = "spectra/weights/relative_rank_mean"


@dataclass(frozen=True)
class Run:
    """The files of a run folder, read.

    Args:
        folder (`Path`): The folder.
        settings (`dict`): Its `config.yaml`; empty for a run that was started from Python with a trainer.
        history (`list[dict]`): The log entries, each with its `step`.
        results (`list[Result]`): kNN accuracies before and after, if there are labels, and the drift.
        record ([`EncoderRecord`], *optional*): What the encoder folder says of itself; `None` until the run has ended.
        spectra ([`SpectralReport`], *optional*): The spectra of the encoder that was written.
        start ([`SpectralReport`], *optional*): Those of given weights, before the first step.
    """

    folder: Path
    settings: dict[str, Any]
    history: list[dict[str, Any]]
    results: list[Result] = field(default_factory=list)
    record: EncoderRecord | None = None
    spectra: SpectralReport | None = None
    start: SpectralReport | None = None

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run folder; a run that has not ended has no encoder yet.

        Args:
            folder (`Path`): The folder.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: The folder holds no run, or one that has not begun, or a file of it cannot be read.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; pass a run of orthossl pretrain, as in runs/default")
        if not is_run(folder):
            raise ValueError(f"{folder} is no run folder: pass a run of orthossl pretrain, as in runs/default")
        settings = read_config(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
        encoder, history = folder / "encoder", read_history(folder)
        record = EncoderRecord.read(encoder) if (encoder / "config.json").is_file() else None
        if record is None and not history:
            raise ValueError(f"the run in {folder} has not begun: it has neither log entries nor an encoder yet")
        results = read_results(folder / "results.json") if (folder / "results.json").is_file() else []
        return cls(folder, settings, history, results, record, _spectra(encoder), _spectra(folder / START))

    @property
    def title(self) -> str:
        """Return what the run trains: backbone, method and penalty."""
        if self.record is not None:
            return self.record.short_name
        names = (self.settings.get(name) for name in ("backbone", "method", "regularizer"))
        return "-".join(str(name) for name in names if name) or self.folder.resolve().name

    @property
    def accuracies(self) -> list[float]:
        """Return kNN top-1 before and after training; fewer if they were not measured."""
        return [result.value for result in self.results if result.task == "knn" and result.metric == "top1"]

    def series(self, key: str) -> list[tuple[int, float]]:
        """Return step and value of each log entry that has a finite number under a key."""
        values = ((entry["step"], entry.get(key)) for entry in self.history)
        return [(s, float(v)) for s, v in values if isinstance(v, int | float) and abs(v) < float("inf")]


def _spectra(folder: Path) -> SpectralReport | None:
    return SpectralReport.load(folder) if (folder / SCALARS).is_file() else None
