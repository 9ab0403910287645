"""Linear encoders trained as the theory assumes, and what their spectra came to."""
