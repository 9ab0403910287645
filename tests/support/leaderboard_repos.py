"""Repositories for tests of the leaderboard, in the local Hub's store: real encoders, variations of them, many of them.

    python tests/support/leaderboard_repos.py --count 1000

prints seconds and requests of collecting them: everything for the first time, again, and after three have changed.
"""

import argparse
import dataclasses
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from published_encoders import written

from hf_orthossl import load_encoder, spectral_report
from hf_orthossl.data import ImageDataset, load_source
from hf_orthossl.encoders.embedding import normalized_batches
from hf_orthossl.evaluation import LabelledFeatures, Result, knn_results, labelled_splits, write_results
from hf_orthossl.evaluation.results import results_json
from hf_orthossl.hub import eval_result_files, render_card
from hf_orthossl.hub.encoder_folder import spectra_rows
from hf_orthossl.hub.publish import published_files

SPLITS = {"train_split": "train[:300]", "test_split": "test[:100]"}
CIFAR = "uoft-cs/cifar10"


def encoders(folder: Path) -> list[Path]:
    """Real encoder folders with real spectra and kNN accuracies on digits: a sound one, a collapsed one, a ViT."""
    sound = written(folder / "sound", "resnet10t", channels=[8, 8, 16, 16])[1]
    vit = written(folder / "vit", "test_vit")[1]
    collapsed = folder / "collapsed"
    written(collapsed, "resnet10t", channels=[8, 8, 16, 16])
    collapse(collapsed)
    for made in (sound, vit, collapsed):
        evaluate(made)
    return [sound, collapsed, vit]


def collapse(folder: Path) -> None:
    """Leaves two of the last layer's channels, and says so in the spectra."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    last = "layer4.0.bn2"
    keep = torch.arange(16) < 2
    # The shortcut would carry the other channels past the last layer.
    for norm in (last, *(name.removesuffix(".weight") for name in weights if "layer4.0.downsample" in name)):
        for part in ("weight", "bias"):
            if weights.get(f"{norm}.{part}", torch.empty(0, 0)).ndim == 1:
                weights[f"{norm}.{part}"] = weights[f"{norm}.{part}"] * keep
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    change_block(folder, regularizer=None, gamma=None)
    write_spectra(folder)


def cut_rank(folder: Path, rank: int) -> None:
    """Leaves so many directions of the last stage's weights; results of the weights before it are taken away."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "layer4" in name and weight.ndim == 4:
            left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
            weights[name] = (left[:, :rank] * values[:rank] @ right[:rank]).view_as(weight)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "results.json").unlink()
    write_spectra(folder)


def write_spectra(folder: Path) -> None:
    """Of the weights and training images that a folder names."""
    block = json.loads((folder / "config.json").read_text())["orthossl"]
    encoder = load_encoder(str(folder), pretrained=True).eval()
    source = load_source(block["dataset"], split=block["split"])
    images = ImageDataset(source, image_size=encoder.image_size, indices=spectra_rows(source.num_rows))
    report = spectral_report(encoder, normalized_batches(encoder, images), metadata={"model": folder.name})
    report.save(folder)
    report.plot(folder / "spectra.png")


def evaluate(folder: Path) -> None:
    features = LabelledFeatures.extract(
        load_encoder(str(folder), pretrained=True).eval(), *labelled_splits("digits", **SPLITS)
    )
    write_results(folder / "results.json", knn_results(features, k=5, temperatures=(0.07,)))


def change_block(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["orthossl"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def files_of(folder: Path, repo_id: str, results: list[Result] | None = None) -> dict[str, bytes]:
    """What publishing a folder commits, without the figure: path → content."""
    card = render_card(folder, repo_id=repo_id, results=results)
    contents = {name: path.read_bytes() for name, path in published_files(folder, {}, card).items()}
    contents["README.md"] = card.encode()
    if results is not None:
        contents["results.json"] = results_json(results).encode()
    evaluated = eval_result_files(folder, repo_id=repo_id, results=results)
    contents |= {path: text.encode() for path, text in evaluated.items()}
    return {path: content for path, content in contents.items() if not path.endswith(".png")}


class Variations:
    """Repositories that differ in name, method, penalty and numbers; their weights and spectra are those of a few.

    Args:
        folders (`list[Path]`): Of [`encoders`].
    """

    def __init__(self, folders: list[Path]):
        # Rendered once: a thousand cards differ in a few words.
        claims = [Result("knn", CIFAR, "test", "top1", 0.123456789, {"k": 20, "temperature": 0.07})]
        claims += [Result("linear", CIFAR, "test", "top1", 0.234567891, {"protocol": "sgd", "epochs": 100})]
        self.sources = [(files_of(folder, "owner/name", claims), folder) for folder in folders]

    def files(self, repo_id: str, number: int) -> dict[str, bytes]:
        rng = random.Random(number)
        files, folder = self.sources[number % len(self.sources)]
        config = json.loads((folder / "config.json").read_text())
        regularizer = (None, "so", "srip", "dso", "mc")[number % 5]
        config["orthossl"] |= {
            "method": ("simclr", "byol", "vicreg", "barlow_twins", "dino")[number // 5 % 5],
            "regularizer": regularizer,
            "gamma": regularizer and rng.choice([1e-6, 1e-5, 1e-4]),
            "dataset": (CIFAR, "imagenet-1k")[number // 25 % 2],
        }
        words = {
            b"0.123456789": b"%.4f" % rng.uniform(0.3, 0.9),
            b"0.234567891": b"%.4f" % rng.uniform(0.4, 0.95),
            b"owner/name": repo_id.encode(),
        }
        changed = dict(files) | {"config.json": json.dumps(config).encode()}
        for path in changed:
            if path.endswith((".md", ".yaml", "results.json")):
                for old, new in words.items():
                    changed[path] = changed[path].replace(old, new)
        return changed

    def fill(self, hub, count: int, owner: str = "tester") -> list[str]:
        """Adds repositories to a local Hub; returns their names."""
        names = [f"{owner}/encoder-{number:04d}" for number in range(count)]
        for number, name in enumerate(names):
            hub.add_repo(name, self.files(name, number))
        return names


def change(hub, repo_id: str, accuracy: float) -> None:
    """Another commit: the encoder's kNN accuracy is measured anew."""
    files = hub.files(repo_id)
    card, path = files["README.md"].decode(), ".eval_results/uoft_cs_cifar10-knn.yaml"
    old = next(line for line in files[path].decode().splitlines() if line.strip().startswith("value:")).split()[1]
    texts = {"README.md": card, path: files[path].decode(), "results.json": files["results.json"].decode()}
    hub.change(hub.repo(repo_id), {name: text.replace(old, f"{accuracy:.4f}") for name, text in texts.items()})


def set_size(hub, repo_id: str, path: str, size: int) -> None:
    """Lets the Hub announce another size for a file than it has."""
    tip = hub.repo(repo_id).head["main"]
    tip.files[path] = dataclasses.replace(tip.files[path], size=size)


def main() -> None:
    from local_hub import LocalHub

    from hf_orthossl.hub.leaderboard.board.collect import collect
    from hf_orthossl.hub.leaderboard.fetch import Fetcher

    parser = argparse.ArgumentParser(description="Collects many encoders from a local Hub; prints seconds, requests.")
    parser.add_argument("--count", type=int, default=1000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as place, LocalHub(Path(place) / "hub") as hub:
        names = Variations(encoders(Path(place) / "encoders")).fill(hub, count)
        for what in ("cold", "warm", "3 changed"):
            if what == "3 changed":
                for name in names[:3]:
                    change(hub, name, 0.5)
            hub.requests.clear()
            started, fetcher = time.perf_counter(), Fetcher(hub.url, False, Path(place) / "cache" / "pages")
            board = collect(Path(place) / "cache", fetcher=fetcher)
            seconds = time.perf_counter() - started
            print(
                f"{what:<10} {seconds:6.1f} s {len(hub.requests):6,} requests {len(board.entries):6,} entries "
                f"{len(board.rejected):4,} rejected",
                file=sys.stdout,
            )


if __name__ == "__main__":
    main()
