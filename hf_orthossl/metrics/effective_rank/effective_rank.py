"""Effective rank of representations: the number of directions in which they vary."""

from typing import Any

import datasets
import evaluate
import torch

from hf_orthossl.metrics import show_card
from hf_orthossl.spectra import effective_rank, singular_values

_DESCRIPTION = """
Effective rank (Roy & Vetterli, 2007) of centred representations: the exponential of the entropy of their singular
values divided by the sum. Between 1 (complete collapse onto a line) and the smaller of N - 1 and D; 0 if all rows are
equal.
"""

_KWARGS_DESCRIPTION = """
Args:
    representations (list of list of float, or array of shape `(N, D)`): one row per image, as the encoder returns them.

Returns:
    `effective_rank` (float).

Examples:
    >>> import numpy as np
    >>> metric = evaluate.load("hf_orthossl/metrics/effective_rank")
    >>> round(metric.compute(representations=np.eye(4))["effective_rank"], 6)  # three, because the mean is subtracted
    3.0
"""

_CITATION = r"""
@inproceedings{roy2007effective,
  title     = {The effective rank: A measure of effective dimensionality},
  author    = {Roy, Olivier and Vetterli, Martin},
  booktitle = {European Signal Processing Conference (EUSIPCO)},
  year      = {2007}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class EffectiveRank(evaluate.Metric):
    """Effective rank of representations: the number of directions in which they vary."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"representations": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://ieeexplore.ieee.org/document/7098875"],
        )

    def _compute(self, representations: Any) -> dict[str, float]:
        matrix = torch.as_tensor(representations, dtype=torch.float64)
        return {"effective_rank": effective_rank(singular_values(matrix - matrix.mean(0)))}


if __name__ == "__main__":  # as the application of its Space
    show_card(__file__)
