"""kNN accuracy of frozen representations."""

from typing import Any

import datasets
import evaluate
import torch

from hf_orthossl.evaluation import Features, knn_accuracy
from hf_orthossl.metrics import show_card

_DESCRIPTION = """
Accuracy of a vote of the k nearest labelled representations under cosine similarity s, each weighted by exp(s / T)
(Wu et al., 2018).
"""

_KWARGS_DESCRIPTION = """
Args:
    representations (list of list of float, or array of shape `(M, D)`): one row per image to classify.
    references (list of int): their M classes; rows with class -1 are left out.
    bank (array of shape `(N, D)`): the labelled representations that vote.
    bank_references (list of int): their N classes; rows with class -1 are left out.
    k (int, defaults to 20): the number of neighbours that vote.
    temperature (float, defaults to 0.07): the temperature T > 0; with None all neighbours have the same weight.

Returns:
    `top1` and `top5` (float, in [0, 1]).

Examples:
    >>> metric = evaluate.load("hf_orthossl/metrics/knn_accuracy")
    >>> bank, classes = [[1.0, 0.0], [0.0, 1.0]], [0, 1]
    >>> metric.compute(representations=[[2.0, 0.1]], references=[0], bank=bank, bank_references=classes, k=1)["top1"]
    1.0
"""

_CITATION = """
@inproceedings{wu2018unsupervised,
  title     = {Unsupervised feature learning via non-parametric instance discrimination},
  author    = {Wu, Zhirong and Xiong, Yuanjun and Yu, Stella X. and Lin, Dahua},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2018}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class KNNAccuracy(evaluate.Metric):
    """kNN accuracy of frozen representations."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "representations": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/1805.01978"],
        )

    def _compute(
        self,
        representations: Any,
        references: Any,
        bank: Any = None,
        bank_references: Any = None,
        k: int = 20,
        temperature: float | None = 0.07,
    ) -> dict[str, float]:
        if bank is None or bank_references is None:
            raise ValueError("bank and bank_references are missing: pass the labelled representations that vote")
        voters = Features(torch.as_tensor(bank, dtype=torch.float64), torch.as_tensor(bank_references))
        queries = Features(torch.as_tensor(representations, dtype=torch.float64), torch.as_tensor(references))
        if len(voters.representations) != len(voters.labels):
            raise ValueError(
                f"bank has {len(voters.representations)} rows and bank_references {len(voters.labels)} classes: pass "
                "one class per row"
            )
        return knn_accuracy(voters, queries, k=k, temperature=temperature)


if __name__ == "__main__":  # as the application of its Space
    show_card(__file__)
