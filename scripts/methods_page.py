"""Print docs/methods.md: every method, what it needs, what a step costs, and when to choose it.

python scripts/methods_page.py > docs/methods.md
"""

import sys

from hf_orthossl.cli.methods import catalogue
from hf_orthossl.methods.costs import measured_costs

INTRODUCTION = """\
# Methods

What each method is for, what it needs, and what a step of it costs beside SimCLR's: time and peak memory of loss,
gradients and target networks, with the views and hyper-parameters of its ImageNet recipe, measured once side by side.
Large batches and GPUs change these ratios: DINOv2's 131,072 prototypes weigh most with few images.

Measured with {measured} ({machine}).

Every method takes any penalty (`--regularizer`), any backbone that it allows, and any regularizer of the embedding
(`--embedding_regularizer`). Its hyper-parameters are options (`--method_config name=value`, a YAML file, `SSLConfig`)
with the values of its source as defaults; `scripts/recipes` has its whole published settings for CIFAR and ImageNet.

- **needs**: *ViT* is a vision transformer of timm or transformers whose patches can be masked; a teacher is any encoder
  with weights.
- **coupled**: the loss of an image depends on the other images of its batch, so that accumulating small batches changes
  it; `--gradient_cache` does not.

`python scripts/methods_page.py > docs/methods.md` writes this page; a test compares.
"""
COLUMNS = ("method", "when to choose it", "needs", "views", "time", "memory", "coupled", "heads", "source")
KEYS = ("summary", "needs", "views", "time", "memory", "coupled", "heads", "source")


def main() -> None:
    """Print the page as UTF-8."""
    everything, costs = catalogue(), measured_costs()
    parts = [INTRODUCTION.format(measured=costs["measured"], machine=costs["machine"])]
    rows = [(f"**{entry['title']}** `{entry['method']}`", *(_cell(entry[key]) for key in KEYS))
            for entry in everything["methods"]]  # fmt: skip
    parts.append(_table(COLUMNS, rows))
    parts.append(
        "## Regularizers of the embedding\n\n"
        "`--embedding_regularizer KIND --embedding_weight w` adds one to any method, on the embedding or on the "
        "representation (`--embedding_layer`). They take the batch of all processes, so that any method with one is "
        "coupled.\n"
    )
    keys = ("summary", "weight", "views", "options", "source")
    rows = [(f"**{entry['title']}** `{entry['embedding_regularizer']}`", *(_cell(entry[key]) for key in keys))
            for entry in everything["embedding_regularizers"]]  # fmt: skip
    parts.append(_table(("kind", "what it does", "default weight", "views", "options", "source"), rows))
    sys.stdout.buffer.write("\n".join(parts).encode())


def _cell(value: object) -> str:
    text = {True: "yes", False: "–"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return text.replace("|", r"\|")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
