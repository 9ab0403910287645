"""Runs of the methods that mask one view: their default views, and masks that a resumed run draws again."""

import pytest
import torch

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel, pretrain
from hf_orthossl.data import get_recipe
from hf_orthossl.methods import METHODS
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history
from hf_orthossl.training.data import default_views

DECODER = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}
RUNS = {
    "mae": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}, DECODER),
    "simmim": ("resnet10t", {"channels": [8, 8, 16, 16]}, {}),
}


def model_of(method, image_size=32):
    backbone, config, settings = RUNS[method]
    torch.manual_seed(0)
    return SSLModel(SSLConfig(backbone, image_size, config, method, settings, regularizer="so", gamma=1e-3))


def with_trainer(model, args):
    OrthoSSLTrainer(model=model, args=args, train_dataset="digits").train()


FRONTS = {"trainer": with_trainer, "loop": lambda model, args: pretrain_loop(model, "digits", args)}


@pytest.mark.parametrize(("method", "front"), [("mae", "trainer"), ("simmim", "loop")])
def test_a_resumed_run_draws_the_masks_of_the_run_that_was_not_stopped(method, front, tmp_path):
    """In accumulated micro-batches, whose masks differ, after a step whose masks are not those of the first."""

    def train(folder, **settings):
        model = model_of(method)
        args = OrthoSSLTrainingArguments(
            output_dir=str(tmp_path / folder), per_device_train_batch_size=8, gradient_accumulation_steps=2,
            logging_steps=1, spectra_steps=0, save_steps=2, use_cpu=True, disable_tqdm=True, report_to="none",
            learning_rate=0.01, lr_scheduler_type="constant", optim="sgd", **settings,
        )  # fmt: skip
        FRONTS[front](model, args)
        return model.state_dict(), [line["loss"] for line in read_history(tmp_path / folder) if "loss" in line]

    whole, losses = train("whole", max_steps=4)
    train("parts", max_steps=2)
    resumed, of_parts = train("parts", max_steps=4, resume=True)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    assert of_parts == losses
    assert len({*losses}) == 4


@pytest.mark.parametrize("method", RUNS)
def test_the_default_views_are_one_of_any_size(method):
    recipes = [METHODS[method].recipe.views, default_views(model_of(method, 128), None)]
    assert recipes == [method, method]
    (view,) = get_recipe(method).views
    # Masked views are cropped and mirrored, and keep their colours.
    assert (view.jitter, view.grayscale, view.blur, view.solarize, view.flip) == (0, 0, 0, 0, 0.5)


def test_one_call_trains_and_writes_an_encoder(tmp_path):
    backbone, config, settings = RUNS["mae"]
    run = pretrain(
        "digits", backbone=backbone, backbone_config=config, image_size=32, method="mae", method_config=settings,
        max_steps=2, per_device_train_batch_size=16, output_dir=tmp_path / "run", use_cpu=True, knn_images=0,
    )  # fmt: skip
    assert "views: digits-one" in (tmp_path / "run" / "config.yaml").read_text()
    assert "The method is MAE" in (run.encoder / "README.md").read_text(encoding="utf-8")


def test_views_of_another_number_or_size_are_refused_before_training(tmp_path):
    backbone, config, settings = RUNS["mae"]

    def start(**options):
        pretrain(
            "digits", backbone=backbone, backbone_config=config, image_size=32, method="mae", method_config=settings,
            max_steps=2, output_dir=tmp_path / "run", use_cpu=True, knn_images=0, **options,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"views has 2 per image, but MAE uses 1: .* such as mae"):
        start(views="digits")
    with pytest.raises(ValueError, match="views has 8 per image, but MAE uses 1"):
        start(views="cifar-multicrop")
