"""The `orthossl` command: run a sub-command, and report bad input in one clear line."""

import importlib
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..distributed import peers
from ..distributed.ending import SignalGuard, Terminated, end_now, tell_ended
from ..distributed.environment import check_environment, peer_failed, print_error_once
from ..distributed.launch import end_processes
from ..distributed.progress import here
from ..terminal import keep_printing

# Sub-command → description. Its options are read by a module of `options`, without torch; its own module, imported only
# once they are read, has the `main` that takes them.
COMMANDS = {
    "pretrain": "train an encoder on unlabelled images, with an orthogonality penalty",
    "compare": "find which way to prevent collapse works on your data, by runs paired by seed",
    "evaluate": "measure encoders: kNN, linear probes, fine-tuning, transfer, detection",
    "embed": "write the vectors of all images of a data set to one file",
    "neighbours": "show nearest images, duplicates and outliers of a data set",
    "convert": "make an encoder folder of a checkpoint of another project",
    "export": "write an encoder as ONNX, TorchScript or torch.export, checked against it",
    "publish": "publish the encoder of a run on the Hugging Face Hub",
    "leaderboard": "collect, show and verify the leaderboard of published encoders",
    "report": "write a page that says what a run came to, and what to try",
    "views": "draw the augmented views that a run would see",
    "spectra": "measure how many directions encoders use, and compare them",
    "patches": "draw what an encoder makes of the places in images",
    "forecast": "predict from data and augmentations which directions training will lose",
    "methods": "list methods, regularizers, view recipes and backbones",
}

USAGE = "\n".join(
    [
        "usage: orthossl COMMAND [options]",
        "",
        "Self-supervised pretraining of timm and Hugging Face backbones with orthogonality regularization.",
        "",
        "commands:",
        *(f"  {name:<11} {text}" for name, text in COMMANDS.items()),
        "",
        "orthossl COMMAND --help lists a command's options; --debug shows the traceback of an error.",
    ]
)

# Raised by bad input, an unreadable file or a diverged run; anything else is a defect and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ArithmeticError)


def main(argv: list[str] | None = None) -> None:
    """Run `orthossl` or `python -m hf_orthossl`."""
    keep_printing()
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    if argv[0] == "--version":
        from .. import __version__

        print(f"orthossl {__version__}")
        return
    name = argv[0]
    if name not in COMMANDS:
        from ..messages import suggest

        fail("orthossl", ValueError(f"unknown command {name!r}: {suggest(name, COMMANDS)}"))
    run(f"orthossl {name}", lambda rest: perform(name, rest), argv[1:])


def perform(name: str, argv: list[str], *, prog: str | None = None, **settings: Any) -> None:
    """Read the options of a command, and run it.

    Args:
        name (`str`): The command, one of `COMMANDS`.
        argv (`list[str]`): Its arguments.
        prog (`str`, *optional*): Its name in help and messages.
        settings: Further arguments of its `main`, such as `front="loop"` for "pretrain".

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    options = importlib.import_module(f".options.{name}", __name__).read(argv, *([prog] if prog else []))
    importlib.import_module(f".{name}", __name__).main(*options, **settings)


def run(prog: str, command: Callable[[list[str]], object], argv: list[str]) -> None:
    """Run the `main(argv)` of a command; errors that the user can fix become one line and exit code 2.

    A signal ends it with one line and exit code 128 plus its number. If several processes fail, only the first prints
    its error; if one ends or does not answer, the others say so.
    """
    keep_printing()
    here.begin(prog)
    debug = "--debug" in argv
    try:
        with SignalGuard() as guard:
            try:
                check_environment()
                command([argument for argument in argv if argument != "--debug"])
                end_processes()
            except RuntimeError as error:
                # A signal to the whole process group ends the processes of a data loader too, and perhaps first.
                if guard.comes():
                    raise Terminated(guard.received or signal.SIGTERM) from error
                raise
    except USER_ERRORS as error:
        if debug:
            raise
        fail(prog, error)
    except KeyboardInterrupt:
        _end_by_signal(signal.SIGINT)
    except Terminated as error:
        _end_by_signal(error.number)
    except RuntimeError as error:
        from ..disk_errors import full_disk

        # After one process has ended, the errors of its peers do not show the cause.
        if debug:
            raise
        if full := full_disk(error):
            fail(prog, full)
        if peer_failed():
            raise SystemExit(2) from None
        if line := peers.lost_peer():
            end_now(2, lambda: peers.tell_lost(line))
        if _is_of_a_worker(error):
            reason = "a process that decodes images was ended from outside, perhaps because memory ran out"
            fail(
                prog, ValueError(f"{reason}: lower the number of workers or of images in a batch, and {here.remedy()}")
            )
        raise


def _is_of_a_worker(error: RuntimeError) -> bool:
    """Return whether a data loader has raised an error because one of its processes is gone."""
    raised_by = [Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)][-1:]
    return any("torch" in parts and parts[-1] in ("signal_handling.py", "dataloader.py") for parts in raised_by)


def _end_by_signal(number: int) -> NoReturn:
    """Say that a signal ended the command; a launcher sends one as well when another process has ended."""
    if line := peers.lost_peer(within=0.3):
        end_now(2, lambda: peers.tell_lost(line))
    if not peer_failed():
        tell_ended(number)
    raise SystemExit(128 + number)


def fail(prog: str, error: Exception) -> None:
    """Print one line and exit with code 2."""
    from ..disk_errors import full_disk
    from ..messages import without_secrets

    message = without_secrets(" ".join(str(full_disk(error) or error).split()) or type(error).__name__)
    print_error_once(f"{prog}: error: {message}")
    raise SystemExit(2)
