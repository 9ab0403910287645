"""Encoder folders, their cards, publishing on the Hugging Face Hub, and the leaderboard.

Public names are imported on first use: the leaderboard's page needs neither torch nor the training code.
"""

from ..lazy import lazy_names

# Public name → module that defines it.
_HOMES = {
    "Publication": "publish",
    "PublishedResults": "adding_results",
    "eval_result_files": "measurements",
    "publish_encoder": "publish",
    "publish_results": "adding_results",
    "render_card": "card.render",
    "write_encoder_folder": "encoder_folder",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
