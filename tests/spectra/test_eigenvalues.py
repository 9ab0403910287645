import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_orthossl.spectra import covariance_eigenvalues, normalized_eigenvalues, singular_values

shapes = st.tuples(st.integers(2, 40), st.integers(1, 40))


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]))
def test_eigenvalues_are_those_of_the_full_covariance(shape, seed, dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3 + 5
    covariance = np.atleast_2d(np.cov(matrix.double().numpy(), rowvar=False))
    oracle = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(covariance_eigenvalues(matrix).numpy(), oracle, rtol=0, atol=1e-8 * oracle[0])
    np.testing.assert_allclose(normalized_eigenvalues(matrix).numpy(), oracle / oracle[0], rtol=0, atol=1e-8)


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(0, 2**31))
def test_singular_values_are_numpys(shape, seed):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    oracle = np.linalg.svd(matrix.numpy(), compute_uv=False)
    # Digits of the small ones are lost to squaring; 1e-6 of the largest is the documented cut.
    np.testing.assert_allclose(singular_values(matrix).numpy(), oracle, rtol=1e-6, atol=1e-6 * oracle[0])


def test_a_rank_deficient_matrix_has_singular_values_that_are_exactly_zero():
    left, right = torch.randn(30, 4, dtype=torch.float64), torch.randn(4, 20, dtype=torch.float64)
    assert int((singular_values(left @ right) > 0).sum()) == 4


def test_constant_rows_give_zeros_not_nan():
    assert torch.equal(normalized_eigenvalues(torch.full((7, 3), 0.5)), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(normalized_eigenvalues(torch.randn(1, 3)), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(singular_values(torch.zeros(4, 2)), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (0, 4)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="matrix has shape"):
        normalized_eigenvalues(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_matrix_is_refused(value):
    matrix = torch.randn(5, 4)
    matrix[2, 1] = value
    for function in (normalized_eigenvalues, singular_values):
        with pytest.raises(ValueError, match="diverged"):
            function(matrix)
