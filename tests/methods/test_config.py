"""Hyper-parameters: every bad one is refused in one line that names it."""

import dataclasses

import pytest
from small_models import encoder_for, required

from hf_orthossl.configuration import SSLConfig
from hf_orthossl.methods import METHODS, build_method, get_method
from hf_orthossl.options import parse_assignments


@pytest.mark.parametrize("name", METHODS)
def test_every_field_has_help_and_its_default_is_valid(name):
    config = METHODS[name].config_class()
    for field in dataclasses.fields(config):
        assert field.metadata["help"]
        assert getattr(config, field.name) == field.default


@pytest.mark.parametrize(
    ("method", "values", "said"),
    [
        ("simclr", {"temperature": 0}, "temperature is 0.0: it must be above 0"),
        ("simclr", {"temperature": -0.5}, "must be above 0"),
        ("simclr", {"temperature": float("nan")}, "must be above 0"),
        ("byol", {"momentum": 1.5}, "momentum is 1.5: it must be at most 1"),
        ("byol", {"momentum": -0.1}, "at least 0"),
        ("swav", {"prototypes": 1}, "prototypes is 1: it must be at least 2"),
        ("dino", {"prototypes": 1}, "at least 2"),
        ("dino", {"prototypes": "many"}, "must be of type int"),
        ("vicreg", {"projector": "maybe"}, "must be of type bool"),
        ("simclr", {"temprature": 0.5}, "did you mean 'temperature'?"),
    ],
)
def test_bad_values(method, values, said, tiny_encoder):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        build_method(method, tiny_encoder, values)


def test_unknown_method_suggests_the_nearest():
    with pytest.raises(ValueError, match="'byoll' is unknown: did you mean 'byol'"):
        get_method("byoll")


def test_numbers_as_yaml_and_the_command_line_write_them(tiny_encoder):
    values = parse_assignments(["temperature=1e-1", "output_dim=16"])
    method = build_method("simclr", tiny_encoder, values)
    assert method.config.temperature == 0.1
    assert method.config.output_dim == 16
    with pytest.raises(ValueError, match="key=value"):
        parse_assignments(["temperature"])


@pytest.mark.parametrize("name", METHODS)
def test_too_few_views(name):
    small = {"queue_size": 8} if METHODS[name].has_queue else {}
    method = build_method(name, encoder_for(name), small | required(name))
    needed = method.views_needed
    method.check_batch(8, views=needed)
    with pytest.raises(ValueError, match=f"needs {needed}"):
        method.check_batch(8, views=needed - 1)


def test_queue_must_be_a_multiple_of_the_batch(tiny_encoder):
    method = build_method("nnclr", tiny_encoder, {"queue_size": 100})
    with pytest.raises(ValueError, match=r"queue_size 100 is not a multiple of the 32 images of a step: .*=96"):
        method.check_batch(32, views=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gamma": -1e-6}, "gamma is -1e-06"),
        ({"regularizer": "sriip"}, "did you mean 'srip'"),
        ({"method": "simclr", "whitening": 1e-3}, "simclr has none"),
        ({"whitening": -1.0}, "whitening is -1.0"),
        ({"regularizer": "srip", "regularizer_config": {"iteration": 4}}, "did you mean 'iterations'"),
        ({"regularizer": "srip", "regularizer_config": {"persistent": True}}, "has no option 'persistent'"),
        ({"embedding_regularizer": "sigre"}, "embedding_regularizer 'sigre' is unknown: did you mean 'sigreg'"),
        ({"embedding_weight": 0.1}, "embedding_weight is 0.1, but there is no embedding_regularizer: pass one of "),
        ({"embedding_regularizer": "none", "embedding_weight": 0.1}, "embedding_weight is 0.1, but there is no"),
        ({"embedding_config": {"slices": 8}}, "embedding_config is {'slices': 8}, but there is no"),
        ({"embedding_layer": "representation"}, "embedding_layer is representation, but there is no"),
        ({"embedding_regularizer": "koleo", "embedding_layer": "encoder"}, "embedding_layer is 'encoder': choose from"),
        ({"embedding_regularizer": "koleo", "embedding_weight": -1.0}, "embedding_weight is -1.0"),
        ({"embedding_regularizer": "koleo", "embedding_weight": float("nan")}, "embedding_weight is nan"),
        ({"embedding_regularizer": "sigreg", "embedding_config": {"slice": 8}}, "'slice' in embedding_config: did you"),
        ({"embedding_regularizer": "sigreg", "embedding_config": {"slices": 0}}, "slices is 0: it must be at least 1"),
        ({"embedding_regularizer": "sigreg", "embedding_config": {"slices": "x"}}, "slices is 'x': it must be of type"),
    ],
)
def test_model_config(settings, said):
    with pytest.raises(ValueError, match=said):
        SSLConfig(**settings)


def test_a_recipe_without_its_embedding_regularizer():
    """`--embedding_regularizer none` beside a recipe that acts on the representation."""
    config = SSLConfig(embedding_regularizer="none", embedding_layer="representation")
    assert config.embedding_regularizer is None


def test_an_embedding_regularizer_is_stored_with_its_defaults_and_read_again():
    config = SSLConfig(embedding_regularizer="sigreg", embedding_config={"slices": 8})
    assert config.embedding_weight == 0.05
    assert config.embedding_config == {"slices": 8, "points": 17, "t_max": 5.0}
    for one in (config, SSLConfig()):
        assert SSLConfig.from_dict(one.to_dict()).to_dict() == one.to_dict()


@pytest.mark.parametrize("name", ["lejepa", "visreg"])
def test_more_global_views_than_there_are(name, tiny_encoder):
    method = build_method(name, tiny_encoder, {"global_views": 5})
    method.check_batch(8, views=5)
    with pytest.raises(ValueError, match="global_views is 5, but the recipe has 4 views per image: pass --method_conf"):
        method.check_batch(8, views=4)
