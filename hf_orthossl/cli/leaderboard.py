"""`orthossl leaderboard`: build, serve and deploy the board of published encoders, and measure claims again."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hub.client import check_repo_id, require_token
from ..hub.leaderboard.board.build import add_verification, build, check_folder, publish_verification
from ..hub.leaderboard.page.space import PACKAGE, deploy
from ..hub.measurements import protocol_text
from ..terminal import progress_bar
from .options.leaderboard import DEFAULT_BOARD, BuildArguments, DeployArguments, ServeArguments, VerifyArguments

if TYPE_CHECKING:
    from ..hub.leaderboard.claims.remeasure import Verified


def main(action: str, args: Any) -> None:
    """Run one of the actions."""
    known: dict[str, Callable[[Any], None]] = {
        "build": build_board,
        "serve": serve_board,
        "deploy": deploy_board,
        "verify": verify_model,
    }
    known[action](args)


def build_board(args: BuildArguments) -> None:
    """Build a board, and publish it if asked to."""
    with progress_bar(None, "encoders") as bar:

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


def serve_board(args: ServeArguments) -> None:
    """Serve a board until interrupted."""
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


def deploy_board(args: DeployArguments) -> None:
    """Create or update a Space that shows a board."""
    check_repo_id(args.space, "--space")
    check_repo_id(args.board, "--board")
    assert args.space is not None
    assert args.board is not None
    url, to_do = deploy(args.space, args.board, package=args.package or PACKAGE, private=args.private)
    print(f"deployed  {url}, which shows {args.board}")
    if to_do:
        print(f"to do     {to_do}")


def verify_model(args: VerifyArguments) -> None:
    """Measure an encoder again, print claims beside measurements, and keep the result."""
    if not 0 < args.max_minutes < 10**6:
        raise ValueError(f"max_minutes is {args.max_minutes}: it must be a positive number of minutes, as in 120")
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
    settings: dict[str, Any] = {"device": args.device, "cache": FeatureCache(), "progress": True}
    verified = verify(args.model, data, seconds=60 * args.max_minutes, **settings)
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
    if verified.verification.record:
        lines.append(f"record     DIFFERS: {verified.verification.record}")
    if verified.verification.withheld:
        lines.append("mark       withheld: no claim of these is marked as verified")
    lines += [f"rejected   {one.field}: {one.reason}" for one in verified.rejected]
    return "\n".join([*lines, *(f"note       {note}" for note in verified.notes)])
