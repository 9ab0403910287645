"""Muon and AdaMuon: against timm's on plain matrices, what goes where, processes, resuming, and what is refused."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from runs_in_double import assert_close, fit, fit_here
from survival_runs import FRONTS, tiny_arguments, tiny_model, train
from timm.optim.muon import Muon as TimmMuon
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.cli import main
from hf_orthossl.encoders import ModuleEncoder, load_encoder
from hf_orthossl.encoders.depth import input_layers
from hf_orthossl.methods import TrainingRecipe
from hf_orthossl.training.muon import hidden_matrices
from hf_orthossl.training.optimizers import build_optimizer

VIT = {
    "backbone": "test_vit",
    "backbone_config": {"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2},
    "method": "simclr",
    "method_config": {"hidden_dim": 16, "output_dim": 8},
}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr("hf_orthossl.spectra.SpectralReport.plot", lambda report, path: path.write_bytes(b"figure"))


class Projections(nn.Module):
    """Each way in which a parameter holds matrices: split rows, split columns, grouped and transposed kernels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.transposed = nn.ConvTranspose2d(12, 6, 2, groups=2)
        self.qkv = nn.Linear(6, 18)
        self.c_attn = Conv1D(18, 6)
        self.wide = nn.Linear(18, 5)

    def forward(self, images):
        maps = self.transposed(self.grouped(self.stem(images)))
        tokens = self.qkv(maps.flatten(2).mean(-1))
        return self.wide(self.c_attn(tokens[:, :6]))


def plain_matrices(network):
    """Return the hidden weights as independent matrices `(output, input)`, cut by hand."""
    grouped, transposed = network.grouped.weight, network.transposed.weight
    return {
        "grouped": [grouped[:6].flatten(1), grouped[6:].flatten(1)],
        "transposed": [transposed[:6].transpose(0, 1).flatten(1), transposed[6:].transpose(0, 1).flatten(1)],
        "qkv": list(network.qkv.weight.split(6)),
        "c_attn": [part.T for part in network.c_attn.weight.split(6, 1)],
        "wide": [network.wide.weight],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("optim", "options", "theirs"),
    [
        ("muon", None, {"nesterov": True}),
        ("muon", "nesterov=false,ns_steps=3,ns_coefficients=polar_express,safety_factor=1.01", {
            "ns_steps": 3, "ns_coefficients": "polar_express", "safety_factor": 1.01,
        }),
        ("adamuon", None, {"algo": "adamuon", "betas": (0.0, 0.95)}),
        ("adamuon", "beta2=0.5,nesterov=true", {"algo": "adamuon", "betas": (0.0, 0.5), "nesterov": True}),
    ],
)  # fmt: skip
def test_every_matrix_is_stepped_as_a_plain_one(optim, options, theirs, dtype, tmp_path):
    """Four steps with equal gradients: timm's own Muon on matrices that were cut out by hand, bit for bit."""
    torch.manual_seed(0)
    network = Projections().to(dtype)
    expected = {
        name: [nn.Parameter(part.detach().clone()) for part in parts] for name, parts in plain_matrices(network).items()
    }
    own = [part for parts in expected.values() for part in parts]
    reference = TimmMuon([{"params": own, "use_muon": True}], lr=0.03, weight_decay=0.1, momentum=0.9, **theirs)
    rest = {name: value.detach().clone() for name, value in network.named_parameters() if name == "stem.weight"}
    stem = nn.Parameter(rest["stem.weight"])
    adamw = torch.optim.AdamW([stem], lr=0.03, weight_decay=0.1)
    args = tiny_arguments(tmp_path, optim=optim, optim_args=options, learning_rate=0.03, weight_decay=0.1, momentum=0.9)
    optimizer = build_optimizer(ModuleEncoder(network, 8), args)
    for _ in range(4):
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        gradients = SimpleNamespace(
            **{name: SimpleNamespace(weight=getattr(network, name).weight.grad) for name in expected}
        )
        for name, parts in plain_matrices(gradients).items():
            for part, gradient in zip(expected[name], parts, strict=True):
                part.grad = gradient.clone()
        stem.grad = network.stem.weight.grad.clone()
        for one in (optimizer, reference, adamw):
            one.step()
    for name, parts in plain_matrices(network).items():
        for part, other in zip(parts, expected[name], strict=True):
            assert torch.equal(part, other), name
    assert torch.equal(network.stem.weight, stem)


def test_the_update_of_each_projection_is_orthogonal(tmp_path):
    """Polar Express, which converges: all singular values of a step are the rate times 0.2 √max(input, output)."""
    network = Projections()
    args = tiny_arguments(
        tmp_path, optim="muon", optim_args="ns_coefficients=polar_express,ns_steps=8", learning_rate=0.5,
        weight_decay=0.0, momentum=0.0,
    )  # fmt: skip
    optimizer = build_optimizer(ModuleEncoder(network, 8), args)
    before = {name: [p.detach().clone() for p in parts] for name, parts in plain_matrices(network).items()}
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, parts in plain_matrices(network).items():
        for part, other in zip(parts, before[name], strict=True):
            values = torch.linalg.svdvals(part.detach() - other) / (0.5 * 0.2 * max(part.shape) ** 0.5)
            # The iteration is in bfloat16.
            assert torch.allclose(values, torch.ones_like(values), atol=0.03), name


def test_what_goes_where(tmp_path):
    """Hidden matrices by Muon; what reads the images, heads, norms, biases, tokens and positions by AdamW."""
    model = SSLModel(SSLConfig(image_size=32, regularizer="none", **VIT))
    args = tiny_arguments(tmp_path, optim="muon", learning_rate=0.5, weight_decay=0.25, momentum=0.9, layer_decay=0.5,
                          optim_args="fallback_lr_scale=0.1")  # fmt: skip
    optimizer = build_optimizer(model, args)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adamw, rates = {}, {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            (muon if "layout" in group else adamw)[names[id(parameter)]] = group
            rates[names[id(parameter)]] = group["lr"]
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = {f"encoder.backbone.blocks.{i}.{layer}.weight" for i in range(2) for layer in layers}
    assert set(muon) == blocks
    assert {name: group["matrices"] for name, group in muon.items() if group["matrices"] > 1} == {
        f"encoder.backbone.blocks.{i}.attn.qkv.weight": 3 for i in range(2)
    }
    assert muon.keys() | adamw.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"encoder.backbone.patch_embed.proj.weight", "encoder.backbone.pos_embed"} < adamw.keys()
    assert any(name.startswith("method.") for name in adamw)
    for name, group in adamw.items():
        assert group["weight_decay"] == (0.25 if model.get_parameter(name).ndim > 1 else 0.0), name
        assert group["fallback_lr_scale"] == 0.1
    assert rates["encoder.backbone.blocks.0.mlp.fc1.weight"] == 0.125
    assert rates["encoder.backbone.blocks.1.mlp.fc1.weight"] == 0.25
    assert optimizer.matrices == len(hidden_matrices(model)) == 12


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet10t", {"conv1.0.weight"}),
        ("test_vit", {"patch_embed.proj.weight"}),
        ("crossvit_tiny_240", {"patch_embed.0.proj.weight", "patch_embed.1.proj.weight"}),
    ],
)
def test_what_reads_the_images(name, expected):
    assert input_layers(load_encoder(name)) == expected


def test_a_network_of_ones_own_and_frozen_weights(tmp_path):
    network = Projections()
    network.qkv.weight.requires_grad_(False)
    encoder = ModuleEncoder(network, 8)
    assert input_layers(encoder) == {"stem.weight"}
    names = {matrix.name.partition("[")[0] for matrix in hidden_matrices(encoder)}
    assert names == {f"{name}.weight" for name in ("grouped", "transposed", "c_attn", "wide")}
    before = network.grouped.weight.detach().clone()
    optimizer = build_optimizer(
        encoder, tiny_arguments(tmp_path, optim="muon", learning_rate=1, weight_decay=0.5, momentum=0)
    )
    optimizer.step()  # frozen for some epochs: no gradient, no step and no decay
    assert torch.equal(network.grouped.weight, before)
    assert not optimizer.state


@pytest.mark.parametrize("optim", ["muon", "adamuon"])
@pytest.mark.parametrize("front", FRONTS)
def test_resuming_changes_nothing(front, optim, tmp_path):
    """On a fused projection; the checkpoint holds what the optimizer keeps."""
    settings = {"optim": optim, "max_steps": 4, "gradient_accumulation_steps": 1, "spectra_steps": 0}
    make = lambda: tiny_model(**VIT | {"regularizer": "so"})  # noqa: E731
    whole = train(front, tmp_path, make(), **settings)
    whole = {name: value.clone() for name, value in whole.state_dict().items()}
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = train(front, tmp_path, make(), resume=True, **settings).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_resumed_run_may_change_the_momentum(tmp_path, capsys):
    settings = {"optim": "muon", "gradient_accumulation_steps": 1, "spectra_steps": 0}
    train("loop", tmp_path, tiny_model(**VIT), max_steps=2, **settings)
    train("loop", tmp_path, tiny_model(**VIT), max_steps=4, resume=True, momentum=0.5, **settings)
    assert "momentum 0.5 (was 0.95)" in capsys.readouterr().out
    saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.bin", weights_only=True)
    assert {group["momentum"] for group in saved["param_groups"] if "momentum" in group} == {0.5}


@pytest.mark.parametrize(
    ("engine", "front", "optim"),
    [("ddp", "trainer", "muon"), ("fsdp2", "loop", "muon"), ("fsdp2", "trainer", "adamuon")],
)
def test_two_processes_are_one(engine, front, optim, two_processes, tmp_path):
    """A shard alone would be orthogonalized to something else: the weights are equal to 1e-9 in float64."""
    settings = {"model": VIT | {"regularizer": "so"}, "optim": optim, "spectra_steps": 0}
    # Biases that a norm removes have gradients of rounding, which AdamW would divide by their size.
    settings |= {"warmup_steps": 0, "weight_decay": 0.1, "adam_epsilon": 1e-2}
    one, _, _ = fit("one", front, tmp_path / "one", **settings)
    (two, _, _), _ = two_processes.run(fit_here, (engine, front, tmp_path / "two"), settings)
    start = tiny_model(**VIT).encoder.state_dict()
    moved = "backbone.blocks.0.attn.qkv.weight"
    assert (one[moved] - start[moved]).abs().max() > 1e-3
    assert_close(two, one)


@pytest.mark.parametrize(
    ("recipe", "given", "expected"),
    [
        (TrainingRecipe("lars", 1.0, 1e-5, views="digits", warmup_start_lr=3e-5), {}, (1e-3, 0.01, 0.0)),
        (TrainingRecipe("sgd", 0.06, 5e-4, views="digits"), {"learning_rate": 0.1}, (0.1, 0.01, 0.0)),
        (TrainingRecipe("adamw_torch", 5e-4, 0.04, views="digits", warmup_start_lr=1e-6), {}, (2.5e-4, 0.04, 1e-6)),
        (TrainingRecipe("lars", 1.0, 1e-5, views="digits"), {"adapt": True}, (5e-5, 0.05, 0.0)),
    ],
)
def test_the_rate_is_on_the_scale_of_adamws(recipe, given, expected, tmp_path):
    args = tiny_arguments(
        tmp_path, optim="muon", per_device_train_batch_size=64, gradient_accumulation_steps=2, **given
    ).with_recipe(recipe)
    assert (args.learning_rate, args.weight_decay, args.warmup_start_lr) == pytest.approx(expected)
    assert args.momentum == 0.95


def test_a_run_says_and_records_what_ran(tmp_path, capsys):
    argv = ["pretrain", "--dataset", "digits", "--split", "train[:64]", "--backbone", "test_vit", "--max_steps", "2"]
    argv += [
        "--optim",
        "adamuon",
        "--per_device_train_batch_size",
        "32",
        "--use_cpu",
        "--output_dir",
        str(tmp_path / "a"),
    ]
    main(argv)
    assert (
        "optim    AdaMuon on 24 hidden weights of the encoder (36 matrices), AdamW on the 60 other parameters; "
        "peak rate 0.001" in capsys.readouterr().out
    )
    card = (tmp_path / "a" / "encoder" / "README.md").read_text(encoding="utf-8")
    for line in ("optimizer | adamuon", "matrices whose updates are orthogonalized | 36", "momentum | 0.95"):
        assert line in card, line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optim muon --optim_args ns_steps=0", "optim_args has ns_steps=0: for muon it must be a whole number of 1"),
        ("--optim muon --optim_args beta2=0.9", "optim_args has no 'beta2' for muon"),
        ("--optim adamuon --optim_args beta2=1", "optim_args has beta2=1: for adamuon it must be a number in [0, 1)"),
        (
            "--optim muon --optim_args ns_coefficients=quartic",
            "optim_args has ns_coefficients=quartic: for muon it must",
        ),
        ("--optim muon --optim_args nesterov=1", "optim_args has nesterov=1: for muon it must be true or false"),
        ("--optim moun", "optim is 'moun': did you mean 'muon'"),
        ("--optim muon --backbone linear", "has no trained matrix but the one that reads the images"),
    ],
)
def test_what_is_refused(options, message, tmp_path, capsys):
    folder = tmp_path / "run"
    argv = ["pretrain", "--dataset", "digits", "--use_cpu", "--max_steps", "1", "--output_dir", str(folder)]
    with pytest.raises(SystemExit) as stopped:
        main([*argv, *options.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_deepspeed_is_refused(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    prepare = TrainingArguments.__post_init__

    def with_deepspeed(self):
        prepare(self)
        self.deepspeed_plugin = object()

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_deepspeed)
    with pytest.raises(ValueError, match="optim muon does not work with DeepSpeed, which flattens the matrices"):
        tiny_arguments(tmp_path, optim="muon")
