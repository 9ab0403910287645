"""The card of an encoder folder: its metadata, its sections, and its spectra in words."""
