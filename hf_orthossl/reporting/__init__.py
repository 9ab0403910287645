"""Tell the story of a run on one page: what it came to, what collapsed and what to try, curves, spectra, pictures."""

from .page import write_report

__all__ = ["write_report"]
