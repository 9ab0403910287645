"""A board of many encoders of different quality, drawn from a seed, for tests of the page."""

import random
import zlib

from hf_orthossl.hub.leaderboard.schema import Board, BoardResult, Entry, Rejection, Spectra, evenly

BACKBONES = {"resnet18": (512, 11_176_512), "resnet50": (2048, 23_508_032), "vit_small_patch16_224": (384, 21_665_664)}
METHODS = ("byol", "simclr", "vicreg", "dino", "barlow_twins")
DATASETS = ("imagenet-1k", "cifar10", "stl10")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "javascript:alert(3)",
    "${alert(4)}`{{constructor.constructor('alert(5)')()}}",
    "</style></textarea><svg onload=alert(6)>",
)


# Remedies besides penalties on the weights, by field of an entry.
OTHER_REMEDIES = {
    "constrain": "orthogonal",
    "embedding_regularizer": "sigreg",
    "embedding_layer": "embedding",
    "embedding_weight": 0.1,
    "whitening": 1e-4,
    "optimizer": "Muon",
}


def synthetic_board(count: int = 1000, seed: int = 0) -> Board:
    """`count` encoders, one in ten without results and one in twelve without spectra, and 25 entries left out."""
    draw = random.Random(seed)
    entries = [_entry(number, draw) for number in range(count)]
    rejected = [
        Rejection(
            f"stranger/broken-{number}", f"{number:040x}", "results.json", f"value: must be at most 1, got {number}"
        )
        for number in range(20)
    ]
    rejected += [Rejection(f"evil {text}", None, text, f"must be a name, got {text}") for text in HOSTILE]
    return Board(entries, rejected, "2026-01-31T12:00:00Z", "https://huggingface.co")


def entry(name: str, *, backbone="resnet18", method="byol", regularizer=None, value=0.9, share=0.5, **changes) -> Entry:
    """One encoder, with one kNN result on CIFAR-10 and spectra whose effective rank is `share` of the dimensions."""
    dim, parameters = BACKBONES[backbone]
    settings = {
        "repo_id": name,
        "revision": f"{zlib.crc32(name.encode()):08x}" * 5,
        "author": name.partition("/")[0],
        "last_modified": "2026-01-30T10:00:00Z",
        "backbone": backbone,
        "method": method,
        "regularizer": regularizer,
        "gamma": 1e-6 if regularizer else None,
        "pretrained_on": "cifar10",
        "image_size": 32,
        "parameters": parameters,
        "results": [measured("knn", "cifar10", "top1", value)],
        "spectra": spectra(dim, share),
        "library_version": "0.1.0",
    }
    return Entry(**settings | changes)


def measured(task: str, dataset: str, metric: str, value: float, source: str = "author") -> BoardResult:
    """A result with an interval of ± 0.01."""
    known = {"knn": {"k": 20, "temperature": 0.07}, "linear": {"protocol": "lbfgs"}}
    protocol = known.get(task, {"protocol": "as published"})
    low, high = max(value - 0.01, 0), min(value + 0.01, 1)
    return BoardResult(task, dataset, "test", metric, value, protocol, low, high, source, "2026-01-29")


def spectra(dim: int, share: float, stages: int = 4) -> Spectra:
    """Curves that fall the faster, the smaller the share."""
    rank = max(share * dim, 1.0)
    curves, lengths = {}, {}
    layers = [("input", 3072)] + [(f"layer{i}", dim >> (stages - i)) for i in range(1, stages + 1)]
    layers += [("representation", dim)]
    layers += [(f"weights/layer{i}.0.conv2.weight", dim >> (stages - i)) for i in range(1, stages + 1)]
    for name, length in layers:
        decay = length * share if name.startswith("weights/") else length * share / 3
        curves[name] = [round(2.718281828 ** (-(r - 1) / max(decay, 0.5)), 10) for r in evenly(length, 200)]
        lengths[name] = length
    summary = {
        "effective_rank": rank,
        "dim": float(dim),
        "relative_rank": rank / dim,
        "rankme": rank * 0.9,
        "participation_ratio": rank * 0.4,
        "num_positive": float(dim),
        "num_images": 1024.0,
        "alpha": 2 - share,
        "weights_rank_mean": 0.5 + share / 2,
        "weights_rank_min": 0.3 + share / 2,
    }
    return Spectra(summary, curves, lengths)


def _entry(number: int, draw: random.Random) -> Entry:
    backbone, method = draw.choice(sorted(BACKBONES)), draw.choice(METHODS)
    regularizer = draw.choice((None, None, "so", "srip"))
    share = min(max(draw.betavariate(2, 3) + (0.1 if regularizer else 0), 0.002), 1)
    value = round(min(max(0.35 + 0.5 * share + draw.gauss(0, 0.06), 0.1), 0.99), 4)
    results = []
    if number % 10:
        source = draw.choice(("author", "author", "author", "verified", "board"))
        results = [measured("knn", "cifar10", "top1", value, source)]
        results += [measured("knn", "cifar10", "top5", min(value + 0.2, 1.0))]
        if number % 3 == 0:
            results += [measured("linear", "imagenet-1k", "top1", round(value * 0.8, 4), source)]
    return entry(
        f"user{number % 37}/{backbone}-{method}{'-' + regularizer if regularizer else ''}-{number:04d}",
        backbone=backbone,
        method=method,
        regularizer=regularizer,
        share=share,
        results=results,
        pretrained_on=draw.choice((*DATASETS, None)),
        **({"spectra": None} if number % 12 == 0 else {}),
    )
