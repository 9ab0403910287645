"""A model's rank as a small picture, for its card."""

from markupsafe import Markup

from .catalogue import Catalogue, Measurement

_SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{left}: {right}">\
<title>{left}: {right}</title><rect width="{width}" height="20" rx="3" fill="#3b3b3b"/>\
<path d="M{split} 0H{inner}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H{split}z" fill="#005a9c"/>\
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">\
<text x="6" y="14" textLength="{left_room}">{left}</text>\
<text x="{at}" y="14" textLength="{right_room}">{right}</text></g></svg>"""
# Of Verdana at 11 pixels, about; `textLength` fits what other fonts make of it.
_WIDTH = 6.6
_LONGEST = 60


def badge_words(catalogue: Catalogue, repo_id: str, measurement: Measurement | None) -> tuple[str, str]:
    """Both halves of a badge: what was measured, and the model's place."""
    row = catalogue.ranked(measurement).get(repo_id)
    if repo_id not in catalogue.entries:
        return "orthossl board", "not on the board"
    if row is None or measurement is None:
        return "orthossl board", "not ranked"
    task, dataset, metric = measurement
    by = {"author": "", "verified": " ✓", "board": " ✓"}[row.result.source]
    left = f"orthossl · {task} {dataset} {metric}"
    return left, f"#{row.rank} of {len(catalogue.ranked(measurement)):,} · {row.result.value:.3f}{by}"


def badge_svg(left: str, right: str) -> Markup:
    """A badge of 20 pixels height; its texts are escaped."""
    left, right = left[:_LONGEST], right[:_LONGEST]
    left_room, right_room = round(len(left) * _WIDTH), round(len(right) * _WIDTH)
    split = left_room + 12
    width = split + right_room + 12
    return Markup(_SVG).format(
        left=left,
        right=right,
        left_room=left_room,
        right_room=right_room,
        split=split,
        at=split + 6,
        width=width,
        inner=width - 3,
    )
