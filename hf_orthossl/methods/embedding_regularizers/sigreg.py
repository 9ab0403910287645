"""SIGReg: embeddings whose distribution along random directions is the standard normal one."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..hyperparameters import hyper
from .base import EmbeddingRegularizer, register_embedding_regularizer, unit_directions


@register_embedding_regularizer
@dataclass
class SIGReg(EmbeddingRegularizer):
    """Sketched isotropic Gaussian regularization: the Epps–Pulley statistic along random directions.

    T(x) = B·∫ |φ̂(t) − exp(−t²/2)|²·exp(−t²/2) dt over [−t_max, t_max], where φ̂(t) is the mean of exp(i·t·x_n) over the
    B images, averaged over `slices` random directions, which are new at each step and equal on all processes, and over
    the views. The integral is a trapezoidal sum; as its terms are even in t, only t ≥ 0 is computed. It is 0 only if
    the distribution along every direction is the standard normal one.

    `t_max`, the points and `slices` are those that section 6.1 of the paper recommends; the authors' later code has
    t_max = 3. The paper's Algorithm 1 has its 17 points on the whole of [−5, 5], which are `points=9` here.

    Source: Balestriero & LeCun 2025, section 4 and Algorithm 1, arXiv 2511.08544.
    """

    name = "sigreg"
    title = "SIGReg"
    summary = "makes the embedding an isotropic Gaussian, along random directions"
    default_weight = 0.05
    source = "arXiv 2511.08544"

    slices: int = hyper(1024, "number of random directions", at_least=1)
    points: int = hyper(17, "points of the integral in [0, t_max]", at_least=2)
    t_max: float = hyper(5.0, "largest frequency of the integral", above=0)

    def value(self, views: list[Tensor], generator: torch.Generator) -> Tensor:
        """Return the mean statistic of all views, which share the directions."""
        directions = unit_directions(views[0].shape[1], self.slices, generator, views[0])
        return epps_pulley([z @ directions for z in views], self.t_max, self.points)


def epps_pulley(samples: list[Tensor], t_max: float, points: int) -> Tensor:
    """Return the Epps–Pulley statistic for the standard normal distribution, averaged over samples and columns.

    Args:
        samples (`list[Tensor]`): Tensors `(B, M)`; each column is a sample of B numbers.
        t_max (`float`): Largest frequency of the integral.
        points (`int`): Points of the integral in [0, t_max], both ends included.
    """
    return torch.stack([EppsPulley.apply(x, t_max, points) for x in samples]).mean()


class EppsPulley(torch.autograd.Function):
    """The mean Epps–Pulley statistic of the columns of `(B, M)`, with its gradient in closed form.

    Autograd would keep the sine and the cosine of B·M numbers for each point of the integral; here the gradient is
    summed up point by point, and one tensor of this size is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, t_max: float, points: int) -> Tensor:
        """Return the statistic, and store its gradient."""
        step = t_max / (points - 1)
        statistic = x.new_zeros(x.shape[1])
        gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        # cos(k·step·x) and sin(k·step·x) by rotation; the term of t = 0 is 0.
        cosine_step, sine_step = torch.cos(step * x), torch.sin(step * x)
        cosine, sine = cosine_step, sine_step
        for k in range(1, points):
            t = k * step
            normal = math.exp(-(t**2) / 2)
            # Both halves of the interval: the trapezoidal rule's step, twice, and once at the end.
            weight = step * normal * (1 if k == points - 1 else 2)
            real, imaginary = cosine.mean(dim=0) - normal, sine.mean(dim=0)
            statistic += weight * (real.square() + imaginary.square())
            if gradient is not None:
                gradient += (2 * weight * t) * (imaginary * cosine - real * sine)
            if k < points - 1:
                cosine, sine = cosine * cosine_step - sine * sine_step, sine * cosine_step + cosine * sine_step
        if gradient is not None:
            ctx.save_for_backward(gradient / x.shape[1])
        return len(x) * statistic.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the stored gradient, times that of the statistic."""
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None
