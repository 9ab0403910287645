"""The studies of `scripts/remedies.py`."""
