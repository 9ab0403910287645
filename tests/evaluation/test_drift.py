"""Drift of representations: CKA against HSIC of full Gram matrices in float64, and its invariances."""

import pytest
import torch

from hf_orthossl.evaluation.drift import linear_cka, mean_cosine


def by_hsic(X, Y):
    """tr(KHLH) / √(tr(KHKH)·tr(LHLH)), with H = I − 11ᵀ/n."""
    X, Y, n = X.double(), Y.double(), len(X)
    H = torch.eye(n, dtype=torch.float64) - torch.full((n, n), 1 / n, dtype=torch.float64)
    K, L = X @ X.T, Y @ Y.T

    def hsic(A, B):
        return torch.trace(A @ H @ B @ H)

    return float(hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt())


@pytest.mark.parametrize(("images", "first", "second"), [(40, 6, 6), (40, 6, 9), (5, 30, 12), (30, 29, 31)])
def test_cka_is_the_alignment_of_centred_gram_matrices(images, first, second):
    X = torch.randn(images, first) + 3
    Y = torch.randn(images, second) + 0.3 * X.mean(1, keepdim=True)
    assert linear_cka(X, Y) == pytest.approx(by_hsic(X, Y), rel=1e-10)


def test_what_cka_does_not_see_and_the_cosine_does():
    X = torch.randn(50, 8, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    Y = 2.5 * X @ rotation + 7
    assert linear_cka(X, Y) == pytest.approx(1, abs=1e-12)
    assert mean_cosine(X, X * 3) == pytest.approx(1, abs=1e-12)
    assert mean_cosine(X, X @ rotation) < 0.9
    cosines = [float(x @ y / (x.norm() * y.norm())) for x, y in zip(X, Y, strict=True)]
    assert mean_cosine(X, Y) == pytest.approx(sum(cosines) / 50, abs=1e-12)


def test_a_collapsed_representation_has_nothing_in_common():
    X = torch.randn(20, 4)
    assert linear_cka(X, torch.full((20, 4), 0.1)) == 0
    assert linear_cka(X, torch.zeros(20, 4)) == 0


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(2, 4\): pass \(N, D\) of the same images"):
        linear_cka(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="4 and 5 features"):
        mean_cosine(torch.ones(3, 4), torch.ones(3, 5))
