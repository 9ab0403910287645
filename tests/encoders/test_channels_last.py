"""The memory order of images changes how fast a backbone is on CUDA, and nothing else."""

import pytest
import torch

from hf_orthossl import load_encoder


def test_on_the_cpu_images_are_contiguous():
    """Whatever the caller's order: torch's batch norm over channels-last images sums less exactly there."""
    encoder, seen = load_encoder("resnet10t", image_size=32), []
    encoder.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].is_contiguous()))
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(encoder(images.contiguous(memory_format=torch.channels_last)), encoder(images))
    assert seen == [True, True]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet10t", "vit_tiny_patch16_224"])
def test_on_cuda_they_give_the_same_gradients(name):
    torch.manual_seed(0)
    encoder = load_encoder(name, image_size=32).double().cuda()
    images = torch.randn(4, 3, 32, 32, dtype=torch.double, device="cuda")
    (encoder(images) ** 2).sum().backward()
    found = [parameter.grad.clone() for parameter in encoder.parameters()]
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in encoder.parameters())
    encoder.zero_grad()
    (encoder.backbone(images) ** 2).sum().backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in encoder.parameters()])
