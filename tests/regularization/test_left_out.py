"""What a penalty leaves out, and why: listed, counted, and selected if asked for."""

import pytest
import torch
from timm.layers import CondConv2d, ScaledStdConv2d, StdConv2d
from torch import nn

from hf_orthossl import OrthogonalityRegularizer, load_encoder
from hf_orthossl.regularization import left_out, select_matrices


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 3, 8))
        self.table = nn.Embedding(5, 8)
        self.linear = nn.Linear(8, 6)
        self.to_one = nn.Linear(8, 1)
        self.from_one = nn.Conv2d(1, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.mixture = CondConv2d(4, 6, 3, num_experts=2)
        self.recurrent = nn.LSTM(8, 4)
        self.attn = nn.Module()
        self.attn.cpb_mlp = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))
        self.half = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))


def test_every_weight_is_penalized_or_listed_with_a_reason():
    module = Everything()
    regularizer = OrthogonalityRegularizer(module)
    assert regularizer.names == ["linear.weight", "half.weight"]
    listed = {entry.name: entry.reason for entry in regularizer.left_out}
    for name, parameter in module.named_parameters():
        assert parameter.ndim < 2 or name in listed or name.startswith(("linear.", "half."))
    for name, word in {
        "token": "parameter of Everything itself",
        "table.weight": "embedding",
        "to_one.weight": "vector",
        "from_one.weight": "vector",
        "depthwise.weight": "depthwise kernel",
        "mixture.weight": "mixture of kernels",
        "recurrent.weight_ih_l0": "recurrent layer",
        "recurrent.weight_hh_l0": "recurrent layer",
        "attn.cpb_mlp.0.weight": "position biases",
    }.items():
        assert word in listed.pop(name), name
    assert set(listed) <= {"attn.cpb_mlp.2.weight"}
    assert "to_one.weight  1×8  vector" in regularizer.describe()
    assert "weights left out: 2 × vector" in regularizer.summary()


def test_patterns_select_what_is_left_out_by_default():
    module = Everything()
    assert [m.name for m in select_matrices(module, include=["to_one*", "*cpb_mlp*"])] == [
        "to_one.weight", "attn.cpb_mlp.0.weight", "attn.cpb_mlp.2.weight",
    ]  # fmt: skip
    chosen = select_matrices(module, exclude="linear.weight")
    reasons = {entry.name: entry.reason for entry in left_out(module, chosen)}
    assert reasons["linear.weight"] == "not selected by include and exclude"
    assert len(select_matrices(module, depthwise=True)) == 2 + 8


@pytest.mark.parametrize("kind", [StdConv2d, ScaledStdConv2d])
def test_of_a_standardized_convolution_the_parameter_is_read(kind):
    torch.manual_seed(0)
    module = kind(4, 6, 3).double()
    value = OrthogonalityRegularizer(module)()
    expected = 0.0
    columns = [module.weight[o].flatten().tolist() for o in range(6)]
    for i, first in enumerate(columns):
        for j, second in enumerate(columns):
            expected += (sum(a * b for a, b in zip(first, second, strict=True)) - (i == j)) ** 2
    assert value.item() == pytest.approx(expected, rel=1e-10)
    regularizer = OrthogonalityRegularizer(module)
    assert "1 weight-standardized convolutions the parameter" in regularizer.summary()
    nn.init.orthogonal_(module.weight)
    assert OrthogonalityRegularizer(module)().item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(
    ("name", "settings", "pattern"),
    [
        ("swinv2_tiny_window8_256", {"depths": (1, 1), "embed_dim": 24, "num_heads": (1, 2)}, "cpb_mlp"),
        ("convit_tiny", {"depth": 2, "local_up_to_layer": 1, "embed_dim": 12}, "pos_proj"),
        ("vit_relpos_medium_patch16_rpn_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}, "rel_pos"),
    ],
)
def test_position_biases_of_known_networks(name, settings, pattern):
    regularizer = OrthogonalityRegularizer(load_encoder(name, **settings))
    assert not any(pattern in matrix for matrix in regularizer.names)
    assert any(pattern in e.name and "position biases" in e.reason for e in regularizer.left_out)


def test_the_keys_and_values_of_halo_attention_interleave_heads():
    encoder = load_encoder("halonet_h1")
    halo = [matrix for matrix in select_matrices(encoder) if ".self_attn.kv." in matrix.name]
    assert halo
    assert all(matrix.count == 1 for matrix in halo)


@pytest.mark.parametrize(("split", "word", "count"), [(True, "split", 1 + 1 * 6), (False, "whole", 1 + 1 * 4)])
def test_how_fused_layers_are_read_is_known(split, word, count):
    encoder = load_encoder("vit_tiny_patch16_224", image_size=32, depth=1, embed_dim=24, num_heads=2, patch_size=8)
    regularizer = OrthogonalityRegularizer(encoder, split_fused=split)
    assert (regularizer.fused, len(regularizer)) == (word, count)
    assert OrthogonalityRegularizer(nn.Linear(3, 4)).fused is None
