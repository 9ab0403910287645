"""Softmax cross-entropy over cosine similarities, the loss that the contrastive methods share."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed.collectives import rank
from ..distributed.gather import all_gather
from .precision import full_precision
from .similarity import normalize


def own_rows(batch: int, device: torch.device) -> Tensor:
    """Indices `(B,)` of this process's rows within a gathered batch."""
    return torch.arange(batch, device=device) + batch * rank()


@full_precision
def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalized temperature-scaled cross-entropy, NT-Xent (SimCLR, Chen et al. 2020, eq. 1).

    ℓ_i = −log exp(s(z_i, z_j)/T) / Σ_{k≠i} exp(s(z_i, z_k)/T), averaged over the 2B embeddings of the batch, where j is
    the other view of i and k runs over both views of all images on all processes.

    Args:
        first, second (`Tensor` of shape `(B, d)`): Embeddings of the two views.
        temperature (`float`): T > 0.
    """
    first, second = normalize(first), normalize(second)
    everything = torch.cat([all_gather(first), all_gather(second)])
    rows, images = own_rows(len(first), first.device), len(everything) // 2
    logits = torch.cat([first, second]) @ everything.T / temperature
    itself = torch.cat([rows, rows + images])
    other = torch.cat([rows + images, rows])
    logits = logits.scatter(1, itself[:, None], float("-inf"))
    return F.cross_entropy(logits, other)
