"""`orthossl leaderboard`: builds, serves and deploys the board of published encoders, and measures its claims again."""

from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from ..hub.client import check_repo_id, require_token
from ..hub.leaderboard.building import add_verification, build, check_folder, publish_verification
from ..hub.leaderboard.space import PACKAGE, deploy
from ..messages import suggest
from .parsing import parse

ACTIONS = {
    "build": "collect all encoders with the tag orthossl into a folder, and publish it as a data set",
    "serve": "show a board in the browser, from a folder or a data set",
    "deploy": "create or update a Space that shows a data set's board and reads the Hub anew every hour",
    "verify": "measure an encoder's kNN, linear probes and spectra again, and compare with what its author claims",
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
    """Where the board goes."""

    output_dir: str = field(default=DEFAULT_BOARD, metadata={"help": "folder of the board, and of what is kept"})
    push_to_hub: str | None = field(
        default=None, metadata={"help": "publish it as this data set", "metavar": "USER/NAME"}
    )


@dataclass
class ServeArguments:
    """What to show."""

    board: str = field(default=DEFAULT_BOARD, metadata={"help": "folder or data set of a board"})
    port: int = field(default=7860, metadata={"help": "where to listen"})
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0 is every one there is"})


@dataclass
class DeployArguments:
    """Which Space shows which board."""

    space: str | None = field(default=None, metadata={"help": "the Space", "metavar": "USER/NAME"})
    board: str | None = field(default=None, metadata={"help": "data set of the board", "metavar": "USER/NAME"})
    private: bool = field(default=False, metadata={"help": "make a new Space private"})
    package: str = field(
        default=PACKAGE,
        metadata={
            "help": "what the Space installs, one line of requirements.txt; where that release is not on PyPI: "
            f"'{PACKAGE} @ git+https://…'",
            "metavar": "REQUIREMENT",
        },
    )


@dataclass
class VerifyArguments:
    """What to measure again on what."""

    model: str = field(metadata={"positional": True, "metavar": "MODEL", "help": "Hub id, with @revision at will"})
    dataset: str | None = field(
        default=None, metadata={"help": "Hub id, folder or 'digits' (default: what the claims name)"}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "configuration of a Hub data set"})
    train_split: str | None = field(default=None, metadata={"help": "what probes learn from (default: train)"})
    test_split: str | None = field(default=None, metadata={"help": "what they are scored on (default: as claimed)"})
    image_column: str | None = field(default=None, metadata={"help": "column of images (default: found by type)"})
    label_column: str | None = field(default=None, metadata={"help": "column of labels (default: found by type)"})
    device: str | None = field(default=None, metadata={"help": "such as cpu (default: cuda where there is one)"})
    output_dir: str = field(
        default=DEFAULT_BOARD, metadata={"help": "folder of the board; its verified.json is added to"}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "add it to this board's data set", "metavar": "USER/NAME"}
    )


def main(argv: list[str]) -> None:
    """Runs one of the actions."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    known = {"build": build_board, "serve": serve_board, "deploy": deploy_board, "verify": verify_model}
    if argv[0] not in known:
        raise ValueError(f"no action {argv[0]!r}: {suggest(argv[0], ACTIONS)}")
    known[argv[0]](argv[1:])


def build_board(argv: list[str]) -> None:
    args = _parse("build", BuildArguments, argv)
    with tqdm(desc="encoders", dynamic_ncols=True, leave=False) as bar:

        def progress(done: int, count: int) -> None:
            bar.total, bar.n = count, done
            bar.refresh()

        built = build(args.output_dir, args.push_to_hub, publish=args.push_to_hub is not None, progress=progress)
    board = built.board
    print(
        f"collected  {len(board.entries):,} encoders and {len(board.asides):,} left out, from {board.endpoint}, in "
        f"{built.seconds:.1f} s and {built.requests:,} requests"
    )
    for aside in board.asides[:10]:
        print(f"  left out  {aside.repo_id}: {aside.field}: {aside.reason}")
    if len(board.asides) > 10:
        print(f"  and {len(board.asides) - 10:,} more, all in board.json")
    print(f"board      {built.folder}")
    if built.url:
        print(f"published  {built.url}")


def serve_board(argv: list[str]) -> None:
    args = _parse("serve", ServeArguments, argv)
    if not 0 < args.port < 65536:
        raise ValueError(f"port {args.port} is none: pass one from 1 to 65535")
    try:
        from ..hub.leaderboard.app import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the board's page needs gradio: pip install 'hf_orthossl[leaderboard]'") from error
    # Nobody who leaves it out means the data set of this name.
    serve(Path(DEFAULT_BOARD) if args.board == DEFAULT_BOARD else args.board, args.port, host=args.host)


def deploy_board(argv: list[str]) -> None:
    args = _parse("deploy", DeployArguments, argv)
    check_repo_id(args.space, "--space")
    check_repo_id(args.board, "--board")
    url, left = deploy(args.space, args.board, package=args.package, private=args.private)
    print(f"deployed  {url}, which shows {args.board}")
    if left:
        print(f"to do     {left}")


def verify_model(argv: list[str]) -> None:
    args = _parse("verify", VerifyArguments, argv)
    if args.push_to_hub is not None:
        check_repo_id(args.push_to_hub, "--push_to_hub")
        require_token()
    check_folder(args.output_dir)
    # What needs torch is imported once the options are known to be good.
    from ..evaluation import FeatureCache
    from ..hub.leaderboard.remeasure import Data
    from ..hub.leaderboard.verify import verify

    splits = {"train_split": args.train_split, "test_split": args.test_split}
    columns = {"image_column": args.image_column, "label_column": args.label_column}
    data = Data(dataset=args.dataset, name=args.dataset_name, **splits, **columns)
    found = verify(args.model, data, device=args.device, cache=FeatureCache(), progress=True)
    print(verified_table(found))
    print(f"results    {add_verification(Path(args.output_dir), found.verification)}")
    if args.push_to_hub:
        print(f"published  {publish_verification(args.push_to_hub, found.verification)}")


def verified_table(found) -> str:
    """Claims beside what was measured, as text for a terminal; what differs is said in words."""
    rows = [("what", "claimed", "measured", "95 % interval", "difference", "")]
    for pair in found.compared:
        one = pair.claimed or pair.measured
        measured, claimed = pair.measured, pair.claimed
        within = "–" if measured is None or measured.low is None else f"{measured.low:.4f} to {measured.high:.4f}"
        verdict = {True: "agrees", False: "DIFFERS: beyond the interval"}.get(pair.agrees)
        rows.append(
            (
                f"{one.task} {one.metric} on {one.dataset}, {one.split}, {one.protocol}",
                "–" if claimed is None else f"{claimed.value:.4f}",
                "–" if measured is None else f"{measured.value:.4f}",
                within,
                "–" if pair.difference is None else f"{pair.difference:+.4f}",
                verdict or ("not measured again" if measured is None else "not claimed"),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    entry, wrong = found.entry, found.verification.spectra
    spectra = {None: "not taken again", "": "agree with the published weights"}.get(wrong, f"DIFFER: {wrong}")
    claims = [pair for pair in found.compared if pair.claimed]
    again = sum(pair.measured is not None for pair in claims)
    told = [f"claims     {again} of {len(claims)} measured again", f"spectra    {spectra}"]
    lines = [f"{entry.repo_id} at {entry.revision[:10]}", "", *lines, "", *told]
    lines += [f"left out   {aside.field}: {aside.reason}" for aside in found.asides]
    return "\n".join([*lines, *(f"note       {note}" for note in found.notes)])


def _parse(action: str, kind: type, argv: list[str]):
    (args,), _ = parse(f"orthossl leaderboard {action}", ACTIONS[action].capitalize() + ".", [kind], argv)
    return args
