"""Encoders as a run writes them, for tests of publishing."""

import torch

from hf_orthossl import SSLConfig, SSLModel, load_encoder
from hf_orthossl.data import load_source
from hf_orthossl.evaluation import Result
from hf_orthossl.hub import write_encoder_folder

REPO = "tester/encoder"
SECRET = "hf_" + "aB3" * 12
RESULT = Result("knn", "uoft-cs/cifar10", "test", "top1", 0.875, {"step": "end", "k": 20, "temperature": 0.07})


def written(folder, backbone, **config):
    torch.manual_seed(0)
    encoder = load_encoder(backbone, image_size=32, **config).eval()
    settings = SSLConfig(backbone, image_size=32, backbone_config=config, method="byol", regularizer="so")
    model = SSLModel(settings, encoder)
    source = load_source("digits", split="train[:60]")
    return encoder, write_encoder_folder(model, folder, source=source, results=[RESULT])
