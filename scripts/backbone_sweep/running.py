"""Run the checks of one backbone in processes of its own, which a crash, memory or time ends alone."""

import json
import multiprocessing
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import transformers

from .subjects import Subject

LIBRARIES = ("torch", "timm", "transformers")
GIB = 2**30


def versions() -> dict[str, str]:
    """Return the releases of the libraries that are swept."""
    return {library: version(library) for library in LIBRARIES}


def examine(subject: Subject, seconds: float, gigabytes: float) -> dict[str, Any]:
    """Return the row of a backbone: what `check_backbone` found, its architecture, status and time.

    Args:
        subject ([`Subject`]): The backbone.
        seconds (`float`): The time for its checks.
        gigabytes (`float`): The memory that they may take on top of the libraries', in GiB.

    Returns:
        `dict`: JSON values; `status` is "supported", "refused" (in one line, by `load_encoder`), "failed" (a check
        failed, or crashed) or "unbuilt" (the library itself does not build it here).
    """
    start = time.monotonic()
    row: dict[str, Any] = {"library": subject.library, "name": subject.name, "checks": {}, "versions": versions()}
    with tempfile.TemporaryDirectory(prefix="sweep_") as place:
        folder = Path(place)
        row |= _in_child(_check, (subject, folder), folder / "row.json", seconds, gigabytes)
        if row["checks"].get("export") == "ok":
            left = seconds - (time.monotonic() - start)
            row["checks"]["reloaded"] = _in_child(_reload, (folder,), folder / "reload.json", left, gigabytes).get(
                "reloaded", "it did not end"
            )
    if "status" not in row:
        row["status"] = "supported" if all(value == "ok" for value in row["checks"].values()) else "failed"
    row["seconds"] = round(time.monotonic() - start, 1)
    return row


def _in_child(run: Callable, arguments: tuple, file: Path, seconds: float, gigabytes: float) -> dict[str, Any]:
    """Run a function in a forked process that has imported the libraries already, and return what it wrote."""
    child = multiprocessing.get_context("fork").Process(target=_guarded, args=(run, arguments, file, gigabytes))
    child.start()
    child.join(max(seconds, 1))
    if child.exitcode is None:
        child.kill()
        child.join()
        return {"status": "failed", "checks": {"time": f"it took more than {seconds:.0f} s"}}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        number = -child.exitcode
        reason = signal.Signals(number).name if number > 0 else f"exit status {child.exitcode}"
        return {"status": "failed", "checks": {"crash": f"its process ended by {reason}"}}


def _guarded(run: Callable, arguments: tuple, file: Path, gigabytes: float) -> None:
    limit = psutil.Process().memory_info().vms + int(gigabytes * GIB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        found = run(*arguments)
    except MemoryError:
        found = {"status": "failed", "checks": {"memory": f"it needs more than {gigabytes:g} GiB"}}
    except Exception:
        found = {"status": "failed", "checks": {"crash": traceback.format_exc()[-300:]}}
    file.write_text(json.dumps(found), encoding="utf-8")


def _check(subject: Subject, folder: Path) -> dict[str, Any]:
    from .checks import check_backbone  # here, so that the process that reloads exports has not imported the package

    model = folder / "model"
    model.mkdir()
    try:
        name, architecture = subject.prepare(model)
    except Exception as error:  # of the library: its model cannot be built with so small a configuration
        return {
            "status": "unbuilt",
            "checks": {"build": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"},
        }
    found = check_backbone(name, subject.library, folder)
    if found.pop("refused", False):
        found["status"] = "refused"
    # The name of a folder that is gone says nothing.
    checks = {check: text.replace(str(model), subject.name) for check, text in found.pop("checks").items()}
    return {"architecture": architecture, "checks": checks, **found}


def _reload(folder: Path) -> dict[str, Any]:
    from .reload import check_export

    try:
        return {"reloaded": check_export(folder)}
    except Exception as error:  # a failure of any class is what is looked for
        return {"reloaded": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
