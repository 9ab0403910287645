"""The theory's losses: value and gradient against loops, and linear training against the landscape's closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss

from hf_orthossl import OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.data import Views, get_recipe
from hf_orthossl.landscape import LinearLandscape, view_batches, view_covariances
from hf_orthossl.methods import METHODS, THEORY_LOSSES, Progress, build_method
from hf_orthossl.spectra.eigenvalues import symmetric_eigenvalues
from hf_orthossl.training import pretrain_loop

BATCHES = (2, 7, 32)


def representations(batch, dim=5):
    generator = torch.Generator().manual_seed(batch)
    return [torch.randn(batch, dim, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def assert_same(ours, oracle, inputs):
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-10)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(oracle, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def looped_infonce(f, similarity, temperature, alpha):
    """Sum over queries and candidates, one by one; `f` holds both views of the images."""
    count, total = len(f), 0
    for i in range(count):
        partner = (i + count // 2) % count
        candidates = [similarity(f[i], f[k]) / temperature for k in range(count) if k != i]
        total = total - alpha * similarity(f[i], f[partner]) / temperature + torch.stack(candidates).logsumexp(0)
    return total / count


@pytest.mark.parametrize("batch", BATCHES)
def test_cosine_infonce_is_nt_xent(batch, tiny_encoder):
    z = representations(batch)
    method = build_method("infonce", tiny_encoder, {"temperature": 0.3})
    assert_same(method.loss(*z), NTXentLoss(0.3)(*z), z)


@pytest.mark.parametrize("batch", BATCHES)
def test_euclidean_infonce(batch, tiny_encoder):
    z = representations(batch)
    config = {"similarity": "euclidean", "temperature": 0.7, "alignment": 1.6}
    expected = looped_infonce(torch.cat(z), lambda a, b: -0.5 * (a - b).square().sum(), 0.7, 1.6)
    assert_same(build_method("infonce", tiny_encoder, config).loss(*z), expected, z)


@pytest.mark.parametrize("batch", BATCHES)
def test_standardized_infonce(batch, tiny_encoder):
    z = representations(batch)
    f = torch.cat(z) - torch.cat(z).mean(0)
    f = f / torch.stack([row @ row for row in f]).mean().sqrt()
    config = {"similarity": "standardized", "temperature": 0.7, "alignment": 1.6}
    expected = looped_infonce(f, torch.dot, 0.7, 1.6)
    assert_same(build_method("infonce", tiny_encoder, config).loss(*z), expected, z)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("centred", [False, True])
def test_spectral(batch, centred, tiny_encoder):
    z = representations(batch)
    mean = torch.cat(z).mean(0) if centred else 0
    f, g = (view - mean for view in z)
    pairs = [(f[i] @ g[j]).square() for i in range(batch) for j in range(batch) if i != j]
    expected = sum(pairs) / len(pairs)
    for a, b in zip(f, g, strict=True):
        expected = expected + (-2 * a @ b + 0.6 * (a - b).square().sum()) / batch
    method = build_method("spectral", tiny_encoder, {"centred": centred, "alignment": 1.6})
    assert_same(method.loss(*z), expected, z)


def test_distances_far_from_the_origin_keep_their_digits(tiny_encoder):
    """Raw pixels have a mean: float32 must not lose the spread beneath it."""
    z = [view.detach() for view in representations(16)]
    method = build_method("infonce", tiny_encoder, {"similarity": "euclidean"})
    far = method.loss(*((view + 1e3).float() for view in z))
    torch.testing.assert_close(far, method.loss(*z).float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", THEORY_LOSSES)
def test_float32_under_autocast_and_no_state(name, tiny_encoder):
    method = build_method(name, tiny_encoder)
    views = [torch.randn(8, 3, 9, 9) for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(tiny_encoder, views)
    assert output.loss.dtype == torch.float32
    assert math.isfinite(output.loss)
    assert not method.state_dict()
    assert [h.shape for h in output.representations] == [(8, 12)] * 2


def test_they_are_apart_from_the_methods(tiny_encoder):
    assert set(THEORY_LOSSES) == {"infonce", "spectral"}
    assert not set(METHODS) & set(THEORY_LOSSES)
    with pytest.raises(ValueError, match="similarity is 'euclidian': did you mean 'euclidean'"):
        build_method("infonce", tiny_encoder, {"similarity": "euclidian"})


CASES = {
    "euclidean": ("infonce", {"similarity": "euclidean", "temperature": 1.0, "alignment": 2.0}, {"alpha": 2.0}),
    "standardized": ("infonce", {"similarity": "standardized", "temperature": 1.0}, {"loss": "normalized"}),
    "centred": ("spectral", {"centred": True, "alignment": 2.0}, {"loss": "spectral", "alpha": 2.0}),
    "no bias": ("spectral", {}, {"loss": "spectral", "bias": "none"}),
    "learnable bias": ("spectral", {}, {"loss": "spectral", "bias": "learnable"}),
}
UNPREDICTED = ("learnable bias", 0.05)


# The landscape predicts nothing for a learnable bias with the penalty.
@pytest.mark.parametrize(
    ("case", "gamma"), [(case, gamma) for case in CASES for gamma in (0.0, 0.05) if (case, gamma) != UNPREDICTED]
)
def test_gaussian_views_train_to_the_predicted_eigenvalues(case, gamma):
    """Directions that live and die; B and Σ do not commute, views have a mean, outputs are fewer than directions."""
    method, config, objective = CASES[case]
    objective = {"loss": "infonce", "bias": "centred", "gamma": gamma, **objective}
    generator = torch.Generator().manual_seed(1)
    mixing = torch.eye(12) + 0.15 * torch.randn(12, 12, generator=generator)
    k = torch.tensor([0.85, 0.75, 0.6, 0.45, 0.3, *([0.1] * 7)])
    mean = 0.4 * torch.randn(12, generator=generator) if case != "standardized" else torch.zeros(12)
    B, Sigma = ((mixing.T @ (share[:, None] * mixing)).double() for share in (k, torch.ones(12)))
    landscape = LinearLandscape(B, Sigma, mean=mean.double())
    predicted = landscape.minimum(dim=4, **objective).eigenvalues.sort(descending=True).values

    torch.manual_seed(0)
    backbone = {"num_features": 4, "bias": objective["bias"] == "learnable"}
    settings = {"regularizer": "so" if gamma else None, "gamma": gamma}
    model = SSLModel(SSLConfig("linear", 2, backbone, method=method, method_config=config, **settings))
    # The direction nearest to its threshold grows slowest, and needs this many.
    steps, batch, rate = 600, 256, 0.05
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps):
        image = torch.randn(batch, 12, generator=generator) * k.sqrt()
        views = [image + torch.randn(batch, 12, generator=generator) * (1 - k).sqrt() for _ in range(2)]
        model.begin_step(Progress(step, steps))
        model([(view @ mixing + mean).view(-1, 3, 2, 2) for view in views]).loss.backward()
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.step()
        optimizer.zero_grad()
    W = model.encoder.backbone.projection.weight.detach().double()
    measured = symmetric_eigenvalues(W @ Sigma @ W.T)
    if case == "standardized":
        predicted, measured = predicted / predicted.sum(), measured / measured.sum()
    residual = (measured - predicted).square().sum() / (predicted - predicted.mean()).square().sum()
    assert residual < 0.02, f"{predicted.tolist()} against {measured.tolist()}"
    assert (measured - predicted).abs().max() < 0.05 * predicted[0]
    if not gamma:  # the penalty leaves no gap between the living and the dead to count at
        assert (measured > 0.02 * measured[0]).sum() == (predicted > 0).sum()


def test_digits_through_the_pretraining_path(tmp_path):
    """The loop, its optimizer and its views, on real digits at 4×4 pixels: the spectral loss needs no Gaussian data."""
    from sklearn.datasets import load_digits

    scans = np.round(load_digits().images[:512] * (255 / 16)).astype(np.uint8)
    images = F.avg_pool2d(torch.from_numpy(scans)[:, None].float(), 2).to(torch.uint8).expand(-1, 3, -1, -1)
    items = [{"pixel_values": image, "labels": 0, "index": i, "unreadable": []} for i, image in enumerate(images)]
    config = {"centred": True, "alignment": 1.5}
    model = SSLModel(
        SSLConfig("linear", 4, {"num_features": 12}, method="spectral", method_config=config, regularizer=None)
    )
    recipe = get_recipe("digits").with_(scale=(0.7, 1.0))
    views = Views(recipe, 4, model.encoder.mean, model.encoder.std)
    covariances = view_covariances(view_batches(images, views, draws=8))
    landscape = LinearLandscape(covariances.B, covariances.Sigma, tol=1e-6, slack=0.02)
    predicted = landscape.minimum("spectral", alpha=1.5, dim=12, bias="centred").eigenvalues
    args = OrthoSSLTrainingArguments(
        output_dir=str(tmp_path),
        views=recipe,
        learning_rate=0.02,
        per_device_train_batch_size=512,
        max_steps=250,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        report_to="none",
    )
    pretrain_loop(model, items, args)
    measured = view_covariances(view_batches(images, views, draws=4, features=model.encoder, seed=1)).Sigma
    measured = symmetric_eigenvalues(measured)
    residual = (measured - predicted).square().sum() / (predicted - predicted.mean()).square().sum()
    assert residual < 0.02, f"{predicted.tolist()} against {measured.tolist()}"
