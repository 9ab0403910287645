"""Penalties from a user's own code: everywhere a penalty is named, on one process and on several."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from user_penalties import LogDeterminant, RandomDirections, register, train

from hf_orthossl import OrthogonalityCallback, OrthogonalityRegularizer, Penalty, SSLConfig, SSLModel, register_penalty
from hf_orthossl.methods import Progress
from hf_orthossl.regularization import PENALTIES, get_penalty


@pytest.fixture(autouse=True)
def _registered():
    register()
    yield
    for kind in (LogDeterminant, RandomDirections):
        PENALTIES.pop(kind.name)


@pytest.mark.parametrize("kind", ["test_logdet", "test_directions"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_several_processes_train_as_one(two_processes, kind, engine):
    alone = train(kind)
    for weights in two_processes.run(train, kind, engine):
        for ours, expected in zip(weights, alone, strict=True):
            assert (ours - expected).norm() <= 1e-6 * expected.norm().clamp(min=1e-3)


def test_options_of_a_users_penalty():
    layer = nn.Linear(5, 3).double()
    W = layer.weight.detach().T
    penalty = OrthogonalityRegularizer(layer, "test_directions", count=200, power=4)
    v = torch.randn(200 * 3, generator=torch.Generator().manual_seed(2)).view(200, 3).double()
    expected = torch.stack([((W.T @ W @ x).norm() - x.norm()) ** 4 for x in v]).mean()
    torch.testing.assert_close(penalty(torch.Generator().manual_seed(2)), expected)
    with pytest.raises(ValueError, match="penalty 'test_directions' has no option 'powr': did you mean 'power'"):
        OrthogonalityRegularizer(layer, "test_directions", powr=3)


def test_config_and_model_take_it_with_its_own_gamma():
    config = SSLConfig("resnet10t", method="simclr", regularizer="test_directions", regularizer_config={"count": 5})
    model = SSLModel(config)
    model.begin_step(Progress(step=0, max_steps=1, steps_per_epoch=1))
    parts = model([torch.randn(2, 3, 32, 32) for _ in range(2)]).parts
    torch.testing.assert_close(parts["orthogonality"], config.gamma * model.penalty().detach())
    assert model.regularizer.penalty.num_vectors == 5


def test_callback_takes_it(tmp_path):
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            return {"loss": self.layer(x).sum() * 0}

    model = Classifier()
    before = OrthogonalityRegularizer(model, "test_logdet")().item()
    args = TrainingArguments(
        str(tmp_path), max_steps=40, learning_rate=0.05, use_cpu=True, report_to=[], save_strategy="no"
    )
    callback = OrthogonalityCallback(kind="test_logdet", gamma=1.0)
    Trainer(model, args, train_dataset=[{"x": torch.ones(6)}] * 8, callbacks=[callback]).train()
    assert OrthogonalityRegularizer(model, "test_logdet")().item() < 0.5 * before


def test_get_penalty():
    assert get_penalty("test_logdet") is LogDeterminant
    assert PENALTIES["test_directions"] is RandomDirections
    with pytest.raises(ValueError, match="penalty 'logdet' is unknown: did you mean 'test_logdet'"):
        get_penalty("logdet")


def made(**attributes):
    complete = {"name": "test_new", "title": "a new one", "default_gamma": 1e-3, "value": LogDeterminant.value}
    return type("New", (Penalty,), complete | attributes)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"name": ""}, "penalty New has no name: set name"),
        ({"name": "none"}, "penalty New has no name: set name"),
        ({"title": ""}, "penalty New has no title: set title"),
        ({"value": Penalty.value}, "penalty New has no value: define value"),
        ({"default_gamma": 0.0}, "penalty New has no default γ: set default_gamma"),
        ({"name": "srip"}, r"penalty New: the name 'srip' is taken by hf_orthossl.*SRIP: choose another"),
        ({"__init__": lambda self, rank: None}, "penalty New: its option 'rank' has no default"),
    ],
)
def test_a_class_that_cannot_be_registered(attributes, expected):
    with pytest.raises(ValueError, match=expected):
        register_penalty(made(**attributes))
    assert "test_new" not in PENALTIES


def test_what_is_no_penalty_cannot_be_registered():
    with pytest.raises(TypeError, match=r"cannot be registered as a penalty: derive a class from hf_orthossl.Penalty"):
        register_penalty(nn.Linear)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lambda self, W, vectors=None: W.square().sum(), r"penalty New: value returned shape \(\) for W of shape"),
        (lambda self, W, vectors=None: W.square(), r"penalty New: value returned shape \(2, 3, 2\)"),
        (lambda self, W, vectors=None: 1.0, "penalty New: value returned float"),
        (lambda self, W, vectors=None: W.detach().square().sum((-2, -1)), "penalty New: value has no gradient"),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_training(monkeypatch, value, expected):
    monkeypatch.setitem(PENALTIES, "test_new", made(value=value))
    with pytest.raises(ValueError, match=expected):
        OrthogonalityRegularizer(nn.Linear(3, 3), "test_new")


def test_a_class_defined_again_replaces_itself():
    """A notebook's cell that is run twice."""

    def define(gamma):
        return made(name="test_again", default_gamma=gamma)

    try:
        register_penalty(define(1.0))
        register_penalty(define(2.0))
        assert PENALTIES["test_again"].default_gamma == 2.0
    finally:
        PENALTIES.pop("test_again", None)
