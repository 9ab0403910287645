"""RankMe: a smooth rank of representations that correlates with their downstream accuracy."""

from typing import Any

import datasets
import evaluate
import torch

from hf_orthossl.metrics import show_card
from hf_orthossl.spectra import rankme, singular_values

_DESCRIPTION = """
RankMe (Garrido et al., 2023, equation 1): the exponential of the entropy of the singular values of the
uncentred representations, with a small constant added to each probability.
"""

_KWARGS_DESCRIPTION = """
Args:
    representations (list of list of float, or array of shape `(N, D)`): one row per image, as the encoder returns them.
    epsilon (float, defaults to 1e-7): the constant; the default is the paper's value for float32.

Returns:
    `rankme` (float).

Examples:
    >>> import numpy as np
    >>> metric = evaluate.load("hf_orthossl/metrics/rankme")
    >>> round(metric.compute(representations=np.eye(4))["rankme"], 3)
    4.0
"""

_CITATION = r"""
@inproceedings{garrido2023rankme,
  title     = {{RankMe}: Assessing the downstream performance of pretrained self-supervised
               representations by their rank},
  author    = {Garrido, Quentin and Balestriero, Randall and Najman, Laurent and LeCun, Yann},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2023}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Rankme(evaluate.Metric):
    """RankMe: a smooth rank of representations that correlates with their downstream accuracy."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"representations": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://arxiv.org/abs/2210.02885"],
        )

    def _compute(self, representations: Any, epsilon: float = 1e-7) -> dict[str, float]:
        matrix = torch.as_tensor(representations, dtype=torch.float64)
        return {"rankme": rankme(singular_values(matrix), epsilon)}


if __name__ == "__main__":  # as the application of its Space
    show_card(__file__)
