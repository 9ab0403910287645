"""Write the page of the studies: tables and sentences made from the rows that are there."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_orthossl.comparison.statistics import joint_verdict, mean_and_spread, paired_difference
from hf_orthossl.files import replace_file

from .figures import draw_figures
from .measures import correlations
from .plan import METHOD_NAMES, PIECES, STUDIES
from .rows import ROWS
from .transfer import Setting, regret, settings_of

REPORT = "README.md"
ARMS = ("none", "so", "srip", "so:decoupled", "muon")
TITLES = {"none": "none", "so": "SO", "srip": "SRIP", "so:decoupled": "SO decoupled", "muon": "Muon"}
Rows = Sequence[Mapping[str, Any]]


def write_report(rows: Rows, folder: Path) -> Path:
    """Write the page and its figures, and return the page.

    Args:
        rows (sequence of mappings): From [`rows.read_rows`]; studies without any are said to be missing.
        folder (`Path`): Receives them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = draw_figures(rows, folder)
    parts = {"methods": _methods, "transfer": _transfer, "measures": _measures, "fused": _fused}
    page = [
        "# Which remedy against collapse works?",
        "",
        f"Made by `python scripts/remedies.py --report` from [{ROWS}]({ROWS}), one line for each run. "
        "Every run trains a small vision transformer (32 px in 8 px patches, 96 channels, 4 blocks, 0.5 M parameters) "
        f"on {_sizes(rows)}, 64 images a step, by AdamW at 1e-3 unless a table says otherwise. Accuracies are "
        "top-1 on the 10,000 test images, kNN with k = 200 and T = 0.1; strengths are chosen on held-out training "
        "images, by kNN after a third of the steps. Differences are paired by seed, with 95 % intervals (Student's t).",
    ]
    for study, title in STUDIES.items():
        page += ["", f"## {title}", "", *parts[study](rows)]
        page += ["", f"![{title}]({figures[study].name})"] if study in figures else []
    return replace_file(folder / REPORT, "\n".join(page) + "\n")


def _sizes(rows: Rows) -> str:
    sizes = sorted({(row["images"], row["steps"]) for row in rows if row["kind"] == "run"})
    return " or ".join(f"{images:,} images of CIFAR-10 for {steps} steps" for images, steps in sizes) or "CIFAR-10"


def of_study(rows: Rows, study: str, kind: str = "run") -> list[Mapping[str, Any]]:
    """Return the rows of a kind of a study that have measures."""
    return [row for row in rows if (row["study"], row["kind"]) == (study, kind) and "failed" not in row]


def _methods(rows: Rows) -> list[str]:
    runs = of_study(rows, "methods")
    missing = _missing(runs, "methods", len(ARMS))
    if not runs:
        return [missing]
    lines = [missing, ""]
    for measure, title in (("linear", "Linear probe, top-1 in %"), ("knn", "kNN, top-1 in %")):
        lines += [f"{title}: mean ± standard deviation, and the difference from none", ""]
        lines += [_row("method", *(TITLES[arm] for arm in ARMS)), "| --- " * (len(ARMS) + 1) + "|"]
        for method in METHOD_NAMES:
            cells = [_cell(runs, method, arm, measure) for arm in ARMS]
            if any(cell != "–" for cell in cells):
                lines.append(_row(f"`{method}`", *cells))
        lines.append("")
    lines += ["Over methods: the mean of each method's difference from none in points of the linear probe, with the "]
    lines[-1] += (
        "interval over methods, and for how many methods the arm helps, harms, or is not told apart by both probes, "
        "which takes two seeds or more"
    )
    lines += ["", _row("arm", "mean difference", "methods", "helps", "harms", "not told apart"), "| --- " * 6 + "|"]
    lines += [_over_methods(runs, arm) for arm in ARMS[1:]]
    lines += ["", "Strengths that were chosen: γ, λ, for Muon the rate; the others have AdamW's 1e-3", ""]
    lines += [_row("method", *(TITLES[arm] for arm in ARMS[1:])), "| --- " * len(ARMS) + "|"]
    for method in METHOD_NAMES:
        chosen = [_chosen(runs, method, arm) for arm in ARMS[1:]]
        if any(chosen):
            lines.append(_row(f"`{method}`", *(value or "–" for value in chosen)))
    failed = [row for row in rows if row["study"] == "methods" and row["kind"] == "run" and "failed" in row]
    if failed:
        named = ", ".join(f"{row['method']} with {TITLES[row['arm']]} (seed {row['seed']})" for row in failed)
        lines += ["", f"Not finite: {named}."]
    return lines


def _missing(runs: Rows, study: str, arms: int) -> str:
    """Return a sentence on which runs there are."""
    if not runs:
        return "Not run yet."
    seeds = sorted({row["seed"] for row in runs})
    pieces = len({row["piece"] for row in runs})
    whole = sum(
        len({row["arm"] for row in runs if (row["piece"], row["seed"]) == (piece.name, seed)}) == arms
        for piece in PIECES[study]
        for seed in seeds
    )
    return (
        f"{len(runs)} runs of {pieces} of {len(PIECES[study])} pieces; all {arms} arms have ended in {whole} of "
        f"{len(PIECES[study]) * len(seeds)} pairs of piece and seed ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})."
    )


def by_seed(runs: Rows, piece: str, arm: str, measure: str) -> dict[int, float]:
    """Return a measure of an arm by seed."""
    return {row["seed"]: row[measure] for row in runs if (row["piece"], row["arm"]) == (piece, arm) and measure in row}


def _cell(runs: Rows, piece: str, arm: str, measure: str) -> str:
    values = by_seed(runs, piece, arm, measure)
    if not values:
        return "–"
    mean, spread = mean_and_spread([100 * value for value in values.values()])
    text = f"{mean:.1f}" + ("" if math.isnan(spread) else f" ± {spread:.1f}")
    reference = by_seed(runs, piece, "none", measure)
    if arm == "none" or not values.keys() & reference.keys():
        return text
    found = paired_difference(values, reference)
    told = f"**{100 * found.mean:+.1f}**" if found.verdict != "not told apart" else f"{100 * found.mean:+.1f}"
    ends = "" if found.count == 1 else f" ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return f"{text}, {told}{ends}"


def _over_methods(runs: Rows, arm: str) -> str:
    differences, verdicts = {}, []
    for number, method in enumerate(METHOD_NAMES):
        pairs = [(by_seed(runs, method, arm, name), by_seed(runs, method, "none", name)) for name in ("linear", "knn")]
        if all(values.keys() & reference.keys() for values, reference in pairs):
            found = [paired_difference(values, reference) for values, reference in pairs]
            differences[number] = 100 * found[0].mean
            verdicts.append(joint_verdict(found))
    if not differences:
        return _row(TITLES[arm], "–", "0", "–", "–", "–")
    over = paired_difference(differences, dict.fromkeys(differences, 0.0))
    text = f"{over.mean:+.2f}" + ("" if over.count == 1 else f" ({over.low:+.2f} to {over.high:+.2f})")
    if set(verdicts) == {"one seed"}:
        return _row(TITLES[arm], text, str(over.count), "–", "–", "–")
    counts = [str(verdicts.count(verdict)) for verdict in ("helps", "harms", "not told apart")]
    return _row(TITLES[arm], text, str(over.count), *counts)


def _chosen(runs: Rows, piece: str, arm: str) -> str | None:
    chosen = {row["strength"] for row in runs if (row["piece"], row["arm"]) == (piece, arm) and row.get("strength")}
    return " ".join(f"{value:g}" for value in sorted(chosen)) or None


def _transfer(rows: Rows) -> list[str]:
    settings = settings_of(of_study(rows, "transfer"))
    if not settings:
        return ["Not run yet."]
    method = PIECES["transfer"][0].about["method"]
    lines = [
        f"{method} with SO; linear probe, top-1 in %, mean over seeds. In brackets, the strength; for auto the γ that "
        "was measured. Widths are 48 and 192 channels.",
        "",
        _row("optimizer", "width", "rate", "runs", "none", "auto", "best γ in the loss", "best λ decoupled"),
        "| --- " * 8 + "|",
    ]
    lines += [_setting_row(setting) for setting in settings]
    lines += [
        "",
        "How far the best value moves, and what it costs to take one value everywhere: the value with the best",
    ]
    lines[-1] += " mean over settings against each setting's own best, in points of the linear probe"
    lines += [
        "",
        _row("strength", "settings", "best values", "decades apart", "one value", "mean loss", "largest loss"),
    ]
    lines.append("| --- " * 7 + "|")
    for kind, title in (("gamma", "γ in the loss"), ("strength", "λ decoupled")):
        full = [setting.curves[kind] for setting in settings if len(setting.curves[kind]) == setting.values(kind)]
        if not full:
            lines.append(_row(title, "0", "–", "–", "–", "–", "–"))
            continue
        found = regret(full)
        lines.append(
            _row(
                title,
                str(len(full)),
                " ".join(f"{value:g}" for value in found.best),
                f"{math.log10(max(found.best) / min(found.best)):.1f}",
                f"{found.value:g}",
                f"{100 * found.mean:.1f}",
                f"{100 * found.largest:.1f}",
            )
        )
    auto = [
        setting.best("gamma")[1] - setting.auto[1]
        for setting in settings
        if setting.auto is not None and len(setting.curves["gamma"]) == setting.values("gamma")
    ]
    if auto:
        lines += [
            "",
            f"`--gamma auto` loses {100 * statistics.fmean(auto):.1f} points on average against each setting's own "
            f"best γ, and {100 * max(auto):.1f} at most ({len(auto)} settings); nothing is chosen for it.",
        ]
    return lines


def _setting_row(setting: Setting) -> str:
    def best(kind: str) -> str:
        if not setting.curves[kind]:
            return "–"
        value, accuracy = setting.best(kind)
        left = setting.values(kind) - len(setting.curves[kind])
        return f"{100 * accuracy:.1f} ({value:g})" + (f", {left} left" if left else "")

    none = "–" if setting.none is None else f"{100 * setting.none:.1f}"
    auto = "–" if setting.auto is None else f"{100 * setting.auto[1]:.1f} ({setting.auto[0]:.2g})"
    about = (setting.optimizer, str(setting.width), f"{setting.rate:g}", str(setting.runs))
    return _row(*about, none, auto, best("gamma"), best("strength"))


def _measures(rows: Rows) -> list[str]:
    runs = [row for row in of_study(rows, "methods") if "linear" in row]
    if len(runs) < 3:
        return ["Needs three runs of the first study or more."]
    lines = [
        f"Spearman's ρ with the linear probe over {len(runs)} runs of the first study: over all of them, and within a "
        "method, as the mean over the methods with five runs or more. α-ReQ is ranked by −|α − 1|, as its authors "
        "propose. The measures are taken on test images, without their labels.",
        "",
        _row("measure", "all runs", "95 % interval", "within a method", "lowest and highest method"),
        "| --- " * 5 + "|",
    ]
    for measure, found in correlations(runs).items():
        within = list(found.within.values())
        inside = f"{statistics.fmean(within):+.2f} ({len(within)} method{'s' * (len(within) > 1)})" if within else "–"
        ends = f"{min(within):+.2f} to {max(within):+.2f}" if within else "–"
        lines.append(_row(measure, f"{found.overall:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}", inside, ends))
    return lines


def _fused(rows: Rows) -> list[str]:
    runs = of_study(rows, "fused")
    arms = [arm.name for arm in PIECES["fused"][0].made]
    lines = [_missing(runs, "fused", len(arms))]
    if not runs:
        return lines
    lines += ["", _row("arm", "strength", "linear, %", "kNN, %", "effective rank"), "| --- " * 5 + "|"]
    for arm in arms:
        ranks = list(by_seed(runs, "dino", arm, "effective_rank").values())
        cells = [_cell(runs, "dino", arm, measure) for measure in ("linear", "knn")]
        rank = f"{statistics.fmean(ranks):.1f}" if ranks else "–"
        lines.append(_row(arm, _chosen(runs, "dino", arm) or "–", *cells, rank))
    for arm in ("so", "so:decoupled"):
        split, whole = (by_seed(runs, "dino", name, "linear") for name in (arm, f"{arm} whole"))
        if split.keys() & whole.keys():
            found = paired_difference(split, whole)
            ends = "" if found.count == 1 else f" ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
            lines += ["", f"{arm}, three matrices minus one, linear probe: {100 * found.mean:+.1f}{ends} points."]
    return lines


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
