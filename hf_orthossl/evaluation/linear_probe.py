"""Linear classifiers on frozen representations: the paper's protocol, and regularized logistic regression."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor
from tqdm.auto import tqdm

PROTOCOLS = ("sgd", "lbfgs")
# Weights of the penalty that "lbfgs" tries, on standardized features.
PENALTIES = tuple(float(value) for value in np.logspace(-6, 0, 7))
_MOMENTUM = 0.9


@dataclass
class LinearClassifier:
    """Scores of C classes, linear in the representation.

    Args:
        weight (`Tensor` of shape `(D, C)`), bias (`Tensor` of shape `(C,)`): Scores are `x @ weight + bias`.
        settings (`dict`): What it was trained with.
    """

    weight: Tensor
    bias: Tensor
    settings: dict

    def __call__(self, representations: Tensor) -> Tensor:
        """Scores `(N, C)` of representations `(N, D)`."""
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
    """The paper's linear probe: softmax regression by SGD (He, Du & Ma 2024, as restated in solo-learn's recipes).

    Nesterov momentum 0.9; the learning rate is divided by 10 after 60 % and 80 % of the epochs. For ImageNet the paper
    takes batches of 128 and a learning rate of 0.2.

    Args:
        representations (`Tensor` of shape `(N, D)`): Of training images.
        labels (`Tensor` of shape `(N,)`): Their classes, in [0, C).
        num_classes (`int`): C.
        epochs (`int`, defaults to 100): Passes over the data.
        learning_rate (`float`, defaults to 0.1): At the start; above 0.
        weight_decay (`float`, defaults to 5e-4): Of weights and bias.
        batch_size (`int`, defaults to 256): Images per step.
        seed (`int`, defaults to 0): Of the start and the order.
        progress (`bool`, defaults to `False`): Show a progress bar.

    Raises:
        ValueError: a setting is out of range, or the representations are not finite.
    """
    _check(representations, labels)
    if epochs < 1 or batch_size < 1 or not learning_rate > 0 or not weight_decay >= 0:
        raise ValueError(
            f"epochs is {epochs}, batch_size {batch_size}, learning_rate {learning_rate} and weight_decay "
            f"{weight_decay}: the first three must be above 0, the last 0 or more"
        )
    generator = torch.Generator().manual_seed(seed)
    # The bias is the weight of a feature that is always 1, so that a step is two matrix products.
    inputs = F.pad(representations.float(), (0, 1), value=1.0)
    bound = representations.shape[1] ** -0.5
    start = torch.empty(inputs.shape[1], num_classes).uniform_(-bound, bound, generator=generator)
    # Classes as rows: on CPU both products then take a third of the time.
    weight = start.T.contiguous().to(inputs)
    targets = F.one_hot(labels, num_classes).T.to(inputs)
    velocity = torch.zeros_like(weight)
    drops = (int(0.6 * epochs), int(0.8 * epochs))
    for epoch in tqdm(range(epochs), desc="linear probe", disable=not progress, leave=False, dynamic_ncols=True):
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
    """Logistic regression with a squared penalty, minimized to convergence by L-BFGS.

    Minimizes mean cross-entropy + λ/2·‖W‖² over standardized features; the bias is free. Without `penalty`, λ is the
    one of [`PENALTIES`] with the best accuracy on a part of the training images that is set aside (the strongest among
    equals), and the classifier is then fitted to all of them: the test set is never looked at.

    Args:
        representations (`Tensor` of shape `(N, D)`): Of training images.
        labels (`Tensor` of shape `(N,)`): Their classes, in [0, C).
        num_classes (`int`): C.
        penalty (`float`, *optional*): λ ≥ 0. scikit-learn's C is 1/(λN).
        held_out (`float`, defaults to 0.2): Share of the images set aside to choose λ, in (0, 1).
        seed (`int`, defaults to 0): Decides which.
        progress (`bool`, defaults to `False`): Show a progress bar.

    Raises:
        ValueError: a setting is out of range, or the representations are not finite.
    """
    _check(representations, labels)
    if penalty is not None and not penalty >= 0:
        raise ValueError(f"penalty is {penalty}: it must be 0 or more, as in 1e-3")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}: the share set aside must lie between 0 and 1, as in 0.2")
    inputs = representations.double()
    mean, std = inputs.mean(0), inputs.std(0, unbiased=False)
    # A feature that never changes tells nothing, and must not be divided by 0.
    std = torch.where(std > 1e-12 * std.max().clamp(min=1e-300), std, 1.0)
    inputs = (inputs - mean) / std
    if penalty is None:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed)).to(inputs.device)
        aside, rest = order.split([max(int(held_out * len(order)), 1), len(order) - max(int(held_out * len(order)), 1)])
        best, weights = -1.0, None
        # From strong to weak, each from the last one's minimum.
        for value in tqdm(PENALTIES[::-1], desc="choosing λ", disable=not progress, leave=False, dynamic_ncols=True):
            weights = _minimize(inputs[rest], labels[rest], num_classes, value, weights)
            scores = inputs[aside] @ weights[:-1] + weights[-1]
            right = (scores.argmax(1) == labels[aside]).double().mean().item()
            if right > best:
                best, penalty = right, value
    weights = _minimize(inputs, labels, num_classes, penalty, None)
    weight = weights[:-1] / std[:, None]
    return LinearClassifier(weight, weights[-1] - mean @ weight, {"protocol": "lbfgs", "penalty": penalty})


def _check(representations: Tensor, labels: Tensor) -> None:
    if len(representations) != len(labels) or (labels < 0).any():
        raise ValueError(f"{len(representations)} representations need as many labels, none of them −1")
    if not torch.isfinite(representations).all():
        raise ValueError("the representations hold NaN or infinity: the encoder has diverged")


def _minimize(inputs: Tensor, labels: Tensor, classes: int, penalty: float, start: Tensor | None) -> Tensor:
    """Weights `(D + 1, C)`, the bias last, at the minimum of the penalized cross-entropy."""
    shape = (inputs.shape[1] + 1, classes)
    targets = F.one_hot(labels, classes).to(inputs)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(flat).to(inputs).view(shape)
        logs = (inputs @ weights[:-1] + weights[-1]).log_softmax(1)
        value = -(logs * targets).sum() / len(labels) + penalty / 2 * weights[:-1].square().sum()
        error = (logs.exp() - targets) / len(labels)
        gradient = torch.cat([inputs.T @ error + penalty * weights[:-1], error.sum(0, keepdim=True)])
        return value.item(), gradient.flatten().cpu().numpy()

    start = np.zeros(shape[0] * shape[1]) if start is None else start.flatten().cpu().numpy()
    options = {"maxiter": 2000, "maxfun": 4000, "gtol": 1e-7, "ftol": 1e-12, "maxcor": 20}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).to(inputs).view(shape)
