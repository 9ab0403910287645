"""Direct minimization and random covariances: the oracle of the landscape's tests."""

import torch


def covariance(dimension: int, rank: int | None = None) -> torch.Tensor:
    factor = torch.randn(dimension, rank or dimension + 3, dtype=torch.float64)
    return factor @ factor.T / dimension


def rotation(dimension: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(dimension, dimension, dtype=torch.float64))[0]


def minimize(loss, rows: int, columns: int, starts: int = 4, scale: float = 0.7) -> tuple[float, torch.Tensor]:
    """The lowest of several L-BFGS runs from random points, in float64."""
    ends = [descend(loss, scale * torch.randn(rows, columns, dtype=torch.float64)) for _ in range(starts)]
    return min(ends, key=lambda end: end[0])


def descend(loss, start: torch.Tensor) -> tuple[float, torch.Tensor]:
    point = start.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=3000,
        tolerance_grad=1e-11,
        tolerance_change=1e-16,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(point)
        value.backward()
        return value

    optimizer.step(closure)
    return float(loss(point).detach()), point.detach()


def spectrum(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigvalsh(matrix).flip(0)
