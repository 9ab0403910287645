"""Small models in training, for tests of what watches them."""

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.training.callbacks.reporting import read_history

PREFIX = "spectra/"


class Classifier(nn.Module):
    """A model of the kind a plain Trainer takes, with dropout, batch statistics and a spectral norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3)),
        )
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(12, 2))

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.stages(pixel_values))
        return logits if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def fit(folder, *callbacks, model=None, attach=False, **more):
    """Trains a plain Trainer; `attach` puts the callbacks before the integrations."""
    data = [{"pixel_values": image, "labels": index % 2} for index, image in enumerate(IMAGES)]
    settings = {"max_steps": 8, "logging_steps": 1, "learning_rate": 0.05, "optim": "sgd"} | more
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True, save_strategy="no", **settings
    )
    trainer = Trainer(model or Classifier(), args, train_dataset=data, callbacks=None if attach else list(callbacks))
    for callback in callbacks if attach else ():
        callback.attach(trainer)
    trainer.train()
    return trainer


def measured(entries):
    return [entry["step"] for entry in entries if any(name.startswith(PREFIX) for name in entry)]


def history(folder):
    return read_history(folder)


def make_model():
    torch.manual_seed(0)
    config = SSLConfig("resnet10t", image_size=32, backbone_config={"channels": [8, 8, 16, 16]}, regularizer="srip")
    return SSLModel(config)
