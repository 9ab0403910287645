"""Operations on views, and all of them in a row, against kornia, torchvision, Pillow and float64."""

import kornia
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pil
from torchvision.transforms.v2 import functional as tv

from hf_orthossl.data import Recipe, Views, ViewSpec, get_recipe
from hf_orthossl.data.augment import colour, crop, filters

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
CPU = torch.device("cpu")


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    """Smooth colourful images with noise, uint8."""
    smooth = torch.nn.functional.interpolate(uniform(batch, 3, 6, 6), (height, width), mode="bicubic")
    return (255 * smooth + 8 * uniform(batch, 3, height, width, seed=1)).clamp(0, 255).to(torch.uint8)


# --- one by one ----------------------------------------------------------------------------------------------------

KORNIA = {
    "brighten": kornia.enhance.adjust_brightness_accumulative,
    "contrast": kornia.enhance.adjust_contrast_with_mean_subtraction,
    "saturate": kornia.enhance.adjust_saturation_with_gray_subtraction,
    "turn_hue": lambda images, shift: kornia.enhance.adjust_hue(images, 2 * torch.pi * shift),
}


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", KORNIA)
def test_colours_are_kornias(name, batch):
    images = uniform(batch, 3, 9, 7)
    images[0, :, :3] = torch.tensor([0.0, 0.5, 1.0]).view(3, 1).expand(3, 3, 1)  # black, gray and white
    values = uniform(batch, seed=1) - 0.5 if name == "turn_hue" else 2 * uniform(batch, seed=1)
    ours = getattr(colour, name)(images.clone(), values)
    torch.testing.assert_close(ours, KORNIA[name](images, values), atol=1e-5, rtol=0)


def test_gray_and_solarized_images_are_kornias():
    images = uniform(4, 3, 9, 7)
    gray = kornia.color.rgb_to_grayscale(images).expand(-1, 3, -1, -1)
    torch.testing.assert_close(colour.grayscale(images.clone()), gray, atol=1e-6, rtol=0)
    solarized = kornia.enhance.solarize(images, 0.3)
    torch.testing.assert_close(colour.solarize(images.clone(), 0.3), solarized, atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch", [1, 4])
def test_blur_is_kornias(batch):
    images, sigma = uniform(batch, 3, 21, 34), 0.1 + 1.9 * uniform(batch, seed=2)
    expected = kornia.filters.gaussian_blur2d(images, 13, sigma.view(-1, 1).expand(-1, 2))
    torch.testing.assert_close(filters.blur(images, sigma, 2.0), expected, atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 4),
    old=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    new=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    reach=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_sums_on_the_cpu_and_products_on_cuda_are_the_linear_map_written_out(batch, old, new, reach, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 3, *old, generator=generator)
    columns, rows = (
        filters.Taps(
            torch.randint(pixels, (batch, size, reach), generator=generator),
            torch.randn(batch, size, reach, generator=generator),
        )
        for pixels, size in zip(old, new, strict=True)
    )
    expected = torch.zeros(batch, 3, *new, dtype=torch.float64)
    for image in range(batch):
        lines = (images[image].double()[:, columns.sources[image]] * columns.weights[image, ..., None]).sum(2)
        expected[image] = (lines[:, :, rows.sources[image]] * rows.weights[image]).sum(3)
    for way in (filters._by_sums, filters._by_products):
        torch.testing.assert_close(way(images, columns, rows).double(), expected, atol=2e-5, rtol=1e-5)


# --- all in a row --------------------------------------------------------------------------------------------------


class Parameters:
    """What the numbers drawn for one image mean, in the words of torchvision."""

    def __init__(self, drawn: torch.Tensor, spec: ViewSpec, height: int, width: int):
        (self.box,) = crop.crop_boxes(drawn[None, : crop.DRAWS], height, width, spec).tolist()
        gates, sigma, flip = drawn[crop.DRAWS + 9 : -2], drawn[-2].item(), drawn[-1].item()
        amounts, keys = drawn[crop.DRAWS + 1 : crop.DRAWS + 5], drawn[crop.DRAWS + 5 : crop.DRAWS + 9]
        strengths = (spec.brightness, spec.contrast, spec.saturation)
        jitter = {
            number: 1 + strength * (2 * amounts[number].item() - 1) for number, strength in enumerate(strengths)
        } | {3: spec.hue * (2 * amounts[3].item() - 1)}
        order = keys.argsort().tolist() if drawn[crop.DRAWS] < spec.jitter else []
        self.jitter = [(number, jitter[number]) for number in order]
        self.flip = flip < spec.flip
        self.gray, self.blur, self.solarize = (
            bool(gate < share) for gate, share in zip(gates, (spec.grayscale, spec.blur, spec.solarize), strict=True)
        )
        low, high = spec.blur_sigma
        self.sigma = low + (high - low) * sigma


def drawn(views: Views, batch: int, seed: int) -> list[torch.Tensor]:
    generator = np.random.default_rng(seed)
    draws = crop.DRAWS + colour.DRAWS + 1
    return [torch.from_numpy(generator.random((batch, draws), dtype=np.float32)) for _ in views.sizes]


# At 224 px every image is a part of its own; at 32 px they are worked on together.
@pytest.mark.parametrize(
    ("height", "width", "size", "batch"), [(150, 200, 224, 6), (375, 500, 224, 6), (32, 40, 32, 64)]
)
@pytest.mark.parametrize("name", ["imagenet", "cifar-simclr"])
def test_a_view_is_what_torchvision_makes_of_it_with_the_same_numbers(name, height, width, size, batch):
    views, images = Views(name, size, MEAN, STD), pictures(batch, height, width)
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for spec, numbers, made in zip(views.recipe.views, drawn(views, batch, 5), views(images, 5), strict=True):
        for image, number, view in zip(images, numbers, made, strict=True):
            chosen = Parameters(number, spec, height, width)
            mode = InterpolationMode(spec.interpolation)
            expected = tv.resized_crop(image.double() / 255, *chosen.box, [size, size], mode, antialias=True)
            expected = expected.clamp(0, 1)
            expected = tv.horizontal_flip(expected) if chosen.flip else expected
            for operation, amount in chosen.jitter:
                expected = adjust[operation](expected, amount)
            expected = tv.rgb_to_grayscale(expected, 3) if chosen.gray else expected
            expected = tv.gaussian_blur(expected, [13, 13], [chosen.sigma] * 2) if chosen.blur else expected
            expected = tv.solarize(expected, 0.5) if chosen.solarize else expected
            expected = tv.normalize(expected, list(MEAN), list(STD))
            # torchvision ends its luma weights after 4 digits; a pixel on the threshold or in a corner of the hue may
            # go either way.
            off = (view - expected).abs() > 2e-3 / min(STD)
            assert off.float().mean() < 0.01


def test_a_view_is_pillows_to_a_few_of_its_256_levels():
    """Pillow cuts off to whole levels after each operation.

    Contrast and saturation amplify up to 1.4 times what was cut off before: 1 + 1.4 + 1.4² levels, and the crop's two
    roundings on top, 1.4³ each at most, are 8 to 10. Pillow's hues have 256 steps, of which rounding takes one and
    torchvision's shift, cut off to whole steps, another: a step changes a pure colour by 6 levels. Its blur is another
    (three box filters) and left out.
    """
    recipe = Recipe("test", (ViewSpec(interpolation="bilinear", saturation=0.4, hue=0.0), ViewSpec()))
    images, batch = pictures(12, 375, 500), 12
    views = Views(recipe, 224, (0.0,) * 3, (1.0,) * 3)
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for spec, numbers, made in zip(recipe.views, drawn(views, batch, 7), views(images, 7), strict=True):
        for image, number, view in zip(images, numbers, made, strict=True):
            chosen = Parameters(number, spec, 375, 500)
            expected = Image.fromarray(image.permute(1, 2, 0).numpy())
            expected = pil.resized_crop(expected, *chosen.box, [224, 224], InterpolationMode(spec.interpolation))
            expected = ImageOps.mirror(expected) if chosen.flip else expected
            for operation, amount in chosen.jitter:
                hue = operation == 3
                expected = pil.adjust_hue(expected, amount) if hue else enhance[operation](expected).enhance(amount)
            expected = ImageOps.grayscale(expected).convert("RGB") if chosen.gray else expected
            levels = (255 * view - torch.from_numpy(np.array(expected)).permute(2, 0, 1)).abs()
            allowed = 10 if spec.hue == 0 else 10 + 2 * 6
            assert levels.mean() < 2.5
            assert levels.max() < allowed


def test_a_flip_is_part_of_the_crop():
    images, boxes = uniform(3, 3, 30, 40), crop.crop_boxes(uniform(3, crop.DRAWS), 30, 40, ViewSpec())
    mirrored = torch.tensor([True, False, True])
    taps = [crop.resize_taps(boxes, images.shape[-2:], 16, "bicubic", CPU, flip) for flip in (None, mirrored)]
    plain, turned = (crop.resized_crops(images, boxes, *both) for both in taps)
    torch.testing.assert_close(turned[mirrored], plain[mirrored].flip(3), atol=2e-6, rtol=0)
    torch.testing.assert_close(turned[~mirrored], plain[~mirrored], atol=0, rtol=0)


def test_how_many_images_are_worked_on_at_a_time_makes_no_difference(monkeypatch):
    images, made = pictures(7, 48, 40), []
    for pixels in (1, 2 * 32 * 32, 10**9):
        monkeypatch.setattr("hf_orthossl.data.augment.views._PIXELS", pixels)
        made.append(Views(get_recipe("cifar-weak"), 32, MEAN, STD)(images, 3))
    for one, two, three in zip(*made, strict=True):
        torch.testing.assert_close(two, one, atol=2e-5, rtol=0)
        torch.testing.assert_close(three, one, atol=2e-5, rtol=0)
