"""Write the report of a run: one HTML file that needs neither a network nor a program, with all pictures inside."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from ..data import ImageSource
from ..encoders import Encoder
from ..files import replace_file
from ..hub.escaping import clean
from ..hub.leaderboard.page.charts import tick
from ..messages import without_secrets
from ..training.run_folder import REPORT, is_report
from ..training.settings import NOT_SETTINGS
from . import charts
from .pictures import IMAGES, Pictures, draw_pictures
from .run import Run
from .verdict import judge

_TEMPLATE = "page.html"


def write_report(
    run: str | Path,
    output: str | Path | None = None,
    *,
    images: int = IMAGES,
    encoder: Encoder | None = None,
    source: ImageSource | None = None,
) -> Path:
    """Write the report of a run as one HTML page, and return its file.

    The page says in one sentence whether the run is healthy or has collapsed, where and what to try, and shows curves
    of loss, accuracy and ranks, spectra, nearest neighbours, a map, the views that the run saw and its settings. It
    contains its pictures, no scripts, and no addresses that a browser would fetch.

    Args:
        run (`str` or `Path`): The folder of a run, which may still be under way.
        output (`str` or `Path`, *optional*): The file to write; defaults to `report.html` in the folder. An earlier
            report is replaced, any other file is not.
        images (`int`, defaults to 300): The images of the data set that map and neighbours are made of; 0 for none,
            which also leaves out the views.
        encoder ([`Encoder`], *optional*): The trained encoder; by default that in the folder is loaded.
        source ([`ImageSource`], *optional*): The images of the run; by default they are opened as its settings say.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder holds no run, or one that has not begun, or `output` is a file that is no report.
        OSError: The file cannot be written.

    Example:
        >>> write_report("runs/default")
        PosixPath('runs/default/report.html')
    """
    read = Run.read(Path(run))
    path = Path(run) / REPORT if output is None else Path(output)
    check_output(path)
    pictures = draw_pictures(read, images, encoder=encoder, source=source)
    path.parent.mkdir(parents=True, exist_ok=True)
    return replace_file(path, render(read, pictures))


def check_output(path: Path) -> None:
    """Refuse to replace a file that is no report.

    Raises:
        ValueError: The file exists and no report, or is a folder.
    """
    if path.is_dir():
        raise ValueError(f"output {path} is a folder: pass the name of a file, as in report.html")
    if path.exists() and not is_report(path):
        raise ValueError(f"output {path} exists and is no report of orthossl: pass another file, or remove it")


def render(run: Run, pictures: Pictures) -> str:
    """Return the page of a run.

    Args:
        run ([`Run`]): The run.
        pictures ([`Pictures`]): What a sample of its images shows.
    """
    weights, features = charts.spectra(run)
    return _template().render(
        run=run,
        title=run.title,
        folder=run.folder.resolve().name,
        verdict=judge(run),
        tiles=_tiles(run),
        over_time=charts.over_time(run),
        weights=weights,
        features=features,
        map=charts.class_map(pictures.points, pictures.axes),
        pictures=pictures,
        settings=_settings(run),
        tick=tick,
        width=charts.WIDTH,
        height=charts.HEIGHT,
        colors=charts.COLORS,
    )


@cache
def _template() -> Template:
    # Names, labels and settings come from strangers: all of them are escaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"clean": clean, "unbroken": _unbroken, "breakable": _breakable}
    return environment.get_template(_TEMPLATE)


def _unbroken(text: str) -> Markup:
    """Return a text whose options are code, which stays on one line."""
    parts = re.split(r"(--\w+(?: (?:yes|no|so|auto|\d+)\b)?)", text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if p.startswith("--") else p for p in parts)


def _breakable(name: str) -> Markup:
    """Return a name that may be broken after each underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """Return the main numbers: name, value, and what it is compared with."""
    tiles = []
    if run.spectra is not None and "representation" in run.spectra.features:
        f = run.spectra.features["representation"]
        start = run.start.features.get("representation") if run.start else None
        before = f"{start.effective_rank:.1f} at the start" if start else ""
        tiles.append(("effective rank", f"{f.effective_rank:.1f}", f"of {f.most_positive:,}; {before}".rstrip("; ")))
    if run.accuracies:
        before = f"{run.accuracies[0]:.3f} before training" if len(run.accuracies) > 1 else ""
        tiles.append(("kNN top-1", f"{run.accuracies[-1]:.3f}", before))
    if run.spectra is not None and run.spectra.weights:
        shares = [w.effective_rank / min(w.shape) for w in run.spectra.weights.values()]
        tiles.append(
            (
                "directions of the weights",
                f"{sum(shares) / len(shares):.0%}",
                f"in use on average, {min(shares):.0%} least",
            )
        )
    if loss := run.series("loss"):
        tiles.append(("loss", f"{loss[-1][1]:.4g}", f"{loss[0][1]:.4g} at step {loss[0][0]:,}"))
        tiles.append(("steps", f"{run.history[-1]['step']:,}", "" if run.record else "not ended"))
    return tiles


def _settings(run: Run) -> list[tuple[str, str]]:
    """Return names and values of the settings that ran, those that were seen first, without secrets."""
    ran: dict[str, Any] = dict(run.record.training) if run.record else {}
    if run.record is not None and run.record.commit:
        ran["commit"] = run.record.commit
    asked = {name: value for name, value in run.settings.items() if name not in (*NOT_SETTINGS, *ran)}
    values = {name: value for name, value in (ran | asked).items() if value not in (None, "", {}, [])}
    return [(name, without_secrets(clean(value))) for name, value in values.items()]
