import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from hf_orthossl.data import RECIPES, Recipe, Views, ViewSpec, get_recipe
from hf_orthossl.data.augment import colour, crop, filters

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
PLAIN = ViewSpec(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0, jitter=0, grayscale=0)
INTERPOLATIONS = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pictures(batch: int, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth colourful images with no symmetry, uint8."""
    coarse = uniform(batch, 3, 6, 6, seed=seed)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return (smooth * 255).round().to(torch.uint8)


def unnormalized(views: Views, view: torch.Tensor) -> torch.Tensor:
    return view * views.std + views.mean


def only(**changes) -> Views:
    return Views(Recipe("test", (PLAIN,)).with_(**changes), 32, (0.0,) * 3, (1.0,) * 3)


# --- against torchvision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 50), width=st.integers(1, 50), size=st.integers(1, 40), seed=st.integers(0, 999))
def test_crops_are_torchvisions_antialiased_ones(interpolation, height, width, size, seed):
    images = uniform(3, 3, height, width, seed=seed)
    boxes = crop.crop_boxes(uniform(3, crop.DRAWS, seed=seed), height, width, ViewSpec())
    taps = crop.resize_taps(boxes, images.shape[-2:], size, interpolation, images.device)
    crops = crop.resized_crops(images, boxes, *taps)
    for image, box, resized in zip(images, boxes.tolist(), crops, strict=True):
        expected = tv.resized_crop(
            image.double(), *box, [size, size], interpolation=INTERPOLATIONS[interpolation], antialias=True
        )
        torch.testing.assert_close(resized.double(), expected, atol=2e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 999))
def test_crop_boxes_lie_inside(height, width, seed):
    boxes = crop.crop_boxes(uniform(64, crop.DRAWS, seed=seed), height, width, ViewSpec())
    top, left, box_height, box_width = boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()


# The last one is so narrow that no try fits and the fallback is taken.
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 200), (300, 20)])
def test_crop_boxes_are_distributed_as_torchvisions(height, width):
    torch.manual_seed(0)
    image, spec = torch.empty(3, height, width), ViewSpec()
    theirs = [RandomResizedCrop.get_params(image, list(spec.scale), list(spec.ratio)) for _ in range(1500)]
    ours = crop.crop_boxes(uniform(1500, crop.DRAWS), height, width, spec).tolist()
    for mine, reference in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        assert stats.ks_2samp(mine, reference).pvalue > 1e-3


def test_hue_is_torchvisions():
    images = uniform(64, 3, 8, 8)
    images[0] = 0.0
    images[1] = 0.5
    images[2, 1:] = 0.0
    shift = uniform(64, seed=1) - 0.5
    turned = colour.turn_hue(images.clone(), shift)
    for image, amount, result in zip(images, shift.tolist(), turned, strict=True):
        torch.testing.assert_close(result, tv.adjust_hue(image, amount), atol=1e-5, rtol=0)


def test_blur_is_torchvisions_and_close_to_the_untruncated_gaussian():
    images, sigma = uniform(6, 3, 24, 20), torch.tensor([0.1, 0.4, 0.8, 1.2, 1.6, 2.0])
    blurred = filters.blur(images, sigma, 2.0)
    for image, width, result in zip(images, sigma.tolist(), blurred, strict=True):
        torch.testing.assert_close(result, tv.gaussian_blur(image, [13, 13], [width, width]), atol=1e-5, rtol=0)
        exact = ndimage.gaussian_filter(image.double().numpy(), (0, width, width), mode="mirror", truncate=8)
        assert np.abs(result.numpy() - exact).max() < 2 / 255


def test_blur_of_a_tiny_view_runs():
    assert filters.blur(uniform(2, 3, 4, 4), torch.tensor([2.0, 0.1]), 2.0).shape == (2, 3, 4, 4)


def test_every_image_gets_its_own_jitter_in_its_own_order_as_torchvision_applies_it():
    images, draws = uniform(48, 3, 8, 8), uniform(48, colour.DRAWS, seed=1)
    spec = ViewSpec(jitter=0.7, saturation=0.3, hue=0.2, grayscale=0.3, solarize=0.3, solarize_threshold=0.6)
    results = images.clone()
    for step in colour.photometric_steps(draws, spec, images.device):
        results = step(results)
    orders = set()
    for image, draw, result in zip(images, draws, results, strict=True):
        brightness, contrast, saturation = (
            1 + strength * (2 * amount - 1)
            for strength, amount in zip((0.4, 0.4, 0.3), draw[1:4].tolist(), strict=True)
        )
        hue = 0.2 * (2 * draw[4].item() - 1)
        operations = [
            lambda x, factor=brightness: tv.adjust_brightness(x, factor),
            lambda x, factor=contrast: tv.adjust_contrast(x, factor),
            lambda x, factor=saturation: tv.adjust_saturation(x, factor),
            lambda x, factor=hue: tv.adjust_hue(x, factor),
        ]
        order = tuple(draw[5:9].argsort().tolist())
        if draw[0] < 0.7:
            orders.add(order)
            for number in order:
                image = operations[number](image)
        if draw[9] < 0.3:
            image = tv.rgb_to_grayscale(image, 3)
        if draw[11] < 0.3:
            image = tv.solarize(image, 0.6)
        # torchvision rounds its luma weights to 4 digits; a pixel that lands on the threshold may go either way.
        off = (result - image).abs() > 2e-3
        assert off.float().mean() < 0.01
    assert len(orders) > 10


def test_solarize_inverts_what_would_be_128_and_more_in_8_bit():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    views = Views(Recipe("test", (ViewSpec(**{**PLAIN.__dict__, "solarize": 1.0}),)), 16, (0.0,) * 3, (1.0,) * 3)
    (view,) = views(ramp, 0)
    torch.testing.assert_close(view[0] * 255, tv.solarize(ramp[0], 128).float(), atol=1e-3, rtol=0)


def test_normalization_is_torchvisions():
    images = pictures(4)
    (view,) = Views(Recipe("test", (PLAIN,)), 32, MEAN, STD)(images, 0)
    torch.testing.assert_close(view, tv.normalize(images.float() / 255, list(MEAN), list(STD)), atol=2e-5, rtol=0)


# --- randomness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RECIPES))
def test_same_seed_same_views_other_seed_other_views(name):
    batch, views = pictures(6, 48, 40), Views(name, 32, MEAN, STD)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first, again, other = views(batch, 5), views(batch, 5), views(batch, 6)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert all(not torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert [tuple(view.shape) for view in first] == [(6, 3, s, s) for s in get_recipe(name).sizes(32)]
    for view in first:
        assert view.dtype == torch.float32
        restored = unnormalized(views, view)
        assert restored.min() > -1e-5
        assert restored.max() < 1 + 1e-5


@pytest.mark.parametrize("name", list(RECIPES))
def test_images_and_views_have_parameters_of_their_own(name):
    batch = pictures(1).expand(4, -1, -1, -1)
    views = Views(name, 32, MEAN, STD)(batch, 0)
    for view in views:
        assert len({image.numpy().tobytes() for image in view}) == 4
    assert len({view.numpy().tobytes() for view in views}) == len(views)
    assert (batch == pictures(1)).all()


def test_without_a_seed_the_global_state_decides():
    batch, views = pictures(4), Views("cifar-asym", 32, MEAN, STD)
    torch.manual_seed(3)
    first, second = views(batch), views(batch)
    torch.manual_seed(3)
    again = views(batch)
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert not torch.equal(first[0], second[0])


def test_every_bit_of_a_seed_counts():
    views = Views("digits", 32, MEAN, STD)
    seeds = [-1, 0, 1, *(1 << bit for bit in (31, 32, 33, 62, 63))]
    assert len({views(pictures(2), seed)[0].numpy().tobytes() for seed in seeds}) == len(seeds)


def test_leaving_an_operation_out_leaves_the_others_as_they_were():
    batch, recipe = pictures(64), get_recipe("cifar-weak")
    whole = Views(recipe, 32, MEAN, STD)(batch, 0)
    without = Views(recipe.with_(view=0, grayscale=0.0), 32, MEAN, STD)(batch, 0)
    changed = (whole[0] != without[0]).flatten(1).any(1)
    assert 0.05 < changed.float().mean() < 0.4
    torch.testing.assert_close(whole[1], without[1], atol=0, rtol=0)


@pytest.mark.parametrize("at_decode", [False, True])
@pytest.mark.parametrize("name", list(RECIPES))
def test_parts_of_a_batch_get_the_views_of_the_whole(name, at_decode):
    views = Views(name, 32, MEAN, STD)
    batch = pictures(9, 148, 140)
    if at_decode:
        batch = [pictures(9, size, size, seed=number) for number, size in enumerate(views.sizes)]
    whole = views(batch, 7)
    parts, first = [], 0
    for images in (2, 3, 1, 3):
        part = slice(first, first + images)
        parts.append(views([crops[part] for crops in batch] if at_decode else batch[part], 7, first, 9))
        first += images
    for one, several in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(several), one, atol=0, rtol=0)
    # The beginning of a batch that turned out shorter.
    torch.testing.assert_close(
        views([crops[:4] for crops in batch] if at_decode else batch[:4], 7, total=9),
        [view[:4] for view in whole],
        atol=0,
        rtol=0,
    )


def test_crops_of_the_caller_stay_as_they_are():
    crops = [torch.rand(4, 3, 32, 32) for _ in range(2)]
    before = [crop.clone() for crop in crops]
    Views("cifar-asym", 32, MEAN, STD)(crops, 7)
    torch.testing.assert_close(crops, before, atol=0, rtol=0)


@pytest.mark.parametrize(("first", "total"), [(0, 3), (3, 6), (-1, 9)])
def test_a_part_must_lie_within_the_whole(first, total):
    with pytest.raises(ValueError, match=f"total={total}"):
        Views("digits", 32, MEAN, STD)(pictures(4), 0, first, total)


def test_operations_happen_as_often_as_the_recipe_says():
    batch = pictures(1, 8, 8).expand(2000, -1, -1, -1)
    image = batch[:1].float() / 255
    bright = image.amax((1, 2, 3)).item()
    assert bright > 0.6

    def share(view: torch.Tensor, expected: torch.Tensor) -> float:
        return ((view - expected).abs().amax((1, 2, 3)) < 1e-3).float().mean().item()

    # Three standard deviations of a share p over 2,000 images are at most 0.034.
    near = {"abs": 0.034}
    recipe = Recipe("test", (PLAIN,))
    gray = image.mul(torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    for field, probability, result in (
        ("flip", 0.5, image.flip(3)),
        ("grayscale", 0.2, gray),
        ("solarize", 0.2, torch.where(image < 0.5, image, 1 - image)),
    ):
        (view,) = Views(recipe.with_(**{field: probability}), 8, (0.0,) * 3, (1.0,) * 3)(batch, 0)
        assert share(view, result) == pytest.approx(probability, **near)
        assert share(view, image) == pytest.approx(1 - probability, **near)
    for field, probability in (("jitter", 0.8), ("blur", 0.3)):
        (view,) = Views(recipe.with_(**{field: probability, "blur_sigma": (1, 2)}), 8, (0.0,) * 3, (1.0,) * 3)(batch, 0)
        assert share(view, image) == pytest.approx(1 - probability, **near)


# --- forms ---------------------------------------------------------------------------------------------------------


def test_crops_made_at_decode_are_recoloured_but_not_cropped_again():
    recipe = get_recipe("cifar-multicrop").with_(jitter=0, grayscale=0, flip=1.0)
    crops = [pictures(3, size, size, seed=size) for size in recipe.sizes(32)]
    views = Views(recipe, 32, MEAN, STD)
    for image, view in zip(crops, views(crops, 0), strict=True):
        torch.testing.assert_close(unnormalized(views, view), image.flip(3).float() / 255, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="2 crops per image for 8 views"):
        views(crops[:2], 0)


def test_autocast_does_not_round_pixels():
    batch, views = pictures(2), only()
    with torch.autocast("cpu", torch.bfloat16):
        (view,) = views(batch, 0)
    torch.testing.assert_close(view, batch.float() / 255, atol=1e-5, rtol=0)


def test_bad_normalization_is_refused():
    with pytest.raises(ValueError, match="std"):
        Views("digits", 32, MEAN, (0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="mean"):
        Views("digits", 32, (0.5,), STD)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5, 32, MEAN, STD), TypeError, "views must be a recipe or the name of one, such as 'digits', got 5"),
        (("digit", 32, MEAN, STD), ValueError, "views 'digit' is unknown: did you mean 'digits'"),
        (("digits", "32", MEAN, STD), TypeError, "image_size must be a positive number of pixels, got '32'"),
        (("digits", 0, MEAN, STD), ValueError, "image_size is 0"),
        (("digits", 32, 0.5, STD), TypeError, "mean must be numbers, one per channel, got 0.5"),
        (("digits", 32, MEAN, "abc"), TypeError, "std must be numbers, one per channel, got 'abc'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        Views(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("batch", "shown"),
    [(torch.zeros(4, 32, 32), r"shape \(4, 32, 32\)"), (torch.zeros(2, 1, 8, 8), "shape"), ([1, "b"], "1")],
)
def test_a_batch_of_another_shape_is_refused(batch, shown):
    with pytest.raises(ValueError, match=rf"must be tensors of shape \(B, 3, H, W\), got {shown}"):
        Views("digits", 32, MEAN, STD)(batch, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(RECIPES))
def test_the_device_makes_no_difference(name):
    batch, views = pictures(64, 48, 40), Views(name, 32, MEAN, STD)
    for here, there in zip(views(batch, 1), views(batch.cuda(), 1), strict=True):
        torch.testing.assert_close(here, there.cpu(), atol=1e-3, rtol=0)
