"""OrthogonalityCallback on a plain Trainer, against a Trainer whose loss has the penalty written into it."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_orthossl import OrthogonalityCallback, OrthogonalityRegularizer

GAMMA = 0.05


class Regression(nn.Module):
    """A small model of the kind a plain Trainer takes; its loss carries the penalty if told so."""

    def __init__(self, penalize=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        self.penalize = penalize
        self.calls = 0

    def forward(self, x, labels):
        loss = (self.body(x).squeeze(1) - labels).square().mean()
        if self.penalize:
            loss = loss + GAMMA * OrthogonalityRegularizer(self.body, "so")()
        return {"loss": loss, "logits": loss.detach()[None]}


def fit(model, folder, callbacks=(), **more):
    generator = torch.Generator().manual_seed(1)
    data = [
        {"x": torch.randn(6, generator=generator), "labels": torch.randn((), generator=generator)} for _ in range(32)
    ]
    settings = {"max_steps": 4, "learning_rate": 0.05, "optim": "sgd", "logging_steps": 1, "max_grad_norm": 0.5} | more
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True, save_strategy="no", **settings
    )
    trainer = Trainer(model, args, train_dataset=data, callbacks=list(callbacks))
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulation", [1, 3])
def test_same_training_as_a_penalty_in_the_loss(accumulation, tmp_path):
    ours, reference = Regression(), Regression(penalize=True)
    callback = OrthogonalityCallback(kind="so", gamma=GAMMA)
    trainer = fit(ours, tmp_path / "a", [callback], gradient_accumulation_steps=accumulation)
    fit(reference, tmp_path / "b", gradient_accumulation_steps=accumulation)
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    logged = [entry["orthogonality"] for entry in trainer.state.log_history if "orthogonality" in entry]
    assert len(logged) == 4
    assert logged[0] == pytest.approx(GAMMA * float(OrthogonalityRegularizer(Regression(), "so")()), rel=1e-5)


def test_part_of_a_model(tmp_path):
    model = Regression()
    callback = OrthogonalityCallback(kind="srip", gamma=1.0, module=model.body[0])
    fit(model, tmp_path, [callback], max_steps=1)
    assert callback.regularizer.names == ["weight"]


def test_used_again_for_another_model(tmp_path):
    """As `hyperparameter_search` and cross-validation do."""
    callback, models = OrthogonalityCallback(gamma=GAMMA), (Regression(), Regression())
    for number, model in enumerate(models):
        fit(model, tmp_path / str(number), [callback])
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b)


def test_negative_gamma():
    with pytest.raises(ValueError, match="gamma is -1"):
        OrthogonalityCallback(gamma=-1)
