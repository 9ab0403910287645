"""Renders the cards of `model_cards/` from the data stored beside them.

Each folder holds `config.json`, `results.json`, `spectra.json` and `spectra.safetensors` of an encoder, without
weights; `README.md` and `spectra.png` are made of them. The cards show how the encoder is loaded once it is published,
under the placeholder `your-name/<folder>`. `comparison.png` overlays the spectra of the pair in `COMPARED`.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from hf_orthossl.files import replace_file
from hf_orthossl.hub import render_card
from hf_orthossl.spectra import SpectralReport, plot_spectra
from hf_orthossl.terminal import keep_printing

FOLDER = Path(__file__).parents[1] / "model_cards"
# Where studies put their reports: no card of an encoder.
REPORTS = ("reproduction", "adaptation", "remedies")
# The same encoder, data and seed without and with the penalty.
COMPARED = {"without SO": "cifar10-vit-dino", "with SO": "cifar10-vit-dino-so"}


def render(folder: Path) -> str:
    """Render the card of one folder; text written by hand between its sections is kept."""
    card = folder / "README.md"
    previous = card.read_bytes().decode("utf-8") if card.is_file() else None
    return render_card(folder, repo_id=f"your-name/{folder.name}", previous=previous)


def main(argv: list[str] | None = None) -> int:
    """Render all cards, or with `--check` only list those that would change; return the exit status, 2 for an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the cards are")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and exit with 1 if a card is not up to date"
    )
    args = parser.parse_args(argv)
    try:
        encoders = sorted(path for path in args.folder.iterdir() if path.is_dir() and path.name not in REPORTS)
        stale = [path for folder in encoders for path in visit(folder, args.check)]
        if all((args.folder / name).is_dir() for name in COMPARED.values()):
            reports = {label: SpectralReport.load(args.folder / name) for label, name in COMPARED.items()}
            comparison = args.folder / "comparison.png"
            if not args.check:
                print(f"drew {plot_spectra(reports, comparison)}")
            elif not is_drawn(comparison, lambda path: plot_spectra(reports, path)):
                stale.append(comparison)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in stale:
        print(f"{path} is not what its folder's data give: run python scripts/render_model_cards.py", file=sys.stderr)
    return 1 if stale else 0


def visit(folder: Path, check: bool) -> list[Path]:
    """Render card and figure of one folder, or list those that are missing or differ."""
    card, figure = folder / "README.md", folder / "spectra.png"
    report = SpectralReport.load(folder)
    if not check:
        # First: the card shows the figure only if it is there.
        report.plot(figure)
    text = render(folder).encode("utf-8")
    if not check:
        replace_file(card, text)
        print(f"rendered {folder}")
        return []
    differs = not card.is_file() or card.read_bytes() != text
    return ([card] if differs else []) + ([] if is_drawn(figure, report.plot) else [figure])


def is_drawn(figure: Path, draw: Callable[[Path], Path]) -> bool:
    """Return whether a picture equals that of `draw`, except for one pixel in 1,000: fonts differ between machines."""
    if not figure.is_file():
        return False
    with tempfile.TemporaryDirectory() as place:
        there, drawn = (
            np.asarray(Image.open(path).convert("RGB"), dtype=np.int16)
            for path in (figure, draw(Path(place) / "drawn.png"))
        )
    return there.shape == drawn.shape and (np.abs(there - drawn).max(axis=2) > 32).mean() < 1e-3


if __name__ == "__main__":
    keep_printing()
    sys.exit(main())
