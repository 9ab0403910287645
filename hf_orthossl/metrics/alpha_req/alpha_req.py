"""α-ReQ: the rate at which the eigenvalues of representations decay."""

from typing import Any

import datasets
import evaluate
import torch

from hf_orthossl.metrics import show_card
from hf_orthossl.spectra import alpha_req, covariance_eigenvalues

_DESCRIPTION = """
α-ReQ (Agrawal et al., 2022): exponent of the power law fitted to the eigenvalues of the covariance of the
representations. In the paper, values near 1 are best and larger ones indicate collapse.
"""

_KWARGS_DESCRIPTION = """
Args:
    representations (list of list of float, or array of shape `(N, D)`): one row per image, as the encoder returns them.
    first (int, defaults to 4): first rank of the fit, counted from 1.
    last (int, defaults to 100): last rank of the fit.

Returns:
    `alpha` (float), or None if fewer than three eigenvalues remain for the fit.

Examples:
    >>> import numpy as np
    >>> metric = evaluate.load("hf_orthossl/metrics/alpha_req")
    >>> noise = np.random.default_rng(0).normal(size=(2000, 64)) * np.arange(1, 65) ** -0.5  # eigenvalues 1/j
    >>> round(metric.compute(representations=noise)["alpha"], 1)
    1.0
"""

_CITATION = r"""
@inproceedings{agrawal2022alpha,
  title     = {{$\alpha$-ReQ}: Assessing representation quality in self-supervised learning
               by measuring eigenspectrum decay},
  author    = {Agrawal, Kumar Krishna and Mondal, Arnab Kumar and Ghosh, Arna and Richards, Blake},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2022}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AlphaReq(evaluate.Metric):
    """α-ReQ: the rate at which the eigenvalues of representations decay."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"representations": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://arxiv.org/abs/2202.05808"],
        )

    def _compute(self, representations: Any, first: int = 4, last: int = 100) -> dict[str, float | None]:
        matrix = torch.as_tensor(representations, dtype=torch.float64)
        return {"alpha": alpha_req(covariance_eigenvalues(matrix), first, last)}


if __name__ == "__main__":  # as the application of its Space
    show_card(__file__)
