"""What leaves the machine: encoder folders and their cards."""

from .card import render_card
from .encoder_folder import write_encoder_folder
from .measurements import eval_result_files
from .publish import Publication, publish_encoder
from .publish_results import PublishedResults, publish_results

__all__ = [
    "Publication",
    "PublishedResults",
    "eval_result_files",
    "publish_encoder",
    "publish_results",
    "render_card",
    "write_encoder_folder",
]
