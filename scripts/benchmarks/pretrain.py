"""Images per second of BYOL pretraining, from images in memory to updated weights: our loop and lightly's example."""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from hf_orthossl import OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, ImageSource, get_recipe, load_source
from hf_orthossl.training import pretrain_loop

from .lightly_byol import check_lightly
from .measure import judged
from .step import MOMENTUM, lightly_twin, sgd

# Ratio of images per second on CUDA: ours to lightly's with 16 workers.
TARGET = 3.0
SIZE = 32
# lightly's BYOL views without blur, as in its example for CIFAR; ours have the same probabilities.
VIEWS = "cifar-asym"
DEFAULTS = {
    "cpu": {"backbone": "resnet18", "batch": 64, "steps": 12, "untimed": 4, "workers": os.cpu_count()},
    "cuda": {"backbone": "resnet18_cifar", "batch": 256, "steps": 140, "untimed": 50, "workers": 16},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""

    def default(name: str) -> str:
        return f"(default: {DEFAULTS['cpu'][name]}, on CUDA {DEFAULTS['cuda'][name]})"

    parser.add_argument("--dataset", default="digits", help="digits, or a data set of images of one size")
    parser.add_argument("--backbone", help=f"a ResNet that timm and torchvision both have {default('backbone')}")
    parser.add_argument("--batch", type=int, help=f"images of a step {default('batch')}")
    parser.add_argument("--steps", type=int, help=f"timed steps of a run {default('steps')}")
    # lightly's workers have prepared batches when training begins: time only what they can sustain.
    parser.add_argument("--untimed", type=int, help=f"steps of a run before {default('untimed')}")
    parser.add_argument("--workers", type=int, help=f"loader processes of lightly {default('workers')}")
    parser.set_defaults(repeats=3)


def run(args: argparse.Namespace) -> list[dict]:
    """Return one row with images per second of both, from alternating runs; on CUDA both use bfloat16 autocast."""
    check_lightly()
    chosen = {name: getattr(args, name) for name in DEFAULTS[args.device] if getattr(args, name) is not None}
    chosen = argparse.Namespace(**DEFAULTS[args.device] | chosen, device=args.device)
    source = load_source(args.dataset, split="train")
    runs = {"lightly": lightly_run(source, chosen), "ours": our_run(source, chosen)}
    speeds = {name: [] for name in runs}
    print(
        f"BYOL, {chosen.backbone}, {SIZE} px, batch {chosen.batch}, {args.dataset}, "
        f"{'bf16' if args.device == 'cuda' else 'float32'}, {chosen.steps} steps after {chosen.untimed}; "
        f"lightly with {chosen.workers} workers, ours as it comes"
    )
    for turn in range(args.repeats):
        for name, train in runs.items():
            speeds[name].append(chosen.steps * chosen.batch / train())
        print(f"  run {turn + 1}: " + ", ".join(f"{name} {found[-1]:,.0f} images/s" for name, found in speeds.items()))
    ratio = statistics.median(a / b for a, b in zip(speeds["ours"], speeds["lightly"], strict=True))
    row = {
        "dataset": args.dataset,
        **{name: value for name, value in vars(chosen).items() if name != "device"},
        "images_per_second": speeds,
        "speedup": ratio,
    }
    print(f"  images/s, ours over lightly's: {ratio:.2f}×")
    what = f"BYOL pretraining, {chosen.backbone}, batch {chosen.batch}, {args.dataset}: images/s, ours over lightly's"
    # The target is for a GPU.
    return [row | judged(what, ratio, "×", at_least=TARGET) if args.device == "cuda" else row]


class Clock:
    """Measure the seconds between the end of step `untimed` and that of step `untimed + steps`.

    Args:
        args (`Namespace`): Options with `untimed`, `steps` and `device`.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.done, self.times = args, 0, {}

    def tick(self) -> None:
        """Record the end of a step."""
        self.done += 1
        if self.done in (self.args.untimed, self.args.untimed + self.args.steps):
            if self.args.device == "cuda":
                torch.cuda.synchronize()
            self.times[self.done] = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds that the timed steps took."""
        return self.times[self.args.untimed + self.args.steps] - self.times[self.args.untimed]


def our_run(source: ImageSource, args: argparse.Namespace) -> Callable[[], float]:
    """Return a run of our loop, without spectra and checkpoints, which lightly's example does not have."""
    dataset = ImageDataset(source, views=get_recipe(VIEWS), image_size=SIZE, cache_images="auto")

    def train() -> float:
        model, clock = build(args), Clock(args)
        advance = model.end_step

        def end_step(*arguments: Any) -> dict[str, torch.Tensor]:
            parts = advance(*arguments)
            clock.tick()
            return parts

        model.end_step = end_step
        with tempfile.TemporaryDirectory() as folder:
            settings = OrthoSSLTrainingArguments(
                output_dir=folder,
                views=VIEWS,
                optim="sgd",
                learning_rate=0.06,
                weight_decay=5e-4,
                per_device_train_batch_size=args.batch,
                max_steps=args.untimed + args.steps,
                spectra_steps=0,
                save_strategy="no",
                disable_tqdm=True,
                report_to="none",
                bf16=args.device == "cuda",
                use_cpu=args.device == "cpu",
            )
            pretrain_loop(model, dataset, settings)
        return clock.seconds

    return train


def lightly_run(source: ImageSource, args: argparse.Namespace) -> Callable[[], float]:
    """Return a run of the loop of lightly's example, with PIL transforms in worker processes."""
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=SIZE, gaussian_blur=0.0),
        view_2_transform=BYOLView2Transform(input_size=SIZE, gaussian_blur=0.0),
    )
    dataset = ImagesInMemory(source, transform)

    def train() -> float:
        model = lightly_twin(build(args).to(args.device), args.backbone).train()
        optimizer, clock = sgd(model), Clock(args)
        # Its example restarts the workers in every epoch, which would dominate the time on a small data set.
        workers = {"num_workers": args.workers, "persistent_workers": args.workers > 0}
        loader = DataLoader(dataset, args.batch, shuffle=True, drop_last=True, **workers)
        while True:
            for views in loader:
                model.step([view.to(args.device) for view in views], optimizer, MOMENTUM, bf16=args.device == "cuda")
                clock.tick()
                if clock.done == args.untimed + args.steps:
                    return clock.seconds

    return train


def build(args: argparse.Namespace) -> SSLModel:
    """Return the model that both sides train."""
    torch.manual_seed(0)
    return SSLModel(SSLConfig(backbone=args.backbone, image_size=SIZE, method="byol", regularizer=None))


class ImagesInMemory(Dataset):
    """Views of decoded images, as torchvision's CIFAR10 holds them.

    Args:
        source ([`ImageSource`]): The images, which are decoded once, in advance.
        transform (`Callable`): Function from a PIL image to its views.
    """

    def __init__(self, source: ImageSource, transform: Callable):
        decoded = ImageDataset(source)
        self.images = np.stack([decoded[i]["pixel_values"].permute(1, 2, 0).numpy() for i in range(len(decoded))])
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self.transform(Image.fromarray(self.images[index]))
