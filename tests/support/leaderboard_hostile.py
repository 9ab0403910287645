"""Repositories that strangers might make to break the board, or to shine on it: what each tries, and where it ends."""

import itertools
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from leaderboard_repos import CIFAR, set_size

from hf_orthossl.hub.leaderboard.claims.parse import parse_arrays

EVAL, OURS = ".eval_results/uoft_cs_cifar10-knn.yaml", "results.json"
SCRIPT = "<script>document.title=1</script>"
IMAGE = '"><img src=x onerror="document.title=1">'


@dataclass(frozen=True)
class Hostile:
    """One repository.

    Args:
        name (`str`): Of the repository, without its owner.
        tries (`str`): What it is up to.
        files (`dict`): Its files.
        is_entry (`bool`): Whether it still has a place in the table, without what is bad about it.
        reason (`str`): Words of the reason for which (a part of) it is rejected; empty if nothing is.
        after (callable, *optional*): What is done to the Hub once the repository is there.
    """

    name: str
    tries: str
    files: dict[str, bytes]
    is_entry: bool
    reason: str
    after: Callable | None = field(default=None, repr=False)


class Marker:
    """Unpickled, it leaves a file: nobody may do that."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def hostile_repos(good: Callable[[str], dict[str, bytes]], marker: str) -> Iterator[Hostile]:
    """All of them.

    Args:
        good (callable): Name of a repository → files of a sound encoder.
        marker (`str`): Path that exists if something was run.
    """

    def make(name: str, tries: str, changes: dict, is_entry: bool, reason: str, after=None) -> Hostile:
        files = dict(good(f"stranger/{name}"))
        for path, content in changes.items():
            content = content(files.get(path)) if callable(content) else content
            files[path] = content.encode() if isinstance(content, str) else content
        return Hostile(name, tries, {p: c for p, c in files.items() if c is not None}, is_entry, reason, after)

    def block(**changes):
        def write(old: bytes) -> str:
            config = json.loads(old)
            config["orthossl"] |= changes
            return json.dumps(config)

        return {"config.json": write}

    def result(value="0.5", dataset=CIFAR, task="knn_top1", notes="split = test, k = 1", more="") -> str:
        return f"- dataset: {{id: {dataset}, task_id: {task}}}\n  value: {value}\n  notes: '{notes}'\n{more}"

    def index(value, dataset="digits", args="{task: knn, protocol: k = 7}", metric="accuracy") -> Callable:
        entry = (
            f"model-index:\n- name: x\n  results:\n  - task: {{type: t, name: n}}\n    dataset: {{name: d, type: "
            f"{dataset}, split: test}}\n    metrics:\n    - {{type: {metric}, value: {value}, args: {args}}}\n"
        )
        return lambda old: f"---\ntags:\n- orthossl\n{entry}---\n# card\n"

    def spectra(change: Callable[[dict], None]):
        def write(old: bytes) -> str:
            content = json.loads(old)
            change(content)
            return json.dumps(content)

        return {"spectra.json": write}

    plain = {"task": "knn", "dataset": "digits", "split": "test", "metric": "top1", "value": 0.5, "k": 1}

    def ours(drop=(), **changes) -> dict:
        """A results.json of one result."""
        entry = {name: value for name, value in (plain | changes).items() if name not in drop}
        return {OURS: json.dumps([entry]), EVAL: None, "README.md": "---\ntags:\n- orthossl\n---\n"}

    def lies(content: dict) -> None:
        content["features"]["representation"]["effective_rank"] = 15.9

    def gives_nan(content: dict) -> None:
        content["features"]["representation"]["rankme"] = float("nan")

    def is_wider(content: dict) -> None:
        content["features"]["representation"]["dim"] = 2048

    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    names = "abcdefghijkl"
    for one, other in itertools.pairwise(names):
        bomb += f"{other}: &{other} [{','.join([f'*{one}'] * 9)}]\n"

    yield make("script-in-names", "script and HTML in every name", block(backbone=SCRIPT, dataset=IMAGE), True, "")
    yield make("script-in-yaml", "HTML in results", {EVAL: result(notes=f"split = {SCRIPT[:50]}, k = 1")}, True, "")
    yield make("script-in-card", "HTML in a card's data set", {"README.md": index(0.5, json.dumps(IMAGE))}, True, "")
    yield make(
        "script-in-tags",
        "HTML in tags and card text",
        {"README.md": f"---\ntags:\n- orthossl\n- '{SCRIPT}'\n---\n{SCRIPT}{IMAGE}\n"},
        True,
        "",
    )
    yield make("javascript-link", "links that run code", block(dataset="javascript:alert(1)"), True, "")
    yield make("formula", "a spreadsheet formula", block(dataset="=HYPERLINK('http://x','y')"), True, "")
    yield make("bomb-in-results", "a YAML bomb in a result", {EVAL: bomb}, True, "anchors or aliases")
    bombed = f"---\ntags:\n- orthossl\n{bomb}model-index: *l\n---\n# card\n"
    yield make("bomb-in-card", "a YAML bomb in the card", {"README.md": bombed}, True, "anchors or aliases")
    yield make("deep-yaml", "YAML nested 10,000 deep", {EVAL: "[" * 10_000 + "]" * 10_000}, True, EVAL)
    python = f"!!python/object/apply:os.system ['touch {marker}']\n"
    yield make("python-in-yaml", "a Python object in YAML", {EVAL: f"- {python}"}, True, "Python object")
    yield make("deep-json", "JSON nested 100,000 deep", {"config.json": "[" * 100_000}, False, "is not JSON")
    yield make("huge-file", "a spectra.json of 100 MB", {"spectra.json": b" " * 100_000_000}, True, "100,000,000 bytes")
    yield make(
        "lying-size",
        "more bytes than announced",
        {EVAL: "#" * 3_000_000},
        True,
        "than the 262,144 that are read",
        lambda hub, name: set_size(hub, name, EVAL, 10),
    )
    tricks = dict.fromkeys(("../../etc/passwd", "/etc/passwd", ".eval_results/../../evil.yaml", "a\\..\\b.yaml"), "x")
    yield make("path-tricks", "file names that leave the folder", tricks, True, "would leave their folder")
    yield make(
        "eval-flood",
        "hundreds of result files",
        {f".eval_results/{number}.yaml": result(notes=f"split = test, k = {number}") for number in range(300)},
        True,
        "300 files, 32 are read",
    )
    yield make("results-flood", "10,000 results in a file", {EVAL: result() * 10_000}, True, "262,144 that are read")
    evil = pickle.dumps(Marker(marker))
    gone = {"pytorch_model.bin": evil, "model.safetensors": lambda old: None}
    yield make("pickle-only", "a pickle for weights", gone, False, "only safetensors")
    yield make("pickle-beside", "a pickle beside the weights", {"training_args.bin": evil}, True, "can run code")
    yield make("percent", "an accuracy of 87.5", {EVAL: result("87.5")}, True, "from 0 to 1, got 87.5")
    yield make("nan", "no number", {EVAL: result(".nan"), "README.md": index(".inf")}, True, "got nan")
    yield make("huge-float", "numbers beyond all floats", {EVAL: result("1.0e+999")}, True, "got inf")
    yield make("huge-integer", "an integer of 1,000 digits", {EVAL: result("9" * 1000)}, True, "from 0 to 1")
    yield make("huge-gamma", "a γ of 400 digits", block(gamma=10**400), True, "gamma")
    yield make("script-in-remedy", "HTML for a regularizer", block(embedding_regularizer=SCRIPT), True, "")
    yield make(
        "unknown-mode", "a mode of its own", block(penalty_mode="by magic"), True, "must be one of loss, decoupled"
    )
    yield make("unknown-constraint", "a constraint of its own", block(constrain=[IMAGE]), True, "must be one of orthog")
    yield make("negative-whitening", "a negative weight", block(whitening=-1.0), True, "must be a number from 0 to")
    yield make("text-as-number", "text for a number", {EVAL: result("'0.99'")}, True, "got '0.99'")
    yield make("no-protocol", "a number without its protocol", {EVAL: result(notes="")}, True, "protocol")
    card = index(0.5, args="{task: knn}")
    yield make("no-protocol-in-card", "the same in the card", {"README.md": card}, True, "without its protocol")
    yield make(
        "unknown-task", "a task of its own", {EVAL: result(task="best_of_all")}, True, "is not ranked by this board"
    )
    yield make("unknown-metric", "a metric of its own", {"README.md": index(0.5, metric="greatness")}, True, "metric")
    yield make(
        "contradiction",
        "two numbers for one thing",
        {EVAL: result("0.99", "digits/x", notes="split = test, k = 7"), "README.md": index(0.2, "digits/x")},
        True,
        "contradicts itself: .eval_results says 0.99, model-index says 0.2",
    )
    yield make("interval", "an interval elsewhere", ours(interval=[0.7, 0.8]), True, "0.7 to 0.8 does not hold")
    yield make("no-interval", "an interval of text", ours(interval=["a", {}]), True, "")
    yield make("json-percent", "an accuracy of 87.5 in results.json", ours(value=87.5), True, "from 0 to 1, got 87.5")
    yield make("json-nan", "no number in results.json", ours(value=float("nan")), True, "got 'nan'")
    yield make("json-infinity", "infinity in a protocol", ours(k=float("inf")), True, "finite")
    yield make("json-huge-integer", "400 digits in results.json", ours(value=10**400), True, "value must be a finite")
    yield make("json-huge-protocol", "a protocol of 1e200", ours(k=1e200), True, "must hold numbers and texts")
    yield make("json-true", "true for a value", ours(value=True), True, "value must be a finite number")
    many = ours(**{f"name{number}": number for number in range(10_000)})
    yield make("json-many-settings", "a protocol of 10,000 entries", many, True, "10,001 entries, more than 40")
    yield make("json-nested", "a nested protocol", ours(k={"a": [1]}), True, "must hold numbers and texts")
    yield make("json-deep", "a deep protocol", ours(k=[[[[[[1]]]]]]), True, "k must hold finite numbers")
    yield make("json-bottomless", "a results.json nested 100,000 deep", {OURS: "[" * 100_000}, True, "is not JSON")
    yield make("json-long-text", "a text of 100,000 letters", ours(protocol="x" * 100_000), True, "protocol must hold")
    yield make("json-no-list", "an object for results", {OURS: "{}"}, True, "must be a list")
    yield make("json-no-result", "numbers for results", {OURS: "[1, null, []]"}, True, "must be an object, got int")
    yield make("json-unknown-task", "a task of its own", ours(task="best_of_all"), True, "must be one of knn, linear")
    yield make("json-unknown-metric", "a metric of its own", ours(metric="greatness"), True, "must be one of top1")
    yield make(
        "json-no-protocol", "a number without its protocol", ours(k=None, drop=["k"]), True, "without its protocol"
    )
    yield make("json-training-split", "a number on training images", ours(split="train"), True, "was learned from")
    yield make("json-look-alike", "a Cyrillic е in a data set", ours(dataset="t\u0435st"), True, "look like others")
    yield make("json-script", "HTML in a protocol", ours(protocol=SCRIPT, **{IMAGE[:50]: IMAGE}), True, "")
    yield make("json-bidi", "text that runs backwards", ours(protocol="a\u202eb\u0000c"), True, "")
    forged = ours(source="board", low=0.9, high=0.99, date="2026-01-01", revision="0" * 40, verified=True)
    yield make("json-forged-source", "a claim as this board's number", forged, True, "")
    flood = json.dumps([plain | {"k": number} for number in range(3000)])
    yield make("json-flood", "3,000 results in results.json", {OURS: flood}, True, "has 3000 numbers, 2000 are read")
    twice = json.dumps([plain, plain | {"value": 0.9}])
    yield make("json-twice", "two numbers for one thing", {OURS: twice}, True, "results.json again says 0.9")
    both = {OURS: json.dumps([plain]), "README.md": index(0.9, args="{task: knn, k: 1.0}")}
    yield make("json-and-card", "another number in the card", both, True, "model-index says 0.9, results.json says 0.5")
    training = {OURS: json.dumps([plain | {"dataset": CIFAR, "split": "train"}])}
    training[EVAL] = result("0.5", notes="split = train, k = 1")
    training["README.md"] = "---\ntags:\n- orthossl\n---\n"
    yield make("json-training-yaml", "a number on training images, twice", training, True, "was learned from")
    both = {OURS: json.dumps([plain | {"dataset": CIFAR}]), EVAL: result("0.9")}
    yield make(
        "json-and-yaml", "another number for the Hub", both, True, ".eval_results says 0.9, results.json says 0.5"
    )
    yield make("look-alike", "a Cyrillic е in a backbone", block(backbone="r\u0435snet50"), False, "look like others")
    yield make("bidi", "text that runs backwards", block(dataset="cifar\u202e01"), True, "look like others")
    yield make("invisible", "letters that cannot be seen", block(method="by\u200bol"), False, "look like others")
    yield make("endless-name", "a name of 100,000 letters", block(method="x" * 100_000), False, "longer than 40")
    yield make("lines", "line breaks in a name", block(backbone="a\nb\x00c"), False, "look like others")
    yield make("wrong-types", "objects for names", block(backbone={"a": 1}, method=["x"]), False, "must be a name")
    yield make("tag-alone", "the tag and nothing else", {"config.json": "{}"}, False, "no orthossl block")
    yield make("no-config", "no config.json", {"config.json": lambda old: None}, False, "config.json")
    yield make("spectra-lie", "an effective rank above its curve's", spectra(lies), True, "their own curve gives")
    yield make("spectra-nan", "NaN in the spectra", spectra(gives_nan), True, "rankme")
    yield make("spectra-wider", "spectra of another width", spectra(is_wider), True, "eigenvalues")
    yield make("spectra-alone", "numbers without curves", {"spectra.safetensors": b""}, True, "not a safetensors")
    header = struct.pack("<Q", 2**60)
    yield make(
        "spectra-header", "a header of exabytes", {"spectra.safetensors": header}, True, "not a safetensors file"
    )
    yield make("spectra-offsets", "arrays outside the file", {"spectra.safetensors": _overlapping()}, True, "no curve")
    yield make("no-spectra-json", "spectra that are no JSON", {"spectra.json": "{" * 5000}, True, "is not JSON")
    yield make("binary-card", "a card of random bytes", {"README.md": _binary}, True, "")


def stolen_spectra(own: dict[str, bytes], other: dict[str, bytes]) -> dict[str, bytes]:
    """Files of one encoder with the spectra of another of the same architecture: only the weights tell."""
    return own | {name: other[name] for name in ("spectra.json", "spectra.safetensors")}


def _overlapping() -> bytes:
    header = json.dumps(
        {"features/representation/eigenvalues": {"dtype": "F64", "shape": [16], "data_offsets": [2**50, 2**50 + 128]}}
    ).encode()
    content = struct.pack("<Q", len(header)) + header
    assert parse_arrays(content, "x") == {}
    return content


def _binary(old: bytes) -> bytes:
    return b"---\ntags:\n- orthossl\n---\n" + np.random.default_rng(0).bytes(5000)


def main() -> None:
    """Prints what each repository tried, and where it ended."""
    import tempfile
    from pathlib import Path

    from leaderboard_repos import encoders, files_of
    from local_hub import LocalHub

    from hf_orthossl.hub.leaderboard.board.collect import collect
    from hf_orthossl.hub.leaderboard.fetch import Fetcher

    with tempfile.TemporaryDirectory() as place, LocalHub(Path(place) / "hub") as hub:
        sound = encoders(Path(place) / "encoders")[0]
        repos = list(hostile_repos(lambda name: files_of(sound, name), f"{place}/was-run"))
        for repo in repos:
            hub.add_repo(f"stranger/{repo.name}", repo.files)
            if repo.after:
                repo.after(hub, f"stranger/{repo.name}")
        board = collect(Path(place) / "cache", fetcher=Fetcher(hub.url, False))
        listed = {entry.repo_id for entry in board.entries}
        for repo in repos:
            name = f"stranger/{repo.name}"
            reasons = [f"{one.field}: {one.reason}" for one in board.rejected if one.repo_id == name]
            ended = "in the table" if name in listed else "left out"
            print(f"| {repo.tries} | {ended} | {reasons[0] if reasons else 'shown as text'} |")
        print(f"\n{len(repos)} repositories; something was run: {(Path(place) / 'was-run').exists()}")


if __name__ == "__main__":
    main()
