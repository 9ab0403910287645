"""Train linear encoders on digits by the normal pretraining path, and on Gaussian views of the same covariances."""

import tempfile

import torch
from torch import Tensor
from transformers import get_scheduler

from hf_orthossl import OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, Recipe, Views, load_source
from hf_orthossl.landscape import ViewCovariances, view_batches, view_covariances
from hf_orthossl.methods import Progress
from hf_orthossl.spectra import StreamingCovariance
from hf_orthossl.spectra.eigenvalues import symmetric_eigenvalues
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.optimizers import build_optimizer

SIZE = 8
# As many outputs as inputs. The three channels of a gray image are equal, so its views vary in 64 of 192 dimensions: up
# to 128 outputs could be made orthonormal in the others, and the penalty would not affect the loss.
DIM = 3 * SIZE**2
DRAWS = 8


def digit_items(images: int) -> list[dict]:
    """Return training digits as decoded items, 8×8 pixels as they were scanned."""
    dataset = ImageDataset(load_source("digits", split=f"train[:{images}]"), image_size=SIZE)
    return dataset.__getitems__(range(len(dataset)))


def linear_model(method: str, method_config: dict, gamma: float, seed: int) -> SSLModel:
    """Return a linear encoder with a method and, with `gamma`, the penalty SO."""
    torch.manual_seed(seed)
    return SSLModel(
        SSLConfig(
            backbone="linear",
            image_size=SIZE,
            backbone_config={"num_features": DIM},
            method=method,
            method_config=method_config,
            regularizer="so" if gamma else None,
            gamma=gamma,
        )
    )


def pipeline(model: SSLModel, recipe: Recipe) -> Views:
    """Return the views that a run of this model trains on."""
    return Views(recipe, SIZE, model.encoder.mean, model.encoder.std)


def estimate(items: list[dict], views: Views, seed: int) -> ViewCovariances:
    """Estimate B and Σ from 16 views of each image; any two of them make a pair."""
    return view_covariances(view_batches(_images(items), views, draws=DRAWS, seed=seed))


def train_on_digits(model: SSLModel, items: list[dict], recipe: Recipe, settings: dict) -> None:
    """Pretrain the model on digits."""
    with tempfile.TemporaryDirectory() as folder:
        pretrain_loop(model, items, _arguments(folder, settings, views=recipe))


def measure_on_digits(model: SSLModel, items: list[dict], views: Views, seed: int) -> Tensor:
    """Return the eigenvalues `(D,)` of the representation's covariance over new views."""
    covariance = StreamingCovariance(DIM)
    for batch in view_batches(_images(items), views, draws=DRAWS, features=model.encoder, seed=seed):
        covariance.update(batch.flatten(0, 1))
    return covariance.eigenvalues()


def train_on_gaussian(model: SSLModel, covariances: ViewCovariances, settings: dict) -> None:
    """Run the same steps on Gaussian views with these B and Σ and new images, for which the theory is exact."""
    generator = torch.Generator().manual_seed(settings["seed"])
    kept, moved = (_root(matrix) for matrix in (covariances.positive()[0], covariances.C))
    steps, batch = settings["max_steps"], settings["per_device_train_batch_size"]

    def draw(root: Tensor) -> Tensor:
        return (torch.randn(batch, DIM, generator=generator) @ root).view(batch, 3, SIZE, SIZE)

    with tempfile.TemporaryDirectory() as folder:
        args = _arguments(folder, settings).with_recipe(model.method.recipe)
    optimizer = build_optimizer(model, args)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps)
    model.train()
    for step in range(steps):
        image = draw(kept)
        model.begin_step(Progress(step, steps, 1, args.seed))
        model([image + draw(moved) for _ in range(2)]).loss.backward()
        model.before_optimizer_step()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        model.end_step()


def measure_on_gaussian(model: SSLModel, covariances: ViewCovariances) -> Tensor:
    """Return the eigenvalues `(D,)` of WΣWᵀ."""
    W = model.encoder.backbone.projection.weight.detach().double()
    return symmetric_eigenvalues(W @ covariances.Sigma @ W.T)


def _images(items: list[dict]) -> Tensor:
    return torch.stack([item["pixel_values"] for item in items])


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt() @ vectors.T).float()


def _arguments(folder: str, settings: dict, **more) -> OrthoSSLTrainingArguments:
    return OrthoSSLTrainingArguments(
        output_dir=folder, save_strategy="no", disable_tqdm=True, use_cpu=True, report_to="none", **settings, **more
    )
