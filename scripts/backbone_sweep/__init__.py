"""The parts of `scripts/sweep_backbones.py`."""
