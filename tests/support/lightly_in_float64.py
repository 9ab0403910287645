"""lightly's LeJEPA and VISReg in float64: what they keep in float32, computed anew."""

import torch
from lightly.loss.lejepa_loss import SIGReg
from scipy import stats


class ExactNormal:
    """For `lightly.loss.visreg_loss.Normal`, whose quantiles are those of float32 positions."""

    def __init__(self, loc, scale):
        assert (loc, scale) == (0, 1)

    def icdf(self, positions):
        count = len(positions)
        return torch.from_numpy(stats.norm.ppf([i / (count + 1) for i in range(1, count + 1)]))


def with_exact_buffers(sigreg: SIGReg) -> SIGReg:
    """The same module with frequencies, characteristic function and weights in float64."""
    points = len(sigreg.t)
    sigreg.t = torch.linspace(0, float(sigreg.t[-1]), points, dtype=torch.float64)
    sigreg.phi = torch.exp(-sigreg.t.square() / 2)
    trapezoid = torch.tensor([1.0, *[2.0] * (points - 2), 1.0], dtype=torch.float64)
    sigreg.weights = trapezoid * sigreg.t[1] * sigreg.phi
    return sigreg
