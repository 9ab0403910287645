"""Read dataclasses of options from the command line and a YAML file, with a suggestion for every misspelt name."""

import argparse
import dataclasses
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..options import NO, YES, Form, convert, default_of, forms, overridden, read_config, unknown
from .help import help_text, usage


@dataclass(frozen=True)
class Option:
    """One option of a command: a field of a dataclass.

    Attributes:
        name (`str`): The field.
        form ([`~options.Form`]): The values that it takes.
        default (`Any`): Its default, `MISSING` if it must be given.
        group (`str`): Its heading in the help.
        metadata (mapping): What the field says of itself, see [`~options`].
    """

    name: str
    form: Form
    default: Any
    group: str
    metadata: Any

    @property
    def positional(self) -> bool:
        """Return whether the option is an argument without a flag."""
        return bool(self.metadata.get("positional"))

    @property
    def flags(self) -> list[str]:
        """Return the flags of the option, spelt with underscores and with dashes."""
        names = [self.name, f"no_{self.name}"] if self.default is True else [self.name]
        spelt = [f"--{spelling}" for name in names for spelling in (name, name.replace("_", "-"))]
        return [*dict.fromkeys(spelt), *(f"-{short}" for short in self.metadata.get("short", ""))]


class _Parser(argparse.ArgumentParser):
    """Raise errors, so that they reach the user as one line without the usage text."""

    def __init__(self, **kwargs: Any):
        super().__init__(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS, **kwargs)
        # argparse mistakes "-1e-6" for an option and would not say that γ must not be negative.
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message: str):
        raise ValueError(message.removeprefix("argument "))


def parse(
    prog: str,
    description: str,
    kinds: list[type],
    argv: list[str],
    base: Path | None = None,
    refusal: Callable[[str], str | None] = lambda name: None,
    without: Collection[str] = (),
) -> tuple[list[Any], dict[str, Any]]:
    """Return dataclasses filled from `--config FILE` and the flags, which override the file.

    Of fields with the same name in several dataclasses the first one is the option, and all are filled with its value.

    A field with `metadata={"positional": True, "help": …}` is an argument without a flag, on the command line only:
    one value for `str`, one or more for `list[str]`.

    Options that take `KEY=VALUE …` are YAML mappings in the file; flags add to them. In the file, a `method:` mapping
    stands for `method` (its `name`) and `method_config` (the rest).

    Args:
        prog (`str`): Name of the command, for help and messages.
        description (`str`): What the command does, for help.
        kinds (`list[type]`): The dataclasses to fill.
        argv (`list[str]`): Command-line arguments.
        base (`Path`, *optional*): File to read if the command line names none.
        refusal (callable, *optional*): Returns why an option is not taken that users may know from elsewhere.
        without (collection of `str`, *optional*): Fields of the dataclasses that are no options of the command.

    Returns:
        The dataclasses, and all options that the file or the flags set to a value other than the default.

    Raises:
        ValueError: A key or flag is unknown (the message suggests the nearest one), a value has the wrong type, an
            argument is missing, or the file is not a mapping.
        SystemExit: The help was asked for and is printed.
    """
    options: dict[str, Option] = {}
    for option in (option for kind in kinds for option in options_of(kind)):
        if option.name not in without:
            options.setdefault(option.name, option)
    asked = [word for word in argv if word in ("-h", "--help", "--help_all", "--help-all")]
    if asked:
        everything = "all" in asked[0]
        print(help_text(prog, description, list(options.values()), everything=everything))
        raise SystemExit(0)
    flagged = _flagged(prog, options, argv, refusal)
    path: str | Path | None = flagged.pop("config", None) or base
    settings = {} if path is None else read_config(path)
    for key in settings:
        if key not in options or options[key].positional:
            known = [name for name, option in options.items() if not option.positional]
            raise ValueError(unknown(key, known, refusal, f"{path}: ", f"{prog} --help lists the options"))
    values = {key: convert(f"{path}: {key}", value, options[key].form) for key, value in settings.items()}
    values = overridden(
        values, {key: convert(_shown(options[key]), value, options[key].form) for key, value in flagged.items()}
    )
    filled = []
    for kind in kinds:
        names = [spec.name for spec in dataclasses.fields(kind) if spec.init and spec.name in values]
        filled.append(kind(**{name: values[name] for name in names}))
    given = {name: values[name] for name, option in options.items() if name in values and not option.positional}
    return filled, {name: value for name, value in given.items() if value != options[name].default}


def scan(argv: list[str]) -> argparse.Namespace:
    """Return `config`, `output_dir` and `resume` from the command line, before anything else is read."""
    finder = _Parser()
    finder.set_defaults(config=None, output_dir=None, resume=False)
    finder.add_argument("--config")
    finder.add_argument("--output_dir", "--output-dir")
    finder.add_argument("--resume", nargs="?", const=True)
    found = finder.parse_known_args(argv)[0]
    found.resume = str(found.resume).lower() not in NO
    return found


def options_of(kind: type) -> list[Option]:
    """Return the options that are the fields of a dataclass."""
    options, known = [], forms(kind)
    for spec in dataclasses.fields(kind):
        if not spec.init:
            continue
        # A dataclass that extends another has its own heading for its own fields.
        home = next(one for one in kind.__mro__ if spec.name in vars(one).get("__annotations__", {}))
        group = str(spec.metadata.get("group") or getattr(home, "_argument_group_name", "options"))
        options.append(Option(spec.name, known[spec.name], default_of(spec), group, spec.metadata))
    return options


def _flagged(
    prog: str, options: dict[str, Option], argv: list[str], refusal: Callable[[str], str | None]
) -> dict[str, Any]:
    """Return what the command line gives, as text, by option."""
    parser = _Parser(prog=prog)
    parser.add_argument("--config")
    for option in options.values():
        listed = option.form.many or option.form.kind is dict
        if option.positional:
            metavar = option.metadata.get("metavar", option.name.upper())
            parser.add_argument(option.name, nargs="+" if listed else None, metavar=metavar)
        elif option.form.kind is bool:
            yes = [flag for flag in option.flags if not flag.startswith(("--no_", "--no-"))]
            parser.add_argument(*yes, dest=option.name, nargs="?", const="true")
            for flag in option.flags:
                if flag not in yes:
                    parser.add_argument(flag, dest=option.name, action="store_const", const="false")
        elif listed:
            parser.add_argument(*option.flags, dest=option.name, nargs="+", action="extend")
        else:
            parser.add_argument(*option.flags, dest=option.name)
    positional = [option for option in options.values() if option.positional]
    if positional:
        argv = _switches_closed(argv, options)
    found, rest = parser.parse_known_intermixed_args(argv)
    flags = ["--config", *(option.flags[0] for option in options.values() if not option.positional)]
    if rest and not rest[0].startswith("-"):
        raise ValueError(f"unexpected argument {rest[0]!r}: {usage(prog, list(options.values()))}")
    if rest:
        flag = rest[0].split("=")[0]
        raise ValueError(unknown(flag, flags, refusal, otherwise=f"{prog} --help lists the options"))
    return vars(found)


def _switches_closed(argv: list[str], options: dict[str, Option]) -> list[str]:
    """Write `--switch` as `--switch=true` if it would take the argument that follows as its value."""
    switches = {flag for option in options.values() if option.form.kind is bool for flag in option.flags}
    closed = []
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        closes = word in switches and following.lower() not in (*YES, *NO) and not word.startswith(("--no_", "--no-"))
        closed.append(f"{word}=true" if closes else word)
    return closed


def _shown(option: Option) -> str:
    return option.metadata.get("metavar", option.name.upper()) if option.positional else f"--{option.name}"
