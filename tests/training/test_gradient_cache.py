"""The whole batch's loss at the memory of a chunk, asked for as an argument of both fronts."""

import pytest
import torch

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.methods import ChunkedEncoder
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history

# Without batch norm in the encoder, whose statistics would be the chunks'.
SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8}


def losses(front, folder, **settings):
    torch.manual_seed(0)
    model = SSLModel(SSLConfig("vit_tiny_patch16_224", image_size=32, backbone_config=SMALL, method="vicreg"))
    seen = []
    # Without the rehearsal, which has no gradients.
    model.encoder.register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0])) if torch.is_grad_enabled() else None
    )
    args = OrthoSSLTrainingArguments(
        str(folder), per_device_train_batch_size=16, max_steps=3, logging_steps=1, save_strategy="no", spectra_steps=0,
        use_cpu=True, disable_tqdm=True, **settings,
    )  # fmt: skip
    if front == "loop":
        pretrain_loop(model, "digits", args)
    else:
        OrthoSSLTrainer(model, args, train_dataset="digits").train()
    entries = read_history(folder)
    return [entry["loss"] for entry in entries if "loss" in entry], set(seen)


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_chunks_give_the_losses_of_the_whole_batch(front, tmp_path):
    whole, sizes = losses(front, tmp_path / "whole")
    assert sizes == {16}
    chunked, sizes = losses(front, tmp_path / "chunked", gradient_cache=6)
    assert max(sizes) <= 6
    assert chunked == pytest.approx(whole, rel=1e-5)
    assert len(whole) == 3


@pytest.mark.parametrize(("batch", "size", "remedy"), [(4, 1, 2), (3, 2, 3), (5, 2, 3)])
def test_batch_norm_and_a_chunk_of_one_image(batch, size, remedy, tiny_encoder):
    images = torch.randn(batch, 3, 8, 8)
    with pytest.raises(ValueError, match=f"batch of {batch}, .* pass --gradient_cache {remedy} or more"):
        ChunkedEncoder(tiny_encoder, size)(images)
    assert ChunkedEncoder(tiny_encoder, remedy)(images).shape == (batch, 12)
    assert ChunkedEncoder(tiny_encoder.eval(), size)(images).shape == (batch, 12)


def test_a_chunk_holds_at_least_one_image(tmp_path):
    with pytest.raises(ValueError, match="gradient_cache is 0: it must be 1 or more"):
        OrthoSSLTrainingArguments(str(tmp_path), gradient_cache=0)
