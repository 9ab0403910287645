"""`orthossl evaluate --task transfer`: its options, and what its table says besides numbers."""

from dataclasses import dataclass, field

from ..evaluation import Transfer, TransferSet, transfer_sets, transfer_table


@dataclass
class TransferOptions:
    """Which data sets to probe; linear probes follow the options of the linear task."""

    _argument_group_name = "transfer"

    transfer_sets: list[str] | None = field(
        default=None,
        metadata={
            "help": "names of the suite, Hub ids or folders (default: cifar10 cifar100 food101 flowers102 dtd gtsrb)"
        },
    )
    transfer_data: str | None = field(
        default=None, metadata={"help": "folder whose subfolders of these names are read instead of the Hub"}
    )
    transfer_knn: bool = field(default=False, metadata={"help": "also vote by kNN on each set"})

    @property
    def sets(self) -> list[TransferSet]:
        return transfer_sets(self.transfer_sets, self.transfer_data)

    @property
    def probes(self) -> tuple[str, ...]:
        return ("linear", "knn") if self.transfer_knn else ("linear",)


def transfer_summary(outcomes: dict[str, Transfer]) -> str:
    """The table of all models, notes once each, and what failed.

    Args:
        outcomes (`dict[str, Transfer]`): By model.
    """
    failures = {(model, name): why for model, found in outcomes.items() for name, why in found.failures.items()}
    notes = dict.fromkeys(note for found in outcomes.values() for note in found.notes)
    table = transfer_table([result for found in outcomes.values() for result in found.results], failures)
    reasons = dict.fromkeys(f"Failed: {name}: {why}" for (_, name), why in failures.items())
    return "\n".join([table, *(f"Note: {note}" for note in notes), *reasons])
