"""`--torch_compile` and `--bf16` reach the encoder in both fronts."""

import pytest
import torch
from torch._dynamo.backends import registry

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.methods import Progress
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history


def train_with_trainer(model, dataset, args):
    OrthoSSLTrainer(model=model, args=args, train_dataset=dataset).train()
    return model


FRONTS = {"trainer": train_with_trainer, "loop": pretrain_loop}


def trained(train, folder, **settings):
    torch.manual_seed(0)
    model = SSLModel(
        SSLConfig(
            backbone="resnet10t",
            image_size=32,
            backbone_config={"channels": [8, 8, 16, 16]},
            method="byol",
            method_config={"hidden_dim": 16, "output_dim": 8},
            regularizer="srip",
            gamma=1e-3,
        )
    )
    args = OrthoSSLTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=4,
        logging_steps=1,
        spectra_steps=0,
        save_steps=2,
        views="digits",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **settings,
    )
    return train(model, "digits", args)


def losses(folder):
    lines = read_history(folder)
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("front", FRONTS)
def test_compiled_once_and_to_the_same_losses(front, tmp_path, monkeypatch):
    torch._dynamo.reset()
    convolutions = []

    def backend(graph, inputs):
        convolutions.append(sum(node.target is torch.conv2d for node in graph.graph.nodes))
        return graph

    registry.lookup_backend("eager")
    monkeypatch.setitem(registry._COMPILER_FNS, "eager", backend)
    model = trained(FRONTS[front], tmp_path / "compiled", torch_compile=True, torch_compile_backend="eager")
    # Online and target encoder, two views each, compiled at the first step and at no other.
    layers = sum(isinstance(module, torch.nn.Conv2d) for module in model.encoder.modules())
    assert sum(convolutions) == 4 * layers
    plain = trained(FRONTS[front], tmp_path / "plain")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert list(model.state_dict()) == list(plain.state_dict())
    resumed = trained(
        FRONTS[front], tmp_path / "compiled", torch_compile=True, torch_compile_backend="eager", resume=True
    )
    torch.testing.assert_close(resumed.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("method", "settings"), [("mae", {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}), ("simmim", {})]
)
def test_the_masks_of_each_step_reach_a_compiled_model_which_is_compiled_once(method, settings):
    graphs, losses = [], {}
    backbone = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = SSLModel(SSLConfig("vit_tiny_patch16_224", 32, backbone, method, settings))
        called = torch.compile(model, backend=backend) if compiled else model
        images = torch.randn(4, 3, 32, 32)
        losses[compiled] = []
        for step in range(3):
            model.begin_step(Progress(step, 3, 3, seed=1))
            losses[compiled].append(called([images]).loss.item())
            if compiled and step == 0:
                first = len(graphs)
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert len({*losses[True]}) == 3
    assert len(graphs) == first > 0


@pytest.mark.parametrize("front", FRONTS)
def test_bf16_reaches_the_encoder(front, tmp_path, monkeypatch):
    seen, convolution = set(), torch.nn.Conv2d._conv_forward

    def watched(*args):
        output = convolution(*args)
        seen.add(output.dtype)
        return output

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", watched)
    model = trained(FRONTS[front], tmp_path, bf16=True)
    assert torch.bfloat16 in seen
    assert {p.dtype for p in model.parameters()} == {torch.float32}
