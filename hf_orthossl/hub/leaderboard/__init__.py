"""The leaderboard: published encoders found by their tag, checked, ranked, and shown with their spectra."""
