"""The rows of a sweep as Markdown."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

TITLES = {"timm": "timm, modules", "transformers": "transformers, types of `AutoModel`"}


def counts(rows: Sequence[dict[str, Any]]) -> str:
    """Return how many of each library are supported, refused, failed and unbuilt, as one line each."""
    lines = []
    for library, title in TITLES.items():
        own = Counter(row["status"] for row in rows if row["library"] == library)
        if own:
            others = ", ".join(f"{number} {status}" for status, number in own.most_common() if status != "supported")
            lines.append(f"{title}: {own['supported']} of {own.total()} supported" + (f" ({others})" if others else ""))
    return "\n".join(lines)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the counts, the backbones that are supported, and each of the others with its reason."""
    parts = ["\n\n".join(counts(rows).splitlines())]
    for library, title in TITLES.items():
        own = [row for row in rows if row["library"] == library]
        if not own:
            continue
        supported = [f"`{row['name']}`" for row in own if row["status"] == "supported"]
        parts.append(f"## {title}\n\nSupported: {', '.join(supported) or 'none'}.")
        others = [row for row in own if row["status"] != "supported"]
        if others:
            lines = ["| backbone | status | reason |", "| --- | --- | --- |"]
            lines += [f"| `{row['name']}` | {row['status']} | {_reason(row)} |" for row in others]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _reason(row: dict[str, Any]) -> str:
    reasons = [f"{check}: {text}" for check, text in row["checks"].items() if text != "ok"]
    return "; ".join(reasons).replace("|", "\\|").replace("\n", " ") or "–"
