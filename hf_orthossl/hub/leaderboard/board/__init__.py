"""The board: collect published encoders, rank them, keep and publish what was found."""
