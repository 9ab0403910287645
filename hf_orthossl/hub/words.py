"""Titles of penalties in cards and on the board."""

REGULARIZERS = {
    "so": "soft orthogonality, SO",
    "sketched_so": "soft orthogonality, SO, estimated from random vectors",
    "srip": "spectral restricted isometry, SRIP",
    "dso": "double soft orthogonality, DSO",
    "mc": "mutual coherence, MC",
}
