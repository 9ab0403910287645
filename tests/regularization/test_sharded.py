"""Penalties and spectra of weights that processes share, against one process that has them whole."""

import copy

import pytest
import timm
import torch
import torch.distributed as dist
from layouts import ON_FOUR, Layouts, close, shard
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode

from hf_orthossl.regularization import PENALTIES, OrthogonalityRegularizer
from hf_orthossl.spectra import spectral_report


def regularized(kind, module):
    module.zero_grad()
    penalty = OrthogonalityRegularizer(module, kind)(torch.Generator().manual_seed(3))
    with CommDebugMode() as communication:
        penalty.backward()
    # It could wait for one of FSDP's own.
    assert communication.get_total_counts() == 0
    return penalty.detach()


def check_layouts(shape, placements, dtype):
    torch.manual_seed(0)
    whole = Layouts().to(dtype)
    sharded = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", shape)
    shard(sharded, mesh, placements)
    for kind in PENALTIES:
        expected, value = regularized(kind, whole), regularized(kind, sharded)
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
        for (name, p), q in zip(sharded.named_parameters(), whole.parameters(), strict=True):
            if q.grad is None:
                assert p.grad is None, name
                continue
            assert isinstance(p.grad, DTensor), name
            assert p.grad.placements == p.placements, name
            close(p.grad.full_tensor(), q.grad, f"{kind} {name}", 1e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_layout_on_two_processes(two_processes, dtype):
    two_processes.run(check_layouts, (2,), [Shard(0)], dtype)


@pytest.mark.parametrize(("shape", "placements"), ON_FOUR.values(), ids=ON_FOUR)
def test_every_layout_on_four_processes(four_processes, shape, placements):
    four_processes.run(check_layouts, shape, placements, torch.float64)


class Penalized(nn.Module):
    """A timm encoder whose loss carries its penalty, computed where `SSLModel` does: last in the forward pass."""

    def __init__(self, name, kind):
        super().__init__()
        torch.manual_seed(0)
        # Running statistics: a half batch then has the same features as in the whole one.
        self.encoder = timm.create_model(name, num_classes=0, img_size=32 if "vit" in name else None).double().eval()
        # Regularized, and used by nothing else.
        self.encoder.spare = nn.Linear(6, 4).double()
        self.regularizer = OrthogonalityRegularizer(self.encoder, kind)

    def forward(self, x, process=0, processes=1):
        ssl = self.encoder(x).square().mean()
        penalty = self.regularizer(torch.Generator().manual_seed(5), process=process, processes=processes)
        return ssl + 0.1 * penalty, penalty.detach()


def batch():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def descend(model, x, **share):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        loss, penalty = model(x, **share)
        loss.backward()
        optimizer.step()
    return penalty


def train_under_fsdp(name, kind, blocks, reshard, shape=None):
    rank, count = dist.get_rank(), dist.get_world_size()
    model = Penalized(name, kind)
    mesh = init_device_mesh("cpu", shape or (count,), mesh_dim_names=("replicas", "shards")[2 - len(shape or (1,)) :])
    for block in blocks and model.encoder.get_submodule(blocks).children():
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
    penalty = descend(model, batch().chunk(count)[rank], process=rank, processes=count)
    values = OrthogonalityRegularizer(model.encoder, kind).values()
    report = spectral_report(model.encoder)
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    weights = {name: p.full_tensor().detach() for name, p in model.named_parameters()}
    return penalty, values, {n: w.singular_values for n, w in report.weights.items()}, gradients, weights


def check_fsdp(group, name, kind, blocks, reshard, shape=None):
    model = Penalized(name, kind)
    expected = descend(model, batch())
    report = spectral_report(model.encoder)
    answers = group.run(train_under_fsdp, name, kind, blocks, reshard, shape)
    torch.testing.assert_close(torch.stack([a[0] for a in answers]).mean(), expected, rtol=1e-9, atol=0)
    for _, values, singular_values, gradients, weights in answers:
        assert values == pytest.approx(OrthogonalityRegularizer(model.encoder, kind).values(), rel=1e-8)
        for layer, spectrum in report.weights.items():
            torch.testing.assert_close(singular_values[layer], spectrum.singular_values)
        assert list(singular_values) == list(report.weights)
        assert set(gradients) == {n for n, p in model.named_parameters() if p.grad is not None}
        for n, p in model.named_parameters():
            if p.grad is not None:
                close(gradients[n], p.grad, f"gradient of {n}", 1e-9)
            close(weights[n], p.detach(), n, 1e-9)


@pytest.mark.parametrize("reshard", [True, False], ids=["resharded", "kept whole"])
@pytest.mark.parametrize("kind", ["so", "srip"])
@pytest.mark.parametrize(("name", "blocks"), [("test_vit", "blocks"), ("test_resnet", "layer2"), ("test_vit", "")])
def test_fsdp_trains_as_one_process(two_processes, name, blocks, kind, reshard):
    check_fsdp(two_processes, name, kind, f"{blocks}", reshard)


def test_hsdp_trains_as_one_process(four_processes):
    check_fsdp(four_processes, "test_vit", "srip", "blocks", True, (2, 2))
