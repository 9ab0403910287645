"""Read, convert and check what users give for an option, on the command line, in a YAML file or in Python.

The options of a command are the fields of dataclasses. Their `metadata` has `help` (one line) and, where needed:
`metavar` (the name of the value in the help), `group` (a heading), `more` (listed by `--help_all` only), `positional`
(an argument without a flag) and `nan` (NaN is a value). Nothing here imports torch, so that help and typos answer at
once.
"""

import dataclasses
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .messages import describe, suggest

YES, NO = ("yes", "true", "t", "y", "1", "on"), ("no", "false", "f", "n", "0", "off")
# Two forms of one setting, of which a file may have the one and the user give the other.
EXCLUSIVE = {"warmup_steps": "warmup_epochs", "warmup_epochs": "warmup_steps"}
# Options of a file that belong to the backbone, method or regularizer it names, and mean nothing to another one.
BELONGING = {
    "backbone": ("backbone_config", "pretrained"),
    "method": ("method_config",),
    "regularizer": ("gamma", "penalty_mode", "strength", "regularizer_config"),
    "penalty_mode": ("gamma", "strength"),
    "embedding_regularizer": ("embedding_weight", "embedding_config"),
}


@dataclass(frozen=True)
class Form:
    """The values that an option takes.

    Attributes:
        kind (`type`): `str`, `int`, `float`, `bool`, or `dict` for assignments `KEY=VALUE`.
        many (`bool`): Whether it takes one or more of them, as a list.
        optional (`bool`): Whether `None` is a value.
        choices (`tuple[str, ...]`): The only values, if they are listed.
        nan (`bool`): Whether NaN and infinity are values of a number.
        objects (`bool`): Whether Python code may pass an object in the place of a name.
        words (`tuple[str, ...]`): Words that may stand in the place of a number.
    """

    kind: type
    many: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()
    nan: bool = False
    objects: bool = False
    words: tuple[str, ...] = ()


def forms(kind: type) -> dict[str, Form]:
    """Return the form of each field of a dataclass that its constructor takes, by name.

    Raises:
        TypeError: The type of a field is none that an option can have.
    """
    hints = get_type_hints(kind)
    return {
        spec.name: _form(spec.name, hints[spec.name], spec.metadata) for spec in dataclasses.fields(kind) if spec.init
    }


def _form(name: str, hint: Any, metadata: Mapping[str, Any]) -> Form:
    optional, words = False, ()
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        optional = len(parts) < len(get_args(hint))
        if len(parts) == 2 and parts[0] is float and get_origin(parts[1]) is Literal:
            words = get_args(parts.pop())
        hint = parts[0] if len(parts) == 1 else hint
    many = get_origin(hint) is list
    if many:
        (hint,) = get_args(hint)
    if get_origin(hint) is Literal:
        return Form(str, many, optional, choices=get_args(hint))
    hint = get_origin(hint) or hint
    if hint not in (str, int, float, bool, dict):
        raise TypeError(f"option {name} has the type {hint}, which no command line can give")
    return Form(hint, many, optional, nan=bool(metadata.get("nan")), objects=bool(metadata.get("objects")), words=words)


def default_of(spec: dataclasses.Field) -> Any:
    """Return the default of a dataclass field, `MISSING` if it has none."""
    return spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()


def unknown(
    name: str, known: Iterable[str], refusal: Callable[[str], str | None], where: str = "", otherwise: str | None = None
) -> str:
    """Return the error line for an option that does not exist: why it is not taken, or the nearest name.

    Args:
        name (`str`): What the user gave, spelt like the names in `known`.
        known (iterable of `str`): The options that exist.
        refusal (callable): Returns why an option is not taken that users may know from elsewhere, or `None`.
        where (`str`, defaults to ""): Where it was given, such as "recipe.yaml: ".
        otherwise (`str`, *optional*): What to do if no name is near; by default, all names are listed.
    """
    if reason := refusal(name.lstrip("-").replace("-", "_")):
        return f"{where}{name} cannot be used: {reason}"
    return f"{where}unknown option {name!r}: {suggest(name, known, otherwise=otherwise)}"


def convert(name: str, value: Any, form: Form) -> Any:
    """Return the value of an option in its own type.

    Text becomes a number or a truth value, a single value becomes a list of one where a list is due, and assignments
    `KEY=VALUE` become a mapping.

    Args:
        name (`str`): What to call the option in an error.
        value (`Any`): What the user gave: text, or a value of YAML or Python.
        form ([`Form`]): What the option takes.

    Raises:
        ValueError: The option does not take this value.
    """
    if value is None and form.optional:
        return None
    if form.kind is dict:
        return _mapping(name, value)
    if form.many:
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values and not form.optional:
            raise ValueError(f"{name} is an empty list: it must have one value or more")
        return [_single(name, one, form) for one in values]
    return _single(name, value, form)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return parse_assignments(list(value))
    if value is None:
        return {}
    raise ValueError(f"{name} is {describe(value)}: it must be a mapping of names to values, as in name=value")


def _single(name: str, value: Any, form: Form) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, list | tuple | set):
        raise ValueError(f"{name} is the list {describe(value)}: it must be a single value")
    if isinstance(value, Mapping):
        raise ValueError(f"{name} is the mapping {describe(value)}: it must be a single value")
    text = value.strip() if isinstance(value, str) else ""
    if form.objects and not isinstance(value, str | Real):
        return value
    if form.kind is str:
        if isinstance(value, bool) or not isinstance(value, str | Real):
            raise ValueError(f"{name} is {describe(value)}: it must be text{_in_quotes(value)}")
        if form.choices and value not in form.choices:
            raise ValueError(f"{name} is {describe(value)}: {suggest(value, form.choices)}")
        return value if isinstance(value, str) else str(value)
    if form.kind is bool:
        if isinstance(value, bool):
            return value
        word = str(value).lower() if isinstance(value, Integral) else text.lower()
        if word not in (*YES, *NO):
            raise ValueError(f"{name} is {describe(value)}: it must be true or false")
        return word in YES
    if text in form.words:
        return text
    number: float = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        number = value  # type: ignore[assignment]  # a NumPy number counts as a float here
    elif text:
        try:
            number = int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
        except ValueError:
            raise ValueError(f"{name} is {describe(value)}: it must be {_number(form)}") from None
        if not math.isfinite(number) and form.nan:
            return number
    if not math.isfinite(number) and not (form.nan and isinstance(value, Real)):
        raise ValueError(f"{name} is {describe(value)}: it must be {_number(form)}")
    if form.kind is float:
        return float(number)
    if number != int(number):
        raise ValueError(f"{name} is {describe(value)}: it must be {_number(form)}")
    return int(number)


def _number(form: Form) -> str:
    if form.kind is int:
        return "a whole number, as in 10"
    return " or ".join(["a number, as in 0.1 or 1e-4" + "," * bool(form.words), *form.words])


def _in_quotes(value: Any) -> str:
    return ", and YAML reads words such as no and on as truth values unless quoted" if isinstance(value, bool) else ""


def named_backbone(backbone: str | None, pretrained: str | None, default: str = "resnet10t") -> str:
    """Return the backbone of a model: the one named, that of the weights to start from, or the default.

    Raises:
        ValueError: Both name one and they differ, or `pretrained` is a truth value instead of a name.
    """
    if pretrained is None:
        return default if backbone is None else backbone
    if not isinstance(pretrained, str) or pretrained.lower() in (*YES, *NO, ""):
        raise ValueError(
            f"pretrained is {describe(pretrained)}: it must name the weights to start from, which name the backbone "
            f"too; pass --pretrained {backbone or 'resnet50'}, or leave it out for random weights"
        )
    if backbone not in (None, pretrained):
        raise ValueError(
            f"backbone is {backbone!r} and pretrained is {pretrained!r}, which names the backbone too: leave out "
            "backbone"
        )
    return pretrained


def check_layer_decay(factor: float) -> None:
    """Raise a ValueError if the factor of the learning rate per layer is out of range."""
    if not 0 < factor <= 1:
        raise ValueError(f"layer_decay is {factor}: the factor per layer must lie in (0, 1], as in 0.75")


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Read assignments such as `["temperature=0.2", "queue_size=4096"]` into a mapping, each value as YAML.

    Raises:
        ValueError: If an entry is not of the form `key=value`, or its value is not YAML.
    """
    values = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"{text!r} is not of the form key=value, as in temperature=0.2")
        try:
            values[key.strip()] = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"{text!r}: the value is not valid YAML, as in channels=[8,16] or name=text") from error
    return values


def read_yaml(path: str | Path, argument: str, example: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path (`str` or `Path`): The file.
        argument (`str`): The option that named it, for errors.
        example (`str`): An entry of such a file, for errors.

    Returns:
        `dict`: Its content; values such as 1e-3, which YAML 1.1 reads as text, become numbers.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not UTF-8, not YAML or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{argument} {path}: no such file")
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{argument} {path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{argument} {path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{argument} {path} must be a mapping, as in '{example}'")
    return settings


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe, or the `config.yaml` of a run, into flat settings.

    A `method:` mapping becomes `method` (its `name`) and `method_config` (the rest).

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `dict`: Option → value; values such as 1e-3, which YAML 1.1 reads as text, become numbers.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not UTF-8, not YAML or not a mapping.
    """
    settings = read_yaml(path, "--config", "method: byol")
    method = settings.get("method")
    if isinstance(method, dict):
        method = dict(method)
        if "name" not in method:
            raise ValueError(f"--config {path}: the method block has no 'name', as in name: byol")
        settings["method"] = method.pop("name")
        settings["method_config"] = {**method, **(settings.get("method_config") or {})}
    return settings


def overridden(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file, with those given beside it.

    A mapping that is given extends that of the file. An option replaces the one that it cannot stand beside, and
    another backbone, method or regularizer comes without the settings that the file has for its own.

    Args:
        settings (mapping): Option → value, from a file.
        given (mapping): Option → value, from flags or keyword arguments.
    """
    excluded = {EXCLUSIVE[name] for name in given if name in EXCLUSIVE}
    chosen, before = ({"backbone": kept.get("pretrained")} | dict(kept) for kept in (given, settings))
    for name, belonging in BELONGING.items():
        if None not in (chosen.get(name), before.get(name)) and chosen[name] != before[name]:
            excluded.update({*belonging, name})
    merged = {name: value for name, value in settings.items() if name not in excluded}
    for name, value in given.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merged[name] | value if both else value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with numbers in exponential notation without a dot, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; of a key that is given twice, YAML would silently keep the last value."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value} is given twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
