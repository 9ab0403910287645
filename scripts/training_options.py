"""Print docs/training_options.md: which options of `transformers.TrainingArguments` work, and why others do not.

python scripts/training_options.py > docs/training_options.md
"""

import sys
from dataclasses import fields

from hf_orthossl.training.inherited import HIDDEN, REFUSED
from hf_orthossl.training.options import TrainingOptions

INTRODUCTION = """\
# Options of training

What the command line, a YAML file, `pretrain(…)` and `OrthoSSLTrainingArguments(…)` take of
`transformers.TrainingArguments`, and what this package adds. An option that works does so in the Trainer and in the
accelerate loop; a test shows its effect. To set one that is refused or hidden is an error in every way of starting a
run, as is any that a newer release of transformers adds: no option is accepted without effect.

`python scripts/training_options.py > docs/training_options.md` writes this table; a test compares.
"""


def main() -> None:
    """Print the table as UTF-8."""
    works = [(spec.name, "works", spec.metadata["help"]) for spec in fields(TrainingOptions)]
    refused = [(name, "refused", why) for name, why in REFUSED.items()]
    hidden = [(name, "hidden", why) for why, names in HIDDEN.items() for name in names]
    counts = f"{len(works)} work, {len(refused)} are refused, {len(hidden)} are hidden."
    rows = [("option", "", "effect, or reason and what to do"), ("---", "---", "---")]
    for name, kind, text in [*sorted(works), *sorted(refused), *sorted(hidden)]:
        rows.append((f"`{name}`", kind, text.replace("|", r"\|")))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    sys.stdout.buffer.write(f"{INTRODUCTION}\n{counts}\n\n{table}\n".encode())


if __name__ == "__main__":
    main()
