"""What a flag or keyword argument does to the settings of a file."""

import pytest

from hf_orthossl.options import overridden

FILE = {
    "backbone": "resnet18_cifar",
    "backbone_config": {"zero_init_last": False},
    "method": "byol",
    "method_config": {"hidden_dim": 4096, "momentum": 0.99},
    "regularizer": "so",
    "gamma": 1e-6,
    "warmup_epochs": 10.0,
}


@pytest.mark.parametrize(
    ("given", "changed", "gone"),
    [
        ({}, {}, set()),
        ({"gamma": 1e-5}, {"gamma": 1e-5}, set()),
        # The same one keeps its settings, and a mapping is extended.
        ({"backbone": "resnet18_cifar"}, {}, set()),
        (
            {"method": "byol", "method_config": {"momentum": 0.9}},
            {"method_config": {"hidden_dim": 4096, "momentum": 0.9}},
            set(),
        ),
        # Another one does not take over what was meant for the first.
        ({"backbone": "resnet18"}, {"backbone": "resnet18"}, {"backbone_config"}),
        (
            {"method": "simclr", "method_config": {"temperature": 0.2}},
            {"method": "simclr", "method_config": {"temperature": 0.2}},
            set(),
        ),
        ({"regularizer": "srip"}, {"regularizer": "srip"}, {"gamma"}),
        # Weights to start from name the backbone too.
        ({"pretrained": "a/b"}, {"pretrained": "a/b"}, {"backbone", "backbone_config"}),
        # Two forms of one setting.
        ({"warmup_steps": 0.0}, {"warmup_steps": 0.0}, {"warmup_epochs"}),
    ],
)
def test_what_is_given_stands_before_the_file(given, changed, gone):
    assert overridden(FILE, given) == {name: value for name, value in (FILE | changed).items() if name not in gone}


def test_another_backbone_stands_instead_of_the_weights_in_a_file():
    file = {"pretrained": "a/b", "backbone_config": {"drop_path_rate": 0.1}}
    assert overridden(file, {"backbone": "resnet18"}) == {"backbone": "resnet18"}
    assert overridden(file, {"pretrained": "a/b"}) == file
