"""`orthossl methods`: list methods, penalties, view recipes and backbones."""

import dataclasses
import json

from ..data import RECIPES
from ..encoders import OWN_BACKBONES
from ..methods import EMBEDDING_REGULARIZERS, METHODS, THEORY_LOSSES, SSLMethod
from ..methods.costs import measured_costs
from ..methods.hyperparameters import Hyperparameters
from ..regularization import PENALTIES
from .options.methods import MethodsArguments

COLUMNS = ("method", "needs", "views", "time", "memory", "target", "queue", "coupled", "summary")


def catalogue() -> dict:
    """Return methods and losses with hyper-parameters, regularizers, view recipes, and this package's backbones."""
    return {
        "methods": [_entry(method) | {"recipe": _recipe(method)} for method in METHODS.values()],
        "theory_losses": [_entry(method) for method in THEORY_LOSSES.values()],
        "regularizers": [
            {
                "regularizer": name,
                "title": penalty.title,
                "gamma": f"{penalty.default_gamma:g}",
                "strength": f"{penalty.default_strength:g}" if penalty.has_decoupled_step() else "–",
                "options": ", ".join(penalty.options()) or "–",
            }
            for name, penalty in sorted(PENALTIES.items())
        ],
        "embedding_regularizers": [
            {
                "embedding_regularizer": name,
                "title": kind.title,
                "summary": kind.summary,
                "weight": f"{kind.default_weight:g}",
                "views": kind.views_needed,
                "options": ", ".join(field.name for field in dataclasses.fields(kind)) or "–",
                "source": kind.source,
                "hyper_parameters": _hyperparameters(kind),
            }
            for name, kind in sorted(EMBEDDING_REGULARIZERS.items())
        ],
        "views": list(RECIPES),
        "backbones": list(OWN_BACKBONES),
    }


def _recipe(method: type[SSLMethod]) -> str:
    """Return the recipe file of a method; a method from a user's own code has none."""
    return f"cifar10/{method.name}.yaml" if method.__module__.startswith(f"{__package__.partition('.')[0]}.") else "–"


def _entry(method: type[SSLMethod]) -> dict:
    return {
        "method": method.name,
        "title": method.title,
        "summary": method.summary,
        "family": method.family,
        "needs": _needs(method),
        "time": _cost(method, "time"),
        "memory": _cost(method, "memory"),
        "heads": method.heads,
        "target": method.has_target,
        "queue": method.has_queue,
        "coupled": method.batch_coupled,
        "views": method.recipe.views,
        "source": method.source,
        "hyper_parameters": _hyperparameters(method.config_class),
    }


def _needs(method: type[SSLMethod]) -> str:
    """Return what a method needs beside images."""
    if method.needs_patches:
        return "ViT"
    return "teacher" if any(field.name == "teacher" for field in dataclasses.fields(method.config_class)) else "–"


def _cost(method: type[SSLMethod], what: str) -> str:
    """Return time or memory of a step beside SimCLR's; a method that was not measured has none."""
    measured = measured_costs()["costs"].get(method.name)
    return f"{measured[what]:.2g}×" if measured else "–"


def _hyperparameters(kind: type[Hyperparameters]) -> list[dict]:
    return [
        {"name": field.name, "default": field.default, "help": field.metadata["help"]}
        for field in dataclasses.fields(kind)
    ]


def table(rows: list[dict], columns: tuple[str, ...]) -> str:
    """Return rows as aligned text, with booleans as yes or a dash."""
    cells = [list(columns)]
    for row in rows:
        values = (row[column] for column in columns)
        cells.append([{True: "yes", False: "–"}.get(value, str(value)) for value in values])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def main(args: MethodsArguments) -> None:
    """Print the catalogue as a table, or as JSON."""
    everything = catalogue()
    if args.json:
        print(json.dumps(everything, indent=2))
        return
    print(table(everything["methods"], COLUMNS))
    costs = measured_costs()
    print("\nneeds: a ViT, whose patches are masked, or the name of a teacher (--method_config teacher=NAME)")
    print(f"time and memory of a step beside SimCLR's, with the views of ImageNet recipes ({costs['measured']})")
    print("coupled: the loss of an image depends on its batch, so accumulating small batches changes the loss")
    losses = ", ".join(f"{entry['method']} ({entry['title']})" for entry in everything["theory_losses"])
    print(f"\ntheory losses, applied to the representation, as with --backbone linear: {losses}")
    print(f"\n{table(everything['regularizers'], ('regularizer', 'title', 'gamma', 'strength', 'options'))}")
    columns = ("embedding_regularizer", "weight", "summary", "source", "options")
    print(f"\n{table(everything['embedding_regularizers'], columns)}")
    print("of the batch of all processes: with one, any method is coupled")
    for name in ("views", "backbones"):
        print(f"\n{name}: {', '.join(everything[name])}")
    print("\nrecipes: scripts/recipes/{cifar10,cifar100,imagenet}/<method>.yaml, for --config")
    print("further backbones: any timm or Hugging Face vision model. Hyper-parameters: orthossl methods --json")
