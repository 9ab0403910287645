"""A method of the user's own is found by its name; a bad registration is refused in one line that says what to do."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from hf_orthossl import SSLConfig, SSLMethod, SSLModel, register_method
from hf_orthossl.methods import METHODS, THEORY_LOSSES, MethodConfig, SimCLR, SimCLRConfig, get_method, hyper


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Restore the registry after each test."""
    before = dict(METHODS), dict(THEORY_LOSSES)
    yield
    for known, saved in zip((METHODS, THEORY_LOSSES), before, strict=True):
        known.clear()
        known.update(saved)


@dataclass
class AlignmentConfig(MethodConfig):
    weight: float = hyper(1.0, "weight of the squared distance", above=0)


def alignment(**attributes):
    def forward(self, encoder, views):
        first, second = both = [encoder(view) for view in views[:2]]
        return self.output(self.config.weight * (first - second).square().sum(dim=1).mean(), both, both)

    base = attributes.pop("base", SSLMethod[AlignmentConfig])
    body = {"__module__": __name__, "__orig_bases__": (base,), "forward": forward, **attributes}
    return type("Alignment", (getattr(base, "__origin__", base),), body)


def test_a_registered_method_trains_and_survives_its_checkpoint(tmp_path):
    register_method(alignment(name="alignment"))
    config = SSLConfig(
        backbone="resnet10t", image_size=32, method="alignment", method_config={"weight": 0.5}, regularizer="so"
    )
    model = SSLModel(config).train()
    views = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    first, second = (model.encoder(view) for view in views)
    torch.testing.assert_close(
        model(views).parts["ssl"], 0.5 * (first - second).square().sum(dim=1).mean().detach(), rtol=1e-4, atol=1e-5
    )
    model(views).loss.backward()
    model.before_optimizer_step()
    model.end_step()
    model.save_pretrained(tmp_path)
    again = SSLModel.from_pretrained(tmp_path)
    assert type(again.method) is type(model.method)
    assert again.method.config == AlignmentConfig(weight=0.5)
    assert again.method.title == "alignment"


def test_the_config_class_is_the_one_in_brackets_or_the_one_that_is_set():
    assert alignment(name="alignment").config_class is AlignmentConfig
    assert alignment(name="alignment", base=SSLMethod, config_class=AlignmentConfig).config_class is AlignmentConfig
    assert alignment(name="alignment", base=SimCLR).config_class is SimCLRConfig
    assert all(issubclass(method.config_class, MethodConfig) for method in (METHODS | THEORY_LOSSES).values())


def test_a_method_outside_of_the_package_needs_nothing_but_the_public_names():
    code = """
from dataclasses import dataclass
from hf_orthossl import SSLConfig, SSLMethod, register_method
from hf_orthossl.methods import MethodConfig, hyper

@dataclass
class MyConfig(MethodConfig):
    weight: float = hyper(1.0, "weight", above=0)

@register_method
class Mine(SSLMethod[MyConfig]):
    name = "mine"

print(SSLConfig(method="mine").method_config)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "{'weight': 1.0}"


def test_the_same_class_may_be_registered_again():
    register_method(alignment(name="alignment"))
    newer = register_method(alignment(name="alignment"))
    assert get_method("alignment") is newer


def test_a_name_that_differs_by_a_letter_is_suggested():
    register_method(alignment(name="alignment"))
    with pytest.raises(ValueError, match=r"method 'alignmnt' is unknown: did you mean 'alignment'\?"):
        SSLConfig(method="alignmnt")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, 'method Alignment has no name: set one in the class, as in name = "alignment"'),
        ({"name": ""}, 'method Alignment has no name: set one in the class, as in name = "alignment"'),
        ({"base": SimCLR}, 'method Alignment has no name: set one in the class, as in name = "alignment"'),
        (
            {"name": "simclr"},
            "method Alignment: the name 'simclr' is taken by hf_orthossl.methods.simclr.SimCLR: choose another name",
        ),
        (
            {"name": "alignment", "base": SSLMethod},
            "method Alignment has no class of hyper-parameters: write class Alignment(SSLMethod[MyConfig]), where "
            "MyConfig is a dataclass derived from MethodConfig",
        ),
        (
            {"name": "alignment", "config_class": dict},
            "method Alignment has no class of hyper-parameters: write class Alignment(SSLMethod[MyConfig]), where "
            "MyConfig is a dataclass derived from MethodConfig",
        ),
    ],
)
def test_a_bad_registration_names_class_and_remedy(attributes, message):
    before = dict(METHODS)
    with pytest.raises(ValueError, match=r"^method Alignment") as error:
        register_method(alignment(**attributes))
    assert str(error.value) == message
    assert before == METHODS


@pytest.mark.parametrize("thing", [torch.nn.Linear, AlignmentConfig(), "simclr"])
def test_only_methods_can_be_registered(thing):
    with pytest.raises(TypeError, match="cannot be registered as a method: derive a class from"):
        register_method(thing)
