"""The help of a command: its options in groups, aligned, with their defaults stated once."""

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .parsing import Option

# The column of the descriptions, below WIDE characters and from there on. Longer names have a line of their own.
COLUMN, WIDE_COLUMN, WIDE, WIDEST = 30, 36, 100, 120
VALUES = {str: "TEXT", int: "N", float: "X", dict: "KEY=VALUE"}


def help_text(prog: str, description: str, options: Sequence["Option"], *, everything: bool = False) -> str:
    """Return the help of a command.

    Args:
        prog (`str`): The name of the command.
        description (`str`): What it does.
        options (sequence of [`Option`]): Its options.
        everything (`bool`, defaults to `False`): Whether to list the options that are rarely needed as well.
    """
    width = min(max(shutil.get_terminal_size().columns, 60), WIDEST)
    positional = [option for option in options if option.positional]
    lines = [f"usage: {usage(prog, options)}", "", *textwrap.wrap(description, width)]
    rare = [option for option in options if option.metadata.get("more")]
    general = [
        ("--config FILE", "YAML file of options; flags override it"),
        ("--help", "show this help"),
    ]
    if rare:
        general.append(("--help_all", f"show {len(rare)} more option{'s' if len(rare) > 1 else ''}"))
    if positional:
        lines += ["", "arguments"]
        lines += [line for one in positional for line in _entry(value_name(one), one.metadata["help"], width)]
    groups: dict[str, list[tuple[str, str]]] = {"options": general}
    for option in options:
        if not option.positional and (everything or option not in rare):
            groups.setdefault(option.group, []).append((_invocation(option), _described(option)))
    for heading, entries in groups.items():
        lines += ["", heading]
        lines += [line for invocation, text in entries for line in _entry(invocation, text, width)]
    return "\n".join([*lines, "", "Add --debug to any command to see the traceback of an error."])


def usage(prog: str, options: Sequence["Option"]) -> str:
    """Return what a command line of a command looks like."""
    names = (
        value_name(one) + (f" [{value_name(one)} …]" if one.form.many else "") for one in options if one.positional
    )
    return " ".join([prog, *names, "[options]"])


def value_name(option: "Option") -> str:
    """Return what stands for the value of an option in its help."""
    given = option.metadata.get("metavar")
    if given or option.positional:
        return str(given or option.name.upper())
    if option.form.kind is bool:
        return "yes|no"
    return "|".join(option.form.choices or (VALUES[option.form.kind], *option.form.words))


def _invocation(option: "Option") -> str:
    flag = f"--{option.name}"
    if option.form.kind is bool and option.default is False:
        return flag
    more = "…" if option.form.many or option.form.kind is dict else ""
    return f"{flag} {value_name(option)}{more}"


def _described(option: "Option") -> str:
    text, default = str(option.metadata.get("help", "")), option.default
    # A switch is off unless given, and some help texts say themselves what happens by default.
    if default is None or default is False or default is MISSING or "default" in text:
        return text
    return f"{text} (default: {_value(default)})"


def _value(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, list):
        return " ".join(map(_value, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _entry(invocation: str, text: str, width: int) -> list[str]:
    column = COLUMN if width < WIDE else WIDE_COLUMN
    wrapped = textwrap.wrap(text, width - column) or [""]
    start = f"  {invocation}"
    if len(start) > column - 2:
        return [start, *(" " * column + line for line in wrapped)]
    return [start.ljust(column) + wrapped[0], *(" " * column + line for line in wrapped[1:])]
