import dataclasses

import pytest

from hf_orthossl.data import RECIPES, Recipe, ViewSpec, get_recipe


def test_every_recipe_survives_the_way_through_yaml():
    yaml = pytest.importorskip("yaml")
    for name, recipe in RECIPES.items():
        assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe
        assert recipe.source
        # Masked methods have one view.
        assert recipe.num_views >= (1 if name in ("mae", "simmim", "ijepa", "digits-one") else 2)


def test_published_numbers():
    first, second = get_recipe("cifar-asym").views
    assert (first.brightness, first.contrast, first.saturation, first.hue, first.jitter) == (0.4, 0.4, 0.2, 0.1, 0.8)
    assert (first.solarize, second.solarize, first.blur, second.blur) == (0.0, 0.2, 0.0, 0.0)
    assert dataclasses.replace(second, solarize=0.0) == first
    first, second = get_recipe("imagenet").views
    assert (first.blur, second.blur, first.solarize, second.solarize) == (1.0, 0.1, 0.0, 0.2)
    assert all(view.flip == 0 and view.hue == 0 for view in get_recipe("digits").views)
    assert get_recipe("multicrop").sizes(224) == (224, 224, 96, 96, 96, 96, 96, 96)
    assert get_recipe("cifar-multicrop").sizes(32) == (32, 32, 16, 16, 16, 16, 16, 16)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cifar-asym'"):
        get_recipe("cifar-asim")
    with pytest.raises(ValueError, match="did you mean 'solarize'"):
        get_recipe("digits").with_(solarise=0.1)
    with pytest.raises(ValueError, match="did you mean 'views'"):
        Recipe.from_dict({"view": []})
    with pytest.raises(ValueError, match="did you mean 'blur_sigma'"):
        Recipe.from_dict({"views": [{"blur_sigm": [0.1, 1]}]})


def test_from_dict_starts_from_a_base_and_repeats():
    recipe = Recipe.from_dict(
        {"name": "mine", "views": [{"base": "cifar-asym", "repeat": 2, "blur": 0.3}, {"size": 8, "scale": [0.1, 0.2]}]}
    )
    asym = get_recipe("cifar-asym").views[0]
    assert recipe.views == (*[dataclasses.replace(asym, blur=0.3)] * 2, ViewSpec(size=8, scale=(0.1, 0.2)))


def test_with_changes_all_views_or_one():
    recipe = get_recipe("cifar-asym")
    assert [view.hue for view in recipe.with_(hue=0.0).views] == [0.0, 0.0]
    assert [view.flip for view in recipe.with_(view=1, flip=0.0).views] == [0.5, 0.0]
    assert recipe.views[1].flip == 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", (0.5, 0.2)),
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 1.5)),
        ("scale", 0.5),
        ("ratio", (1.0, float("inf"))),
        ("flip", 1.1),
        ("jitter", -0.1),
        ("hue", 0.6),
        ("brightness", -1.0),
        ("brightness", float("nan")),
        ("blur", "half"),
        ("blur_sigma", (0.0, 1.0)),
        ("size", 0),
        ("size", 1.5),
        ("interpolation", "nearest"),
        ("solarize_threshold", 128),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        ViewSpec(**{field: value})


def test_bad_mappings_are_refused():
    with pytest.raises(ValueError, match="views '5' is unknown"):
        Recipe.from_dict({"views": [{"base": 5}]})
    for bad in ({}, {"views": []}, {"views": {"flip": 1}}, {"views": [3]}, {"views": [{"repeat": 0}]}):
        with pytest.raises(ValueError, match="views"):
            Recipe.from_dict(bad)
