"""Short pretraining runs with the same optimizer for all methods, and the effective rank of their features."""

import argparse
import tempfile

import torch

from hf_orthossl import OrthoSSLTrainingArguments, SSLModel
from hf_orthossl.data import ImageDataset, Recipe
from hf_orthossl.spectra import effective_rank
from hf_orthossl.training import pretrain_loop


def short_run(model: SSLModel, dataset: ImageDataset, views: Recipe | str, args: argparse.Namespace) -> None:
    """Train a model in place for `args.steps` steps of `args.batch` images, without leaving files.

    All methods use the same optimizer: the rows of a comparison differ only in what is compared, and the methods' own
    recipes are meant for much longer runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = OrthoSSLTrainingArguments(
            output_dir=folder,
            views=views,
            optim="adamw_torch",
            learning_rate=1e-3,
            weight_decay=1e-4,
            warmup_steps=0.1,
            per_device_train_batch_size=args.batch,
            max_steps=args.steps,
            seed=args.seed,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
            use_cpu=model.device.type == "cpu",
        )
        pretrain_loop(model, dataset, settings)


def features_rank(features: torch.Tensor) -> float:
    """Return the effective rank of features `(N, D)` after centring."""
    features = features.double()
    return float(effective_rank(torch.linalg.svdvals(features - features.mean(dim=0))))
