"""Two views of a batch, at 32 and at 224 px: ours against torchvision's transforms, image by image, one thread each."""

import argparse
import io
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hf_orthossl.data import Views, ViewSpec, decode_image, get_recipe
from hf_orthossl.data.decoding import to_tensor

from .measure import judged, measure
from .torchvision_views import pil_view, tensor_view

# Recipe, side of a view, size of the images, their usual format, share of a batch, how many times as fast it should be.
CASES = (
    ("cifar-asym", 32, (32, 32), "PNG", 1, 4.0),
    ("imagenet", 224, (375, 500), "JPEG", 8, 2.5),
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PEERS = {"pil": "torchvision on PIL", "v2": "torchvision v2", "ours": "ours"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--images", type=int, default=128, help="images in a batch at 32 px; an eighth of it at 224 px")


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row per image size, from decoded images and from files; print each as soon as it is measured."""
    if args.images < 8:
        raise ValueError(f"--images is {args.images}: it must be at least 8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"{'recipe':<14}{'px':>4}  {'from':<8}" + "".join(f"{f'{title}, views/s':>29}" for title in PEERS.values()))
    rows = []
    try:
        for recipe, size, shape, encoding, divisor, target in CASES:
            images = _photographs(args.images // divisor, *shape)
            for source in (None, encoding):
                rows.append(_compare(images, recipe, size, source, target, args))
                print(_line(rows[-1]), flush=True)
    finally:
        torch.set_num_threads(threads)
    return rows


def _compare(
    images: Tensor, recipe: str, size: int, encoding: str | None, target: float, args: argparse.Namespace
) -> dict:
    specs, views = get_recipe(recipe).views, Views(recipe, size, MEAN, STD)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    files = [_encoded(picture, encoding) for picture in pictures] if encoding else []

    def ours() -> list[Tensor]:
        batch = torch.stack([to_tensor(decode_image(file)) for file in files]) if encoding else images
        return views(batch.to(args.device))

    def pil() -> list[Tensor]:
        batch = [Image.open(io.BytesIO(file)).convert("RGB") for file in files] if encoding else pictures
        return _one_by_one(batch, specs, lambda spec: pil_view(spec, size, MEAN, STD), args.device)

    def v2() -> list[Tensor]:
        batch = [to_tensor(Image.open(io.BytesIO(file)).convert("RGB")) for file in files] if encoding else images
        return _one_by_one(batch, specs, lambda spec: tensor_view(spec, size, MEAN, STD), args.device)

    times = measure({"pil": pil, "v2": v2, "ours": ours}, args.device, args.repeats)
    row = {
        "recipe": recipe,
        "size": size,
        "decoding": encoding,
        "images": len(images),
        "times": times,
        "views_per_second": {name: 2e3 * len(images) / time["median_ms"] for name, time in times.items()},
        "faster": 1 / times["ours"]["ratio"],
    }
    if encoding or args.device == "cuda":
        return row
    return row | judged(f"two views, {size} px, vs PIL, per core", row["faster"], "×", at_least=target)


def _one_by_one(
    images: Sequence, specs: Sequence[ViewSpec], pipeline: Callable[[ViewSpec], Callable], device: str
) -> list[Tensor]:
    """Make views as the workers of a loader do: image by image, then collated into batches."""
    pipelines = [pipeline(spec) for spec in specs]
    made = [[make(image) for make in pipelines] for image in images]
    return [torch.stack(view).to(device) for view in zip(*made, strict=True)]


def _photographs(count: int, height: int, width: int) -> Tensor:
    """Structure at every scale, as photographs have it: uint8 `(count, 3, height, width)`."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 3, height, width)
    for cells in (2, 4, 8, 16, 32, 64):
        coarse = torch.rand(count, 3, cells, cells, generator=generator) / cells**0.75
        images += functional.interpolate(coarse, (height, width), mode="bilinear")
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (255 * (images - low) / (high - low)).round().to(torch.uint8)


def _encoded(picture: Image.Image, encoding: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, encoding)
    return file.getvalue()


def _line(row: dict) -> str:
    cells = []
    for name, time in row["times"].items():
        spread = 100 * time["iqr_ms"] / 2 / time["median_ms"]
        cells.append(f"{row['views_per_second'][name]:,.0f} ± {spread:.0f} %")
    verdict = f", target {row['target']:g}×: {'met' if row['met'] else 'missed'}" if "target" in row else ""
    source = row["decoding"] or "pixels"
    return (
        f"{row['recipe']:<14}{row['size']:>4}  {source:<8}"
        + "".join(f"{cell:>29}" for cell in cells)
        + f"   ours {row['faster']:.1f}× PIL{verdict}"
    )
