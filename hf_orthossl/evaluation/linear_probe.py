"""Linear classifiers on frozen representations: the paper's protocol, and regularized logistic regression."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from ..terminal import progress_bar
from .features import are_equal

PROTOCOLS = ("sgd", "lbfgs")
# Candidate weights λ of the penalty for "lbfgs", with standardized features.
PENALTIES = tuple(float(value) for value in np.logspace(-6, 0, 7))
_MOMENTUM = 0.9


@dataclass
class LinearClassifier:
    """A linear classifier: scores of C classes, `x @ weight + bias`, for a representation x.

    Args:
        weight (`Tensor` of shape `(D, C)`): The weight.
        bias (`Tensor` of shape `(C,)`): The bias.
        settings (`dict`): The settings of the training.
    """

    weight: Tensor
    bias: Tensor
    settings: dict

    def __call__(self, representations: Tensor) -> Tensor:
        """Return the scores `(N, C)` of representations `(N, D)`."""
        return representations.to(self.weight) @ self.weight + self.bias


def sgd_probe(
    representations: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    epochs: int = 100,
    learning_rate: float = 0.1,
    weight_decay: float = 5e-4,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> LinearClassifier:
    """Train the paper's linear probe: softmax regression by SGD.

    The Nesterov momentum is 0.9; the learning rate is divided by 10 after 60 % and 80 % of the epochs. For ImageNet the
    paper uses batches of 128 and a learning rate of 0.2.

    Source: He, Du & Ma 2024, as restated in solo-learn's recipes.

    Args:
        representations (`Tensor` of shape `(N, D)`): Representations of the training images.
        labels (`Tensor` of shape `(N,)`): Their classes, in [0, C).
        num_classes (`int`): Number of classes C.
        epochs (`int`, defaults to 100): Number of passes over the data.
        learning_rate (`float`, defaults to 0.1): Initial learning rate, above 0.
        weight_decay (`float`, defaults to 5e-4): Weight decay of weight and bias.
        batch_size (`int`, defaults to 256): Number of images per step.
        seed (`int`, defaults to 0): Seed of the initial weights and the order of images.
        progress (`bool`, defaults to `False`): Show a progress bar.

    Raises:
        ValueError: If a setting is out of range, or the representations are not finite.
    """
    _check(representations, labels)
    if epochs < 1 or batch_size < 1 or not learning_rate > 0 or not weight_decay >= 0:
        raise ValueError(
            f"epochs is {epochs}, batch_size {batch_size}, learning_rate {learning_rate} and weight_decay "
            f"{weight_decay}: the first three must be above 0, the last 0 or more"
        )
    generator = torch.Generator().manual_seed(seed)
    # The bias is the weight of a feature that is always 1, so that a step consists of two matrix products.
    inputs = F.pad(representations.float(), (0, 1), value=1.0)
    bound = representations.shape[1] ** -0.5
    start = torch.empty(inputs.shape[1], num_classes).uniform_(-bound, bound, generator=generator)
    # With classes as rows, both products take a third of the time on a CPU.
    weight = start.T.contiguous().to(inputs)
    targets = F.one_hot(labels, num_classes).T.to(inputs)
    velocity = torch.zeros_like(weight)
    drops = (int(0.6 * epochs), int(0.8 * epochs))
    for epoch in progress_bar(range(epochs), "linear probe", progress):
        rate = learning_rate * 0.1 ** sum(epoch >= drop for drop in drops)
        for rows in torch.randperm(len(inputs), generator=generator).to(inputs.device).split(batch_size):
            batch = inputs[rows]
            error = (weight @ batch.T).softmax(0).sub_(targets[:, rows]).div_(len(rows))
            gradient = torch.addmm(weight, error, batch, beta=weight_decay)
            velocity.mul_(_MOMENTUM).add_(gradient)
            weight.sub_(gradient.add_(velocity, alpha=_MOMENTUM), alpha=rate)
    settings = {"protocol": "sgd", "epochs": epochs, "learning_rate": learning_rate, "weight_decay": weight_decay}
    return LinearClassifier(weight[:, :-1].T, weight[:, -1], {**settings, "batch_size": batch_size, "seed": seed})


def lbfgs_probe(
    representations: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    penalty: float | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> LinearClassifier:
    """Fit a logistic regression with a squared penalty to convergence, by L-BFGS.

    It minimizes mean cross-entropy + λ/2·‖W‖² over standardized features; the bias is not penalized. Without `penalty`,
    a part of the training images is held out to choose λ from [`PENALTIES`] by accuracy (the largest of the best), and
    the classifier is then fitted to all training images. The test set is never used.

    Args:
        representations (`Tensor` of shape `(N, D)`): Representations of the training images.
        labels (`Tensor` of shape `(N,)`): Their classes, in [0, C).
        num_classes (`int`): Number of classes C.
        penalty (`float`, *optional*): λ ≥ 0. scikit-learn's C is 1/(λN).
        held_out (`float`, defaults to 0.2): Share of the images held out to choose λ, in (0, 1).
        seed (`int`, defaults to 0): Seed that selects the held-out images.
        progress (`bool`, defaults to `False`): Show a progress bar.

    Raises:
        ValueError: If a setting is out of range, or the representations are not finite.
    """
    _check(representations, labels)
    if penalty is not None and not penalty >= 0:
        raise ValueError(f"penalty is {penalty}: it must be 0 or more, as in 1e-3")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}: the share held out must lie between 0 and 1, as in 0.2")
    inputs = representations.double()
    if are_equal(inputs):
        # Rounding errors, once standardized, would be as large as any feature.
        inputs = inputs[:1].expand_as(inputs)
    mean, std = inputs.mean(0), inputs.std(0, unbiased=False)
    # A constant feature has standard deviation 0 and carries no information: do not scale it.
    std = torch.where(std > 1e-12 * std.max().clamp(min=1e-300), std, 1.0)
    inputs = (inputs - mean) / std
    if penalty is None:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed)).to(inputs.device)
        count = max(int(held_out * len(order)), 1)
        validation, rest = order.split([count, len(order) - count])
        best, weights = -1.0, None
        penalty = PENALTIES[-1]
        # From large to small λ: each fit starts at the minimum of the previous one.
        for value in progress_bar(PENALTIES[::-1], "choosing λ", progress):
            weights = _minimize(inputs[rest], labels[rest], num_classes, value, weights)
            scores = inputs[validation] @ weights[:-1] + weights[-1]
            right = (scores.argmax(1) == labels[validation]).double().mean().item()
            if right > best:
                best, penalty = right, value
    weights = _minimize(inputs, labels, num_classes, penalty, None)
    weight = weights[:-1] / std[:, None]
    return LinearClassifier(weight, weights[-1] - mean @ weight, {"protocol": "lbfgs", "penalty": penalty})


def _check(representations: Tensor, labels: Tensor) -> None:
    if len(representations) != len(labels) or (labels < 0).any():
        raise ValueError(f"labels must contain a class for each of {len(representations)} representations, and no −1")
    if not torch.isfinite(representations).all():
        raise ValueError("the representations contain NaN or infinity: the encoder has diverged")


def _minimize(inputs: Tensor, labels: Tensor, classes: int, penalty: float, start: Tensor | None) -> Tensor:
    """Return the weights `(D + 1, C)`, the bias last, at the minimum of the penalized cross-entropy."""
    shape = (inputs.shape[1] + 1, classes)
    targets = F.one_hot(labels, classes).to(inputs)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(flat).to(inputs).view(shape)
        logs = (inputs @ weights[:-1] + weights[-1]).log_softmax(1)
        value = -(logs * targets).sum() / len(labels) + penalty / 2 * weights[:-1].square().sum()
        error = (logs.exp() - targets) / len(labels)
        gradient = torch.cat([inputs.T @ error + penalty * weights[:-1], error.sum(0, keepdim=True)])
        return value.item(), gradient.flatten().cpu().numpy()

    origin = np.zeros(shape[0] * shape[1]) if start is None else start.flatten().cpu().numpy()
    options = {"maxiter": 2000, "maxfun": 4000, "gtol": 1e-7, "ftol": 1e-12, "maxcor": 20}
    minimum = minimize(loss, origin, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(minimum.x).to(inputs).view(shape)
