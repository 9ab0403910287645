"""A board of encoders that were really trained, measured and published, beside hostile repositories. By hand:

    OMP_NUM_THREADS=1 python tests/support/leaderboard_real.py --count 50 --output_dir runs/real_board
    orthossl leaderboard serve --board runs/real_board/board

Each encoder goes through `orthossl pretrain`, `publish` and `evaluate --push_to_hub` on scikit-learn's digits, against
a Hub on loopback; a few are verified. Some train long, some not at all, some collapse.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from local_hub import LocalHub

METHODS = (
    *("simclr", "dcl", "dclw", "nnclr", "mocov2plus", "mocov3", "byol"),
    *("nnbyol", "simsiam", "dino", "barlowtwins", "vicreg", "swav"),
)
OWNERS = ("ada", "emmy", "grace", "lise", "sofia")
# Penalty → options; larger γ than a long run would take, as these are short.
PENALTIES = {
    "none": ["--regularizer", "none"],
    "so": ["--regularizer", "so", "--gamma", "1e-4"],
    "srip": ["--regularizer", "srip", "--gamma", "1e-2"],
}
BACKBONES = {
    "resnet10t": ["--backbone_config", "channels=[16,32,64,128]"],
    "test_vit": [],
    "test_convnext": [],
    # Its own size is that of the digits.
    "resnet18_cifar": ["--image_size", "8"],
    "tiny-hf-vit": [],
}
COLLAPSING = ["--optim", "sgd", "--learning_rate", "1", "--weight_decay", "0.5", "--warmup_steps", "0"]


@dataclass(frozen=True)
class Plan:
    """One encoder: `rank` is what its last stage's weights are cut to after training, if at all."""

    backbone: str
    method: str
    penalty: str
    steps: int
    options: tuple[str, ...] = ()
    rank: int | None = None

    @property
    def name(self) -> str:
        parts = [self.backbone.replace("_", "-"), "digits", self.method, self.penalty if self.penalty != "none" else ""]
        parts += ["untrained" if not self.steps else f"{self.steps}steps"]
        parts += ["decayed"] if self.options else []
        return "-".join(filter(None, parts)) + (f"-rank{self.rank}" if self.rank else "")


def plans() -> list[Plan]:
    """Fifty, those that differ most first."""
    kinds = itertools.cycle(("so", "srip"))
    trained = [Plan("resnet10t", method, kind, 60) for method in METHODS for kind in ("none", next(kinds))]
    collapsed = [Plan("resnet10t", method, "none", 40, tuple(COLLAPSING)) for method in ("byol", "simsiam")]
    collapsed += [Plan("resnet10t", "simclr", "none", 60, rank=rank) for rank in (1, 4)]
    other = [Plan("resnet18_cifar", "simclr", "so", 10), Plan("tiny-hf-vit", "simclr", "none", 20)]
    other += [Plan("test_vit", method, kind, 40) for method in ("byol", "dino", "mocov3") for kind in ("none", "so")]
    other += [Plan("test_convnext", "vicreg", kind, 40) for kind in ("none", "srip")]
    shorter = [Plan("resnet10t", method, "so", steps) for method in ("simclr", "byol") for steps in (0, 5, 20)]
    longer = [Plan("resnet10t", method, "so", 120) for method in ("simclr", "vicreg", "barlowtwins")]
    longer += [Plan("resnet10t", "simclr", "none", 120)]
    rest = [*trained, *shorter, *longer]
    return [*collapsed, *other, *rest]


def make(plan: Plan, folder: Path, seed: int) -> Path:
    """Trains one encoder; returns its run folder."""
    from leaderboard_repos import cut_rank

    backbone = str(tiny_hf_vit(folder.parent / plan.backbone)) if plan.backbone == "tiny-hf-vit" else plan.backbone
    # What no step has trained is what a step of no length leaves.
    steps = ["--max_steps", str(plan.steps)] if plan.steps else ["--max_steps", "1", "--learning_rate", "0"]
    orthossl(
        *("pretrain", "--backbone", backbone, "--image_size", "32", "--method", plan.method, *steps),
        *(*BACKBONES[plan.backbone], *PENALTIES[plan.penalty], *plan.options),
        *("--per_device_train_batch_size", "64", "--seed", str(seed), "--output_dir", str(folder)),
        *("--overwrite_output", "--report_to", "none", "--disable_tqdm", "True"),
    )
    if plan.rank:
        cut_rank(folder / "encoder", plan.rank)
    return folder


def tiny_hf_vit(folder: Path) -> Path:
    """A ViT of transformers, too small to be anyone's."""
    from transformers import ViTConfig

    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    ViTConfig(image_size=32, patch_size=8, **sizes).save_pretrained(folder)
    return folder


def orthossl(*argv: str) -> str:
    """What a command prints; what it says beside that is shown if it fails."""
    from hf_orthossl.cli import main

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(list(argv))
    except SystemExit as error:
        raise RuntimeError(f"orthossl {' '.join(argv)}: {err.getvalue()[-2000:]}") from error
    return out.getvalue()


def publish(hub: LocalHub, plan: Plan, run: Path, number: int) -> str:
    """To one of several owners."""
    repo_id = f"{OWNERS[number % len(OWNERS)]}/{plan.name}"
    log_in(hub, repo_id)
    orthossl("publish", str(run), "--repo_id", repo_id, "--license", "apache-2.0")
    orthossl("evaluate", repo_id, "--push_to_hub", "--k", "20", "--epochs", "40", "--output_dir", str(run / "evaluate"))
    return repo_id


def log_in(hub: LocalHub, repo_id: str) -> None:
    """As the owner of a repository, who alone may write to it."""
    owner = repo_id.split("/")[0]
    token = f"hf_{owner:x<20}"
    hub.tokens[token] = (owner, True)
    os.environ["HF_TOKEN"] = token


def boast(hub: LocalHub, repo_id: str) -> None:
    """A claim that no re-run will bear out, in an encoder that is what it is otherwise."""
    from huggingface_hub import hf_hub_download

    from hf_orthossl.evaluation import read_results
    from hf_orthossl.hub import publish_results

    log_in(hub, repo_id)
    results = read_results(hf_hub_download(repo_id, "results.json"))
    lies = [result for result in results if (result.task, result.metric) == ("linear", "top1")]
    for lie in lies:
        lie.protocol.pop("interval", None)
    publish_results(repo_id, [dataclasses.replace(lie, value=0.997) for lie in lies])


def add_hostile(hub: LocalHub, good: str) -> int:
    from leaderboard_hostile import hostile_repos

    files = {path: content for path, content in hub.files(good).items() if not path.endswith(".png")}
    repos = list(hostile_repos(lambda name: files, "/nowhere/was-run"))
    for repo in repos:
        hub.add_repo(f"stranger/{repo.name}", repo.files)
        if repo.after:
            repo.after(hub, f"stranger/{repo.name}")
    return len(repos)


def seed(hub: LocalHub, folder: Path, count: int) -> None:
    """Fills a Hub, builds its board, verifies some of it, and builds it again."""
    published, board = [], folder / "board"
    for number, plan in enumerate(itertools.islice(itertools.cycle(plans()), count)):
        started, run = time.perf_counter(), folder / "runs" / plan.name
        published.append(publish(hub, plan, make(plan, run, number), number))
        results = json.loads((run / "evaluate" / "results.json").read_text())
        found = {result["task"]: result["value"] for result in results if result["metric"] == "top1"}
        seconds = time.perf_counter() - started
        print(f"{number + 1:3} {plan.name:<44} {seconds:5.1f} s  {found}", file=sys.stderr, flush=True)
    print(f"{add_hostile(hub, published[-1])} hostile repositories", file=sys.stderr)
    boast(hub, published[0])
    print(orthossl("leaderboard", "build", "--output_dir", str(board)))
    for repo_id in dict.fromkeys((published[0], *published[-4:])):
        print(orthossl("leaderboard", "verify", repo_id, "--output_dir", str(board)))
    print(orthossl("leaderboard", "build", "--output_dir", str(board)))


def main() -> None:
    parser = argparse.ArgumentParser(description="A board of encoders that were really trained and published.")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/real_board"))
    arguments = parser.parse_args()
    folder = arguments.output_dir.resolve()
    (folder / "hub").mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with LocalHub(folder / "hub") as hub:
        # Read by the libraries when they are imported, which is why nothing above imports them.
        os.environ.update(hub.environment(folder / "home"))
        seed(hub, folder, arguments.count)
    print(f"{time.perf_counter() - started:.0f} s; the board: orthossl leaderboard serve --board {folder / 'board'}")


if __name__ == "__main__":
    main()
