"""SO, sketched SO and SRIP: value and gradient against plain autograd through a Gram matrix, and the decoupled step."""

import argparse
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from hf_orthossl.regularization import OrthogonalityRegularizer

from .measure import check_models, in_unit, judged, measure, peak_memory

MODELS = ("resnet18", "resnet50", "vit_small_patch16_224")
# Time of ours divided by that of plain autograd.
TARGETS = {"cpu": {"so": 0.60, "srip": 0.20}, "cuda": {"so": 0.30, "srip": 0.15}}
PROBES = (1, 4, 16)
NAMES = {"so": "SO", "srip": "SRIP", "sketched_so": "sketched SO"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--models", nargs="+", default=MODELS, help="timm names of the encoders")


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of three tables, speed, memory and error, with targets where there are; prints them as they are measured."""
    check_models(args.models)
    print("in place: gradients added to .grad matrix by matrix, as OrthogonalityCallback does, without a loss")
    print("decoupled: a step of the weights outside of the loss, as --penalty_mode decoupled takes it")
    print(f"{'encoder':<24}{'penalty':<20}{'':<10}{'ms':>16}{'of autograd':>12}{'extra MB':>10}")
    rows = []
    for name in args.models:
        encoder = timm.create_model(name, num_classes=0).to(args.device)
        # Gradients exist already, as they do after the loss has been differentiated.
        for parameter in encoder.parameters():
            parameter.grad = torch.zeros_like(parameter)
        rows += [{"encoder": name, **row} for row in _speed_and_memory(name, encoder, args)]
        for row in _error(encoder, args.repeats):
            rows.append({"encoder": name, **row})
            print(
                f"{name:<24}sketched SO, k = {row['probes']:<4} standard deviation of the value "
                f"{row['value_error']:.1%}, of the gradient {row['gradient_error']:.0%}",
                flush=True,
            )
    print()
    for row in rows:
        if "target" in row:
            print(_verdict(row))
    return rows


def _speed_and_memory(name: str, encoder: nn.Module, args: argparse.Namespace) -> list[dict]:
    parameters = [m for m in OrthogonalityRegularizer(encoder).matrices if m.index == 0]
    # Twice the largest matrix and its Gram matrix, in float32.
    allowed = 4 * max(2 * m.shape[0] * m.shape[1] + min(m.shape) ** 2 for m in parameters)

    def by_autograd(kind: str) -> Callable[[], None]:
        return lambda: sum(_AUTOGRAD[kind](W) for m in parameters for W in m.stack().unbind()).backward()

    def ours(kind: str, **more) -> dict[str, Callable[[], object]]:
        regularizer = OrthogonalityRegularizer(encoder, kind, **more)
        ways = {"ours": lambda: regularizer().backward(), "in place": regularizer.add_gradients}
        if regularizer.penalty.has_decoupled_step():
            # Of strength 0, which takes the same operations and leaves the weights to the next contender as they are.
            ways["decoupled"] = lambda: regularizer.step(0.0)
        return ways

    families = {"so": {("so", None): ours("so")}, "srip": {("srip", None): ours("srip")}}
    families["so"] |= {("sketched_so", k): ours("sketched_so", probes=k) for k in PROBES}
    rows = []
    for reference, family in families.items():
        contenders = {("autograd", reference, None): by_autograd(reference)}
        contenders |= {(way, *key): call for key, calls in family.items() for way, call in calls.items()}
        for (way, kind, probes), time in measure(contenders, args.device, args.repeats).items():
            row = {"penalty": kind, "way": way, **({"probes": probes} if probes else {})}
            memory = peak_memory(contenders[way, kind, probes], args.device)
            title = NAMES[kind] + (f", k = {probes}" if probes else "")
            milliseconds = f"{time['median_ms']:.1f} ± {time['iqr_ms'] / 2:.1f}"
            columns = f"{milliseconds:>16}{time['ratio']:>11.2f}×{memory / 1e6:>10.1f}"
            print(f"{name:<24}{title:<20}{way:<10}{columns}", flush=True)
            what = f"{title} of {name}" + ("" if way == "ours" else f", {way}")
            rows.append({"table": "speed", **row, **time})
            if way == "ours" and kind in TARGETS[args.device]:
                target = TARGETS[args.device][kind]
                rows[-1] |= judged(f"{what}, of autograd's time", time["ratio"], "×", at_most=target)
            rows.append({"table": "memory", **row, "bytes": memory})
            if way != "autograd" and probes in (None, PROBES[-1]):
                rows[-1] |= judged(f"{what}, memory", memory / 1e6, " MB", at_most=allowed / 1e6)
    return rows


def _error(encoder: nn.Module, draws: int) -> list[dict]:
    """Root mean square errors of sketched SO's value and gradient, as shares of exact SO's."""
    exact, gradient = _value_and_gradient(OrthogonalityRegularizer(encoder))
    rows = []
    for probes in PROBES:
        regularizer = OrthogonalityRegularizer(encoder, "sketched_so", probes=probes)
        values, gradients = [], []
        for _ in range(draws):
            value, found = _value_and_gradient(regularizer)
            values.append((value - exact).square())
            gradients.append(sum((f - g).square().sum() for f, g in zip(found, gradient, strict=True)))
        norm = sum(g.square().sum() for g in gradient)
        rows.append(
            {
                "table": "error",
                "probes": probes,
                "draws": draws,
                "value_error": (torch.stack(values).mean().sqrt() / exact).item(),
                "gradient_error": (torch.stack(gradients).mean() / norm).sqrt().item(),
            }
        )
    return rows


def _value_and_gradient(regularizer: OrthogonalityRegularizer) -> tuple[Tensor, list[Tensor]]:
    weights = [m.parameter for m in regularizer.matrices if m.index == 0]
    for weight in weights:
        weight.grad.zero_()
    return regularizer.add_gradients(), [weight.grad.clone() for weight in weights]


def _gram_minus_identity(W: Tensor) -> Tensor:
    G = W.mT @ W if W.shape[0] > W.shape[1] else W @ W.mT
    return G - torch.eye(len(G), device=W.device)


def _so(W: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(_gram_minus_identity(W)) ** 2


def _srip(W: Tensor) -> Tensor:
    E = _gram_minus_identity(W)
    u = E @ torch.randn(len(E), device=W.device)
    v = E @ u
    return v.norm() / u.norm()


_AUTOGRAD = {"so": _so, "srip": _srip}


def _verdict(row: dict) -> str:
    measured, target = (in_unit(row[key], row["unit"]) for key in ("measured", "target"))
    return f"{row['what']}: {measured}, target {row['bound']} {target}: {'met' if row['met'] else 'MISSED'}"
