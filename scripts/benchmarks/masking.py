"""MAE's step with most patches masked against one that encodes all but one: time and peak memory."""

import argparse

import torch

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.methods import Progress
from hf_orthossl.options import parse_assignments

from .measure import measure, peak_memory

BATCH = {"cpu": 8, "cuda": 128}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--backbone", default="vit_base_patch16_224", help="timm name of a vision transformer")
    parser.add_argument("--image_size", type=int, default=224, help="side of the view in pixels")
    parser.add_argument(
        "--batch", type=int, help=f"images of a step (default: {BATCH['cpu']}, on CUDA {BATCH['cuda']})"
    )
    parser.add_argument("--mask_ratios", type=float, nargs="+", default=[0.75], help="shares of masked patches")
    parser.add_argument("--method_config", nargs="*", default=[], metavar="KEY=VALUE", help="sizes of the decoder")
    parser.add_argument("--bf16", action="store_true", help="in bfloat16 autocast")
    # A round takes seconds, not milliseconds.
    parser.set_defaults(repeats=5)


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row per share of masked patches, the first without any but one; print each."""
    batch = args.batch or BATCH[args.device]
    steps = {0.0: _Step(None, batch, args)}
    steps |= {ratio: _Step(ratio, batch, args) for ratio in args.mask_ratios}
    memory = {ratio: peak_memory(step, args.device) for ratio, step in steps.items()}
    named = {f"{ratio:g}": step for ratio, step in steps.items()}
    times = measure(named, args.device, args.repeats, warmup=1)
    print(f"{args.backbone}, {args.image_size} px, batch {batch}, MAE with its decoder, AdamW, one view at hand")
    print(f"{'masked':<10}{'encoded':>16}{'step ms':>20}{'images/s':>10}{'time':>8}{'peak MB':>10}{'memory':>8}")
    rows = []
    for ratio, step in steps.items():
        time = times[f"{ratio:g}"]
        row = {
            "backbone": args.backbone,
            "image_size": args.image_size,
            "batch": batch,
            "bf16": args.bf16,
            "mask_ratio": ratio,
            "encoded": step.encoded,
            "patches": step.patches,
            "time": time,
            "images_per_second": 1e3 * batch / time["median_ms"],
            "peak_bytes": memory[ratio],
            "memory_ratio": memory[ratio] / memory[0.0],
        }
        rows.append(row)
        print(_line(row), flush=True)
    return rows


class _Step:
    """MAE's optimizer step on a view that is there already.

    Args:
        mask_ratio (`float`, *optional*): The share of masked patches; `None` for a single patch, since a loss over
            masked patches needs one.
        batch (`int`): Number of images.
        args (`Namespace`): The options of this benchmark.
    """

    def __init__(self, mask_ratio: float | None, batch: int, args: argparse.Namespace):
        torch.manual_seed(0)
        sizes = parse_assignments(args.method_config)
        config = SSLConfig(args.backbone, args.image_size, method="mae", method_config=sizes, regularizer=None)
        self.model = SSLModel(config).to(args.device).train()
        method = self.model.method
        rows, columns = method.layout.grid(args.image_size)
        self.patches = rows * columns
        method.config.mask_ratio = 1 / self.patches if mask_ratio is None else mask_ratio
        self.encoded = method.visible(self.patches)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
        self.images = torch.randn(batch, self.model.encoder.channels, *[args.image_size] * 2, device=args.device)
        self.device, self.bf16 = args.device, args.bf16

    def __call__(self) -> None:
        """Take one optimizer step."""
        self.model.begin_step(Progress(0, 100, 100))
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.model([self.images]).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.end_step()


def _line(row: dict) -> str:
    time = row["time"]
    encoded = f"{row['encoded']} of {row['patches']}"
    step = f"{time['median_ms']:.1f} ± {time['iqr_ms'] / 2:.1f}"
    return (
        f"{row['mask_ratio']:<10.0%}{encoded:>16}{step:>20}{row['images_per_second']:>10.1f}{time['ratio']:>7.2f}×"
        f"{row['peak_bytes'] / 1e6:>10.0f}{row['memory_ratio']:>7.2f}×"
    )
