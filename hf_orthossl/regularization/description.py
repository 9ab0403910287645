"""What is regularized, as a table for people."""

from collections.abc import Sequence

from .selection import WeightMatrix


def description(matrices: Sequence[WeightMatrix], values: dict[str, float], kind: str, reduction: str) -> str:
    """A line for each matrix, with its penalty, and one for all.

    Args:
        matrices (sequence of [`WeightMatrix`]): at least one.
        values (`dict[str, float]`): their penalties by name.
        kind (`str`): the penalty, as a heading.
        reduction (`str`): `"sum"` or `"mean"`.
    """
    rows = [("name", "input × output", "group", kind)]
    rows += [(m.name, f"{m.shape[0]} × {m.shape[1]}", m.group, f"{values[m.name]:.6g}") for m in matrices]
    total = sum(values.values()) / (1 if reduction == "sum" else len(matrices))
    size = sum(m.shape[0] * m.shape[1] for m in matrices)
    rows.append((f"{reduction} of {len(matrices)} matrices", f"{size:,} weights", "", f"{total:.6g}"))
    name, shape, group, value = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [f"{a:<{name}}  {b:>{shape}}  {c:<{group}}  {d:>{value}}" for a, b, c, d in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
