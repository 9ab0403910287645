"""Images and views of an optimizer step, however processes and micro-batches share it out."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from torch import nn
from torch.utils.data import BatchSampler

from hf_orthossl.data import Views, get_recipe
from hf_orthossl.methods import SSLOutput
from hf_orthossl.training.step import SSLStep

IMAGES, PER_STEP = 50, 16
# Processes, micro-batches.
SHARES = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)]


class Recorder(nn.Module):
    """Stands for the model; keeps the views it is given."""

    def __init__(self):
        super().__init__()
        self.method = SimpleNamespace(progress=None)
        self.config = SimpleNamespace(gamma=0.0)
        self.views = []

    def begin_step(self, progress):
        self.method.progress = progress

    def forward(self, views, penalty_weight):
        self.views.append(views)
        return SSLOutput(loss=torch.zeros(()), parts={})


def steps_seen(processes, accumulation, pixels, recipe, drop_last, monkeypatch, epochs=2):
    """Per optimizer step the images and, in the same order, their views, as all processes together see them."""
    monkeypatch.setattr("hf_orthossl.training.step.world_size", lambda: processes)
    size = PER_STEP // processes // accumulation
    shares = []
    for process in range(processes):
        model = Recorder()
        make = Views(recipe, 16, (0.5,) * 3, (0.25,) * 3)
        step = SSLStep(model, make, 3, process, images_per_step=PER_STEP)
        done, share = 0, []
        for epoch in range(epochs):
            sampler = SeedableRandomSampler(pixels, data_seed=0)
            sampler.set_epoch(epoch)
            dealt = BatchSampler(sampler, size, drop_last)
            batches = list(BatchSamplerShard(dealt, processes, process) if processes > 1 else dealt)
            for first in range(0, len(batches), accumulation):
                step.begin(done, 100, 10)
                micro_batches = batches[first : first + accumulation]
                for indices in micro_batches:
                    batch = {"labels": torch.tensor(indices), "pixel_values": pixels[indices], "unreadable": []}
                    step.loss(model, batch, last=False, accumulation=len(micro_batches))
                share.append([(tuple(i), v) for i, v in zip(micro_batches, model.views, strict=True)])
                model.views = []
                done += 1
        shares.append(share)
    steps = []
    for of_processes in zip(*shares, strict=True):
        parts = [part for of_micro_batch in zip(*of_processes, strict=True) for part in of_micro_batch]
        indices = [index for part, _ in parts for index in part]
        steps.append((indices, [torch.cat(view) for view in zip(*(views for _, views in parts), strict=True)]))
    return steps


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("processes", "accumulation"), SHARES[1:])
def test_a_step_has_the_same_images_and_views_however_shared_out(processes, accumulation, drop_last, monkeypatch):
    pixels = torch.randint(0, 256, (IMAGES, 3, 20, 20), dtype=torch.uint8)
    recipe = get_recipe("cifar-asym")
    settings = (pixels, recipe, drop_last, monkeypatch)
    whole, shared = steps_seen(1, 1, *settings), steps_seen(processes, accumulation, *settings)
    assert len(shared) == len(whole) == (6 if drop_last else 8)
    for (indices, views), (expected_indices, expected) in zip(shared, whole, strict=True):
        # Where the last batch is short, accelerate fills the processes up with images from the beginning.
        images = len(expected_indices)
        assert indices[:images] == expected_indices
        assert len(indices) == images or (not drop_last and processes > 1)
        torch.testing.assert_close([view[:images] for view in views], expected, atol=2e-5, rtol=0)
    assert not torch.equal(whole[0][1][0][:2], whole[1][1][0][:2])


def test_views_of_one_process_are_those_of_its_batch():
    """What earlier runs saw: seed, step, and a batch of its own, without a word of how many images a step has."""
    model, make = Recorder(), Views("cifar-asym", 16, (0.5,) * 3, (0.25,) * 3)
    pixels = torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8)
    step = SSLStep(model, make, 3)
    step.begin(2, 10, 5)
    batch = {"labels": torch.zeros(5), "pixel_values": pixels, "unreadable": []}
    step.loss(model, batch, last=True, accumulation=1)
    torch.testing.assert_close(model.views[0], make(pixels, step._view_seed()), atol=0, rtol=0)
