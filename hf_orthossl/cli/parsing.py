"""Read dataclasses from the command line and a YAML file, with a suggestion for every misspelt name."""

import argparse
import dataclasses
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ..messages import suggest
from ..methods import parse_assignments
from ..training import OrthoSSLTrainingArguments
from ..training.run_folder import read_config

# Options of the Trainer that do not apply to pretraining, or whose value is fixed.
WITHOUT_EFFECT = (
    "do_train",
    "do_eval",
    "do_predict",
    "resume_from_checkpoint",
    "remove_unused_columns",
    "logging_nan_inf_filter",
)
OWN_OPTIONS = tuple(OrthoSSLTrainingArguments.__annotations__)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Format help with one spelling per option, the type of its value, and its default stated once."""

    def _get_help_string(self, action: argparse.Action) -> str:
        # A switch is off unless given.
        if action.default is None or action.default is False or "default" in (action.help or ""):
            return action.help or ""
        return super()._get_help_string(action) or ""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        if action.nargs == 0 or isinstance(action.const, bool):
            return action.option_strings[0]
        value = str(action.metavar or getattr(action.type, "__name__", "text").upper())
        return f"{action.option_strings[0]} {'TEXT' if value == 'STR' else value}"


class _Parser(HfArgumentParser):
    """Raise errors, so that they reach the user as one line without the usage text."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # argparse mistakes "-1e-6" for an option and would not say that γ must not be negative.
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field):
        if not field.metadata.get("positional"):
            HfArgumentParser._parse_dataclass_field(parser, field)
            return
        metavar = field.metadata.get("metavar", field.name.upper())
        nargs = "+" if getattr(field.type, "__origin__", None) is list else None
        parser.add_argument(field.name, nargs=nargs, metavar=metavar, help=field.metadata["help"])

    @property
    def positionals(self) -> list[argparse.Action]:
        return self._get_positional_actions()

    def error(self, message: str):
        raise ValueError(message)


def parse(
    prog: str, description: str, dataclasses: list[type], argv: list[str], base: Path | None = None
) -> tuple[list[Any], dict[str, Any]]:
    """Return dataclasses filled from `--config FILE` and the flags, which override the file.

    A field with `metadata={"positional": True, "help": …}` is an argument without a flag, on the command line only:
    one value for `str`, one or more for `list[str]`.

    Options that take `KEY=VALUE …` are YAML mappings in the file; flags add to them. In the file, a `method:` mapping
    stands for `method` (its `name`) and `method_config` (the rest).

    Args:
        prog (`str`): Name of the command, for help and messages.
        description (`str`): What the command does, for help.
        dataclasses (`list[type]`): The dataclasses to fill.
        argv (`list[str]`): Command-line arguments.
        base (`Path`, *optional*): File to read if the command line names none.

    Returns:
        The dataclasses, and all options that the file or the flags set to a value other than the default.

    Raises:
        ValueError: A key or flag is unknown (the message suggests the nearest one), a value has the wrong type, an
            argument is missing, or the file is not a mapping.
    """
    parser = _parser(prog, description, dataclasses)
    options = {action.dest: action for action in parser._actions if action.option_strings}
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    usual = {dest: _default(parser, option) for dest, option in options.items() if dest not in ("help", "config")}

    path: str | Path | None = scan(argv).config or base
    settings = read_config(path) if path else {}
    for key, value in settings.items():
        if key not in options:
            raise ValueError(f"{path} has an unknown key {key!r}: {suggest(key, options)}")
        _check_form(str(path), key, value, options[key])
    mappings = {key: settings.pop(key) for key in list(settings) if isinstance(settings[key], dict)}
    parser.set_defaults(**{key: _as_text(value) for key, value in settings.items()})

    if parser.positionals:
        argv = _switches_closed(argv, parser)
    known, unknown = parser.parse_known_intermixed_args(argv)
    if unknown and not unknown[0].startswith("-"):
        raise ValueError(f"unexpected argument {unknown[0]!r}: {parser.usage}")
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}: {suggest(unknown[0].split('=')[0], flags)}")
    for key, mapping in mappings.items():
        flagged = getattr(known, key)
        if flagged is None or isinstance(flagged, list):
            setattr(known, key, {**mapping, **parse_assignments(flagged or [])})
    given = {key: getattr(known, key) for key, value in usual.items() if getattr(known, key) != value}
    filled = []
    for kind in dataclasses:
        names = [field.name for field in fields(kind) if field.init]
        filled.append(kind(**{name: getattr(known, name) for name in names}))
    return filled, given


def scan(argv: list[str]) -> argparse.Namespace:
    """Return `config`, `output_dir` and `resume` from the command line, before anything else is read."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    finder.add_argument("--output_dir", "--output-dir")
    finder.add_argument("--resume", nargs="?", const=True, type=string_to_bool, default=False)
    return finder.parse_known_args(argv)[0]


def _parser(prog: str, description: str, dataclasses: list[type]) -> _Parser:
    # The Trainer's own --debug stays reachable from the file; on the command line --debug alone shows tracebacks.
    epilog = "Add --debug to any command to see the traceback of an error."
    parser = _Parser(
        dataclasses,
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    names = (f"{a.metavar} [{a.metavar} …]" if a.nargs else str(a.metavar) for a in parser.positionals)
    parser.usage = " ".join([prog, *names, "[options]"])
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options; flags override it")
    for group in parser._action_groups:
        # List the options of this package before those of the Trainer.
        if any(issubclass(kind, OrthoSSLTrainingArguments) for kind in dataclasses):
            group._group_actions.sort(key=lambda action: action.dest not in OWN_OPTIONS)
        for action in group._group_actions:
            if action.dest in WITHOUT_EFFECT:
                action.help = argparse.SUPPRESS
    return parser


def _default(parser: _Parser, option: argparse.Action) -> Any:
    """Return the default of an option as parsing returns it: argparse converts defaults that are text."""
    default = parser.get_default(option.dest)
    return parser._get_value(option, default) if isinstance(default, str) else default


def _switches_closed(argv: list[str], parser: _Parser) -> list[str]:
    """Write `--switch` as `--switch=true` if it would take the argument that follows as its value."""
    switches = {flag for action in parser._actions if action.const is True for flag in action.option_strings}
    closed = []
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        try:
            string_to_bool(following)
            is_value = True
        except argparse.ArgumentTypeError:
            is_value = False
        closed.append(f"{word}=true" if word in switches and not is_value else word)
    return closed


def _check_form(path: str, key: str, value: Any, option: argparse.Action) -> None:
    """Reject a list or a mapping for an option that takes one value."""
    if isinstance(value, list) and option.nargs not in ("+", "*"):
        raise ValueError(f"{path}: {key} must be a single value, got the list {value}")
    if isinstance(value, dict) and not key.endswith(("_config", "_kwargs")):
        raise ValueError(f"{path}: {key} must be a single value, got the mapping {value}")


def _as_text(value: Any) -> Any:
    # argparse converts text defaults in the same way as flags, and YAML reads "1e-3" as text anyway.
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
