"""`orthossl leaderboard`: build, serve and deploy the board of published encoders, and measure claims again."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ..hub.client import check_repo_id, require_token
from ..hub.leaderboard.board.build import add_verification, build, check_folder, publish_verification
from ..hub.leaderboard.page.space import PACKAGE, deploy
from ..hub.measurements import protocol_text
from ..messages import suggest
from .parsing import parse

if TYPE_CHECKING:
    from ..hub.leaderboard.claims.remeasure import Verified

ACTIONS = {
    "build": "collect all encoders with the tag orthossl into a folder, and publish it as a data set",
    "serve": "show a board in the browser, from a folder or a data set",
    "deploy": "create or update a Space that shows a data set's board, updated from the Hub every hour",
    "verify": "measure an encoder's kNN, linear probes and spectra again, and compare with its author's claims",
}
DEFAULT_BOARD = "runs/leaderboard"
USAGE = "\n".join(
    [
        "usage: orthossl leaderboard ACTION [options]",
        "",
        "The board of encoders that were published with orthossl.",
        "",
        "actions:",
        *(f"  {name:<7} {text}" for name, text in ACTIONS.items()),
        "",
        "orthossl leaderboard ACTION --help lists an action's options.",
    ]
)


@dataclass
class BuildArguments:
    """The output folder of `build`, and the data set that it publishes."""

    output_dir: str = field(default=DEFAULT_BOARD, metadata={"help": "folder of the board and its cache"})
    push_to_hub: str | None = field(
        default=None, metadata={"help": "publish it as this data set", "metavar": "USER/NAME"}
    )


@dataclass
class ServeArguments:
    """The board that `serve` shows, and its address."""

    board: str = field(default=DEFAULT_BOARD, metadata={"help": "folder or data set of a board"})
    port: int = field(default=7860, metadata={"help": "port to listen on, 1–65535"})
    host: str = field(
        default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0 for all addresses of this machine"}
    )


@dataclass
class DeployArguments:
    """The Space that `deploy` creates or updates, and the board that it shows."""

    space: str | None = field(default=None, metadata={"help": "the Space", "metavar": "USER/NAME"})
    board: str | None = field(default=None, metadata={"help": "data set of the board", "metavar": "USER/NAME"})
    private: bool = field(default=False, metadata={"help": "make a new Space private"})
    package: str = field(
        default=PACKAGE,
        metadata={
            "help": "pip requirement of this package in the Space; if this release is not on PyPI: "
            f"'{PACKAGE} @ git+https://…'",
            "metavar": "REQUIREMENT",
        },
    )


@dataclass
class VerifyArguments:
    """The encoder that `verify` measures again, and the data."""

    model: str = field(metadata={"positional": True, "metavar": "MODEL", "help": "Hub id, optionally with @revision"})
    dataset: str | None = field(
        default=None, metadata={"help": "Hub id, folder or 'digits' (default: what the claims name)"}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "configuration of a Hub data set"})
    train_split: str | None = field(default=None, metadata={"help": "split to train probes on (default: train)"})
    test_split: str | None = field(default=None, metadata={"help": "split to score them on (default: as claimed)"})
    image_column: str | None = field(default=None, metadata={"help": "column of images (default: found by type)"})
    label_column: str | None = field(default=None, metadata={"help": "column of labels (default: found by type)"})
    device: str | None = field(default=None, metadata={"help": "such as cpu or cuda (default: cuda if there is a GPU)"})
    output_dir: str = field(
        default=DEFAULT_BOARD, metadata={"help": "folder of the board; the result is added to its verified.json"}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "add the result to this board's data set", "metavar": "USER/NAME"}
    )


def main(argv: list[str]) -> None:
    """Run one of the actions."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    known = {"build": build_board, "serve": serve_board, "deploy": deploy_board, "verify": verify_model}
    if argv[0] not in known:
        raise ValueError(f"unknown action {argv[0]!r}: {suggest(argv[0], ACTIONS)}")
    known[argv[0]](argv[1:])


def build_board(argv: list[str]) -> None:
    """Build a board, and publish it if asked to."""
    args = _parse("build", BuildArguments, argv)
    with tqdm(desc="encoders", dynamic_ncols=True, leave=False) as bar:

        def progress(done: int, count: int) -> None:
            bar.total, bar.n = count, done
            bar.refresh()

        built = build(args.output_dir, args.push_to_hub, publish=args.push_to_hub is not None, progress=progress)
    board = built.board
    print(
        f"collected  {len(board.entries):,} encoders, rejected {len(board.rejected):,}, from {board.endpoint}, in "
        f"{built.seconds:.1f} s and {built.requests:,} requests"
    )
    for one in board.rejected[:10]:
        print(f"  rejected  {one.repo_id}: {one.field}: {one.reason}")
    if len(board.rejected) > 10:
        print(f"  and {len(board.rejected) - 10:,} more, all in board.json")
    print(f"board      {built.folder}")
    if built.url:
        print(f"published  {built.url}")


def serve_board(argv: list[str]) -> None:
    """Serve a board until interrupted."""
    args = _parse("serve", ServeArguments, argv)
    if not 0 < args.port < 65536:
        raise ValueError(f"port must be 1–65535, got {args.port}")
    try:
        from ..hub.leaderboard.page.app import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the board's page needs gradio: pip install 'hf_orthossl[leaderboard]'") from error
    # The default always means the folder, never a data set of the same name.
    board = Path(DEFAULT_BOARD) if args.board == DEFAULT_BOARD else args.board
    # Imported only when needed, because it takes seconds.
    from ..regularization import PENALTIES

    titles = {name: penalty.title for name, penalty in PENALTIES.items()}
    serve(board, args.port, host=args.host, penalties=titles)


def deploy_board(argv: list[str]) -> None:
    """Create or update a Space that shows a board."""
    args = _parse("deploy", DeployArguments, argv)
    check_repo_id(args.space, "--space")
    check_repo_id(args.board, "--board")
    url, to_do = deploy(args.space, args.board, package=args.package, private=args.private)
    print(f"deployed  {url}, which shows {args.board}")
    if to_do:
        print(f"to do     {to_do}")


def verify_model(argv: list[str]) -> None:
    """Measure an encoder again, print claims beside measurements, and keep the result."""
    args = _parse("verify", VerifyArguments, argv)
    if args.push_to_hub is not None:
        check_repo_id(args.push_to_hub, "--push_to_hub")
        require_token()
    check_folder(args.output_dir)
    # Modules that need torch are imported once the options have been checked.
    from ..evaluation import FeatureCache
    from ..hub.leaderboard.claims.remeasure import Data, verify

    splits = {"train_split": args.train_split, "test_split": args.test_split}
    columns = {"image_column": args.image_column, "label_column": args.label_column}
    data = Data(dataset=args.dataset, name=args.dataset_name, **splits, **columns)
    verified = verify(args.model, data, device=args.device, cache=FeatureCache(), progress=True)
    print(verified_table(verified))
    print(f"results    {add_verification(Path(args.output_dir), verified.verification)}")
    if args.push_to_hub:
        print(f"published  {publish_verification(args.push_to_hub, verified.verification)}")


def verified_table(verified: "Verified") -> str:
    """Return claims beside measurements as text for a terminal, with the verdict in words."""
    rows = [("what", "claimed", "measured", "95 % interval", "difference", "")]
    for pair in verified.compared:
        claimed, measured = pair.claimed, pair.measured
        one = claimed or measured
        assert one is not None
        bounds = "–" if measured is None or measured.low is None else f"{measured.low:.4f} to {measured.high:.4f}"
        verdicts = {True: "agrees", False: "DIFFERS: beyond the interval", None: ""}
        rows.append(
            (
                f"{one.task} {one.metric} on {one.dataset}, {one.split}, {protocol_text(one)}",
                "–" if claimed is None else f"{claimed.value:.4f}",
                "–" if measured is None else f"{measured.value:.4f}",
                bounds,
                "–" if pair.difference is None else f"{pair.difference:+.4f}",
                verdicts[pair.agrees] or ("not measured again" if measured is None else "not claimed"),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    entry, wrong = verified.entry, verified.verification.spectra
    spectra = {None: "not measured again", "": "agree with the published weights"}.get(wrong, f"DIFFER: {wrong}")
    claims = [pair for pair in verified.compared if pair.claimed]
    count = sum(pair.measured is not None for pair in claims)
    lines = [f"{entry.repo_id} at {entry.revision[:10]}", "", *lines, ""]
    lines += [f"claims     {count} of {len(claims)} measured again", f"spectra    {spectra}"]
    lines += [f"rejected   {one.field}: {one.reason}" for one in verified.rejected]
    return "\n".join([*lines, *(f"note       {note}" for note in verified.notes)])


def _parse(action: str, kind: type, argv: list[str]):
    (args,), _ = parse(f"orthossl leaderboard {action}", ACTIONS[action].capitalize() + ".", [kind], argv)
    return args
