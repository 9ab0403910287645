"""Arrays as users have them: NumPy and lists give what tensors give; anything else is refused in one line."""

import numpy as np
import pytest
import torch

from hf_orthossl.arguments import as_float, as_int, as_tensor
from hf_orthossl.landscape import (
    LinearLandscape,
    Objective,
    canonical_correlations,
    class_directions,
    forecast,
    label_signal,
    simplex_projection,
    view_batches,
    view_covariances,
)

B, SIGMA = np.diag([0.9, 0.5, 0.1]), np.eye(3) + 0.1
MEANS, SHARES = [[1.0, 0.0, 0.2], [0.0, 0.5, 0.0]], [0.3, 0.7]


def views(images, seed):
    return [
        images.float(),
        images.float() + torch.randn(images.shape, generator=torch.Generator().manual_seed(seed % 97)),
    ]


@pytest.mark.parametrize("form", [np.asarray, lambda value: np.asarray(value).tolist(), np.float32, np.asfortranarray])
def test_a_landscape_of_arrays_is_that_of_tensors(form):
    tensors = LinearLandscape(torch.tensor(B), torch.tensor(SIGMA), mean=torch.tensor([0.1, 0.2, 0.3]))
    arrays = LinearLandscape(form(B), form(SIGMA), mean=form([0.1, 0.2, 0.3]))
    exact = {"atol": 1e-6, "rtol": 1e-6} if form is np.float32 else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(arrays.canonical_correlations, tensors.canonical_correlations, **exact)
    minimum = tensors.minimum("spectral", alpha=1.5)
    weights = minimum.weights
    value = tensors.loss(weights, "spectral", bias="learnable", offset=torch.ones(3))
    offset = np.ones(3)
    assert float(arrays.loss(weights.numpy(), "spectral", bias="learnable", offset=offset)) == pytest.approx(
        float(value)
    )
    alive = minimum.alive.tolist()
    torch.testing.assert_close(
        arrays.label_signal(MEANS, SHARES, alive).per_direction,
        tensors.label_signal(torch.tensor(MEANS), torch.tensor(SHARES), minimum.alive).per_direction,
        atol=1e-6,
        rtol=1e-6,
    )
    found = arrays.class_directions(np.array(MEANS), np.array(SHARES), np.array(alive))
    expected = tensors.class_directions(torch.tensor(MEANS), torch.tensor(SHARES), minimum.alive)
    torch.testing.assert_close(found.correlations, expected.correlations, atol=1e-6, rtol=1e-6)


def test_integers_and_masks_are_numbers():
    landscape = LinearLandscape([[1, 0], [0, 0]], [[1, 0], [0, 1]])
    assert landscape.canonical_correlations.tolist() == [1, 0]
    assert simplex_projection([2, 0]).tolist() == [1, 0]
    assert float(landscape.loss([[1, 0]])) == float(landscape.loss(torch.tensor([[1.0, 0.0]])))
    signal = label_signal(np.eye(2), [[0, 0], [1, 0]], [1, 1], np.array([True, False]))
    assert signal.lost == 0
    assert Objective(alpha=np.float32(0.5)) == Objective(alpha=0.5)


def test_gradients_pass_through():
    weights = torch.ones(2, 3, requires_grad=True)
    LinearLandscape(B, SIGMA).loss(weights).backward()
    assert weights.grad.abs().sum() > 0


def test_views_and_images_as_arrays():
    images = np.random.default_rng(0).integers(0, 255, (40, 3, 2, 2)).astype(np.uint8)
    batches = list(view_batches(images, views))
    assert torch.equal(batches[0], next(view_batches(torch.from_numpy(images), views)))
    one, two = view_covariances(batches), view_covariances([batch.numpy() for batch in batches])
    assert torch.equal(one.B, two.B)
    k = canonical_correlations(batches[0].numpy()[..., :4], resamples=20).values
    assert torch.equal(k, canonical_correlations(batches[0][..., :4], resamples=20).values)
    labels = [0, 1] * 20
    first, second, third = (
        forecast(form, views, labels=labels, views_per_image=2)
        for form in (torch.from_numpy(images), images, [images[:30], images[30:]])
    )
    assert first == second
    assert first.num_images == third.num_images


IMAGES = np.zeros((8, 3, 2, 2), np.float32)
WRONG = [
    (lambda: LinearLandscape("B.npy", SIGMA), TypeError, "B must be an array of numbers, got 'B.npy': pass"),
    (lambda: LinearLandscape(B, None), TypeError, "Sigma must be an array of numbers, got None"),
    (
        lambda: LinearLandscape([[1.0], [1.0, 2.0]], SIGMA),
        TypeError,
        "B must be an array of numbers, got [[1.0], [1.0, 2.0]]",
    ),
    (lambda: LinearLandscape(B * 1j, SIGMA), TypeError, "B must hold real numbers"),
    (lambda: LinearLandscape(0.5, SIGMA), ValueError, "B has shape (): pass a square matrix (D, D)"),
    (lambda: LinearLandscape(B, SIGMA * np.nan), ValueError, "Sigma holds NaN or infinity"),
    (lambda: LinearLandscape(B, SIGMA, mean="zero"), TypeError, "mean must be an array of numbers"),
    (lambda: LinearLandscape(B, SIGMA, tol="small"), TypeError, "tol must be a number, got 'small'"),
    (lambda: LinearLandscape(B, SIGMA, slack=-1), ValueError, "slack must be a finite number of at least 0, got -1"),
    (lambda: LinearLandscape(B, SIGMA).minimum(alpha="1"), TypeError, "alpha must be a number, got '1'"),
    (lambda: LinearLandscape(B, SIGMA).minimum(dim=2.5), TypeError, "dim must be a whole number, got 2.5"),
    (lambda: LinearLandscape(B, SIGMA).minimum(None), TypeError, "loss must be a name, got None: choose from quartic"),
    (lambda: LinearLandscape(B, SIGMA).loss(None), TypeError, "weights must be an array of numbers, got None"),
    (lambda: LinearLandscape(B, SIGMA).loss(B, offset=[1.0]), ValueError, "offset has shape (1,): pass (3,)"),
    (lambda: LinearLandscape(B, SIGMA).gamma_to_revive("all"), TypeError, "direction must be a whole number"),
    (lambda: LinearLandscape(B, SIGMA).stationary_points(limit="5"), TypeError, "limit must be a whole number"),
    (lambda: label_signal(np.eye(3), MEANS, SHARES, "alive"), TypeError, "alive must be an array of numbers"),
    (lambda: class_directions(np.eye(3), "k", MEANS, SHARES, [1] * 3), TypeError, "correlations must be an array"),
    (lambda: simplex_projection({1, 2}), TypeError, "point must be an array of numbers, got {1, 2}"),
    (lambda: view_covariances(["views"]), TypeError, "views must be an array of numbers, got 'views'"),
    (lambda: canonical_correlations(None), TypeError, "views must be an array of numbers, got None"),
    (lambda: canonical_correlations(np.zeros((9, 2))), ValueError, "views has shape (9, 2): pass (B, v, D)"),
    (lambda: canonical_correlations(np.zeros((9, 2, 2)), folds=1), ValueError, "folds must be at least 2, got 1"),
    (lambda: list(view_batches("folder", views)), TypeError, "images must be a tensor or array (n, C, H, W)"),
    (
        lambda: list(view_batches(IMAGES, "digits")),
        TypeError,
        "views must be callable as views(images, seed), got 'digits'",
    ),
    (lambda: forecast("folder", views), TypeError, "images must be a tensor or array (n, C, H, W)"),
    (lambda: forecast(None, views), TypeError, "got None"),
    (lambda: forecast(IMAGES, "digits"), TypeError, "views must be callable"),
    (lambda: forecast(iter([IMAGES]), views), TypeError, "images must be read several times"),
    (lambda: forecast(IMAGES[0], views), ValueError, "images has shape (3, 2, 2): pass (n, C, H, W)"),
    (lambda: forecast(["cat.png"], views), TypeError, "images must be an array of numbers, got 'cat.png'"),
    (
        lambda: forecast(IMAGES + np.arange(8)[:, None, None, None], views, labels="x"),
        TypeError,
        "labels must be an array",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_the_wrong_kind_of_thing_is_refused_in_one_line(call, kind, message):
    with pytest.raises(kind, match=r"^[^\n]*$") as error:
        call()
    assert message in str(error.value)


def test_arrays_in_unusual_memory():
    value = np.arange(6.0).reshape(2, 3)
    locked = value.copy()
    locked.flags.writeable = False
    for array in (value[::-1, ::-1][::-1, ::-1], value.astype(">f8"), locked, value.T.copy().T):
        assert as_tensor("x", array, 2).tolist() == value.tolist()
    flipped = as_tensor("x", value[:, ::-1])
    assert flipped.tolist() == value[:, ::-1].tolist()
    tensor = torch.ones(3)
    assert as_tensor("x", tensor) is tensor
    assert as_tensor("x", np.array([np.nan]), finite=False).isnan().all()


def test_numbers():
    assert as_float("x", np.float32(0.5)) == 0.5
    assert (as_int("x", np.int64(3)), type(as_int("x", np.int64(3)))) == (3, int)
    for call in (lambda: as_int("x", True), lambda: as_float("x", None), lambda: as_float("x", torch.ones(1))):
        with pytest.raises(TypeError, match="x must be a"):
            call()
    with pytest.raises(ValueError, match="x must be at most 2, got 3"):
        as_int("x", 3, at_most=2)
    with pytest.raises(ValueError, match="x must be a finite number, got inf"):
        as_float("x", float("inf"))
