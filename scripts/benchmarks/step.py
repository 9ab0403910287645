"""A whole BYOL step against lightly's, what it spends its time on, and the penalty's share of it."""

import argparse
import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from hf_orthossl import OrthogonalityRegularizer, SSLConfig, SSLModel
from hf_orthossl.methods import Progress

from .lightly_byol import LightlyBYOL, check_lightly, torchvision_backbone
from .measure import judged, measure

# Images per second on the CPU, ours over lightly's.
TARGET = 1.2
# Encoder, side in pixels, images of the step that shares refer to, images of the step that is timed on a CPU,
# and the share that each penalty may have at most.
SHARES = (
    ("resnet18_cifar", 32, 256, 32, {"so": 0.015, "srip": 0.005}),
    ("resnet50", 224, 128, 4, {"so": 0.01, "srip": 0.005}),
)
BATCH = {"cpu": 64, "cuda": 256}
MOMENTUM = 0.99
PARTS = {
    "online": "encoder, forward and backward",
    "target": "target encoder, forward",
    "heads": "heads and loss",
    "optimizer": "optimizer",
    "target_update": "target update",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--backbone", default="resnet18_cifar", help="a ResNet that timm and torchvision both have")
    parser.add_argument("--image_size", type=int, default=32, help="side of the views in pixels")
    parser.add_argument(
        "--batch", type=int, help=f"images of a step (default: {BATCH['cpu']}, on CUDA {BATCH['cuda']})"
    )
    parser.add_argument("--bf16", action="store_true", help="both in bfloat16 autocast")
    parser.add_argument("--shares", choices=("yes", "no"), default="yes", help="also the penalty's share of a step")
    # A round takes seconds, not milliseconds.
    parser.set_defaults(repeats=5)


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of two tables, `table` saying which: "step" and "share"; prints each as it is measured."""
    check_lightly()
    batch = args.batch or BATCH[args.device]
    if batch < 2:
        raise ValueError(f"--batch is {batch}: batch norm needs at least 2 images")
    rows = [_compare(batch, args)]
    print(_step_text(rows[0]), flush=True)
    if args.shares == "no":
        return rows
    columns = f"{'step ms':>12}{'penalty ms':>16}{'share':>9}{'at most':>9}"
    print(f"\n{'encoder':<16}{'px':>5}{'batch':>7}{'penalty':>9}{columns}")
    for name, size, full, timed, targets in SHARES:
        for row in _shares(name, size, full, full if args.device == "cuda" else timed, targets, args):
            rows.append(row)
            print(_share_line(row), flush=True)
    if args.device == "cpu":
        print("steps are timed at fewer images and scaled: all but optimizer and target update grows with the batch")
    return rows


class BYOLStep:
    """Our step on two views `(batch, 3, image_size, image_size)` that are there already, and its parts one by one."""

    def __init__(self, backbone: str, image_size: int, batch: int, device: str, bf16: bool = False):
        torch.manual_seed(0)
        config = SSLConfig(backbone=backbone, image_size=image_size, method="byol", regularizer=None)
        self.model = SSLModel(config).to(device).train()
        self.optimizer = sgd(self.model)
        self.views = [torch.randn(batch, 3, image_size, image_size, device=device) for _ in range(2)]
        self.device, self.bf16 = device, bf16
        self.features = [
            torch.randn(batch, self.model.encoder.num_features, device=device, requires_grad=True) for _ in range(2)
        ]

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context in which forward passes run."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)

    def step(self) -> None:
        """Take one whole optimizer step."""
        self.model.begin_step(Progress(0, 100, 100))
        with self.autocast():
            loss = self.model(self.views).loss
        loss.backward()
        self.model.before_optimizer_step()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.end_step()

    def online(self) -> None:
        """Run only forward and backward passes of the encoder over both views."""
        with self.autocast():
            outputs = [self.model.encoder(view) for view in self.views]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        self.optimizer.zero_grad()

    @torch.no_grad()
    def target(self) -> None:
        """Run the forward pass of the target encoder over both views."""
        with self.autocast():
            for view in self.views:
                self.model.method.target.stack[0](view)

    def heads(self) -> None:
        """Run all that follows the encoders: projectors, predictor, loss, and their backward passes."""
        target = self.model.method.target
        encoder, target.stack[0] = target.stack[0], nn.Identity()
        try:
            with self.autocast():
                loss = self.model.method(nn.Identity(), self.features).loss
        finally:
            target.stack[0] = encoder
        loss.backward()
        self.optimizer.zero_grad()
        for features in self.features:
            features.grad = None

    def optimizer_step(self) -> None:
        """Take the optimizer's part of a step."""
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    def target_update(self) -> None:
        """Move the target network."""
        self.model.method.target.follow(MOMENTUM, self.model.encoder, self.model.method.projector)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of both sides, that of lightly's benchmarks on CIFAR-10."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=0.06, momentum=0.9, weight_decay=5e-4)


def lightly_twin(ours: SSLModel, backbone: str) -> LightlyBYOL:
    """Return lightly's model with the widths and the weights of ours."""
    config, method = ours.method.config, ours.method
    twin = LightlyBYOL(torchvision_backbone(backbone), ours.encoder.num_features, config.hidden_dim, config.output_dim)
    # The same network under other names, in the same order.
    weights = dict(zip(twin.backbone.state_dict(), ours.encoder.state_dict().values(), strict=True))
    twin.backbone.load_state_dict(weights)
    twin.backbone_momentum.load_state_dict(weights)
    for source, head in (
        (method.projector, twin.projection_head),
        (method.projector, twin.projection_head_momentum),
        (method.predictor, twin.prediction_head),
    ):
        # lightly leaves out the bias before batch norm, which changes nothing.
        weights = {f"layers.{name}": weight for name, weight in source.state_dict().items()}
        head.load_state_dict({name: weights[name] for name in head.state_dict()})
    return twin.to(ours.device)


def _compare(batch: int, args: argparse.Namespace) -> dict:
    ours = BYOLStep(args.backbone, args.image_size, batch, args.device, args.bf16)
    twin = lightly_twin(ours.model, args.backbone).train()
    optimizer = sgd(twin)
    contenders: dict[str, Callable[[], object]] = {
        "lightly": lambda: twin.step(ours.views, optimizer, MOMENTUM, args.bf16),
        "ours": ours.step,
        "online": ours.online,
        "target": ours.target,
        "heads": ours.heads,
        "optimizer": ours.optimizer_step,
        "target_update": ours.target_update,
    }
    # Gradients of zero are made before: what is timed is the optimizer alone.
    times = measure(contenders, args.device, args.repeats, warmup=1)
    measured = 1 / times["ours"]["ratio"]
    row = {
        "speedup": measured,
        "table": "step",
        "backbone": args.backbone,
        "image_size": args.image_size,
        "batch": batch,
        "bf16": args.bf16,
        "times": times,
        "images_per_second": {name: 1e3 * batch / times[name]["median_ms"] for name in ("lightly", "ours")},
        "arithmetic_share": (times["online"]["median_ms"] + times["target"]["median_ms"]) / times["ours"]["median_ms"],
    }
    # The target is one of the CPU, where the backbone's arithmetic leaves the least room.
    what = f"BYOL step, {args.backbone}, {args.image_size} px, batch {batch}: images/s, ours over lightly's"
    return row | judged(what, measured, "×", at_least=TARGET) if args.device == "cpu" else row


def _shares(
    name: str, size: int, batch: int, timed: int, targets: dict[str, float], args: argparse.Namespace
) -> Iterator[dict]:
    """Return a row per penalty: its share of a step of `batch` images, measured with `timed` images."""
    ours = BYOLStep(name, size, timed, args.device, args.bf16)
    penalties = {kind: OrthogonalityRegularizer(ours.model.encoder, kind) for kind in targets}

    def penalty(kind: str) -> Callable[[], None]:
        return lambda: penalties[kind]().backward()

    contenders = {"step": ours.step, "optimizer": ours.optimizer_step, "target_update": ours.target_update}
    # Last, and onto gradients that are there, as after a loss has been differentiated.
    times = measure(contenders | {kind: penalty(kind) for kind in targets}, args.device, args.repeats, warmup=1)
    fixed = times["optimizer"]["median_ms"] + times["target_update"]["median_ms"]
    step = (times["step"]["median_ms"] - fixed) * batch / timed + fixed
    for kind, target in targets.items():
        share = times[kind]["median_ms"] / (step + times[kind]["median_ms"])
        yield {
            "table": "share",
            "backbone": name,
            "image_size": size,
            "batch": batch,
            "timed_batch": timed,
            "penalty": kind,
            "times": times,
            "step_ms": step,
            **judged(
                f"{kind.upper()}'s share of a BYOL step, {name}, {size} px, batch {batch}", share, "%", at_most=target
            ),
        }


def _step_text(row: dict) -> str:
    times, step = row["times"], row["times"]["ours"]["median_ms"]

    def line(text: str, name: str, beside: str) -> str:
        return f"  {text:<34}{times[name]['median_ms']:>9.1f} ± {times[name]['iqr_ms'] / 2:<7.1f}ms{beside:>18}"

    speeds = [line(name, name, f"{speed:.1f} images/s") for name, speed in row["images_per_second"].items()]
    parts = [line(text, name, f"{times[name]['median_ms'] / step:.1%}") for name, text in PARTS.items()]
    return "\n".join(
        [
            f"{row['backbone']}, {row['image_size']} px, batch {row['batch']}, BYOL, SGD, two views at hand",
            *speeds,
            f"  images/s, ours over lightly's: {row['speedup']:.2f}×",
            "  our step by its parts, each by itself",
            *parts,
            f"  passes of the backbone, which no loop can spare: {row['arithmetic_share']:.1%} of our step",
        ]
    )


def _share_line(row: dict) -> str:
    time = row["times"][row["penalty"]]
    penalty = f"{time['median_ms']:.1f} ± {time['iqr_ms'] / 2:.1f}"
    return (
        f"{row['backbone']:<16}{row['image_size']:>5}{row['batch']:>7}{row['penalty']:>9}{row['step_ms']:>12.0f}"
        f"{penalty:>16}{row['measured']:>9.2%}{row['target']:>9.1%}  {'met' if row['met'] else 'MISSED'}"
    )
