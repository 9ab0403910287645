"""What leaves the machine: encoder folders and their cards."""

from .card import render_card
from .encoder_folder import write_encoder_folder
from .measurements import eval_result_files
from .publish import Publication, publish_encoder

__all__ = ["Publication", "eval_result_files", "publish_encoder", "render_card", "write_encoder_folder"]
