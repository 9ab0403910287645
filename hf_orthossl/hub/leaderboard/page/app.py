"""The leaderboard as a Gradio app."""

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup
from starlette.middleware import Middleware

from ..board.build import build
from ..board.snapshot import RefreshedBoard, read_snapshot
from ..schema import Board
from .catalogue import Catalogue
from .guard import Guard
from .rendering import HERE
from .routes import routes
from .views import render_page

TITLE = "Self-supervised encoders: accuracy and spectra"
_SHELL = """<style>{css}</style><header><h1><a href="?" data-go>{title}</a></h1>\
<p>Image encoders published with <code>orthossl</code>: how accurate they are, and how many dimensions of their \
representation they use. A collapsed representation shows in its spectrum.</p></header>\
<p id="board-status" role="status" class="sr">Loading the board.</p>\
<div class="view"><p class="small">Loading …</p></div>"""


class _Current:
    """The catalogue of the current board, made anew when the board changes."""

    def __init__(self, board: Board | Callable[[], Board], penalties: Mapping[str, str] | None):
        self._penalties = penalties
        self._get: Callable[[], Board] = (lambda: board) if isinstance(board, Board) else board
        self._catalogue = Catalogue(self._get(), penalties)

    def __call__(self) -> Catalogue:
        board = self._get()
        catalogue = self._catalogue
        if catalogue.board is not board:
            catalogue = self._catalogue = Catalogue(board, self._penalties)
        return catalogue


def build_app(
    board: Board | Callable[[], Board], *, penalties: Mapping[str, str] | None = None, base_url: str = ""
) -> gr.Blocks:
    """Return the leaderboard's page; launch it with [`launch_options`], so that nothing is fetched from elsewhere.

    Args:
        board ([`Board`] or `Callable`): The board, or a function that returns the current one, called at every view.
        penalties (mapping of `str` to `str`, *optional*): Titles of penalties by name, from the registry. The page does
            not import the registry, which needs torch.
        base_url (`str`, *optional*): Where the page will be served, for links of badges.
    """
    current = _Current(board, penalties)

    def show(query: str) -> str:
        return render_page(current(), str(query), base_url)

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        # The template stays the default: Gradio inserts `value` after running it, so no text can be a template.
        gr.HTML(
            Markup(_SHELL).format(css=Markup((HERE / "style.css").read_text(encoding="utf-8")), title=TITLE),
            js_on_load=(HERE / "page.js").read_text(encoding="utf-8"),
            server_functions=[show],
            elem_classes="orthossl",
            apply_default_css=False,
        )
    # Gradio adds a header to pages of a Space that calls the Hub and loads fonts from elsewhere.
    blocks.space_id = None
    # Kept for the routes of `launch_options`.
    vars(blocks)["current_catalogue"] = current
    return blocks


def launch_options(blocks: gr.Blocks) -> dict[str, Any]:
    """Return arguments of `blocks.launch`: downloads and badges beside the page, and nothing from other servers."""
    return {
        "theme": gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "app_kwargs": {
            "routes": routes(vars(blocks)["current_catalogue"]),
            "middleware": [Middleware(Guard, components=frozenset(blocks.blocks))],
        },
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "share": False,
        "quiet": True,
    }


def serve(
    board: str | Path | Board,
    port: int = 7860,
    *,
    host: str = "127.0.0.1",
    every: float = 3600,
    retry: float | None = None,
    collect_in: str | Path | None = None,
    penalties: Mapping[str, str] | None = None,
    base_url: str | None = None,
    wait: bool = True,
) -> gr.Blocks:
    """Serve the leaderboard.

    Args:
        board (`str`, `Path` or [`Board`]): Folder or data set "owner/name" of a snapshot, or the board itself.
        port (`int`, defaults to 7860): Where to listen, 1–65535.
        host (`str`, defaults to "127.0.0.1"): Address to listen on; "0.0.0.0" for all addresses of this machine.
        every (`float`, defaults to 3600): Seconds after which the snapshot is read anew.
        retry (`float`, *optional*): Seconds until the next try if the snapshot cannot be read at the start, with an
            empty page until then; by default that is an error.
        collect_in (`str` or `Path`, *optional*): Folder in which the board is collected from the Hub each time, on top
            of the snapshot and with its verifications; by default only the snapshot is read.
        penalties (mapping of `str` to `str`, *optional*): As in [`build_app`].
        base_url (`str`, *optional*): What badges link to; by default the address of the Space, else `http://host:port`.
        wait (`bool`, defaults to `True`): Whether to wait until the server is stopped.

    Returns:
        `gradio.Blocks`: The app, with its address as `local_url`.

    Raises:
        ValueError: The snapshot is malformed, the port is in use, or the host is not this machine.
        OSError: The snapshot cannot be read.
    """
    if not _is_here(host):
        raise ValueError(f"host {host!r} is not an address of this machine: pass another host")
    source = board if isinstance(board, Board) else _refreshed(board, collect_in, every, retry)
    space = os.environ.get("SPACE_HOST")
    base_url = base_url or (f"https://{space}" if space else f"http://{host}:{port}")
    blocks = build_app(source, penalties=penalties, base_url=base_url.rstrip("/"))
    try:
        blocks.launch(server_name=host, server_port=port, prevent_thread_lock=True, **launch_options(blocks))
    except OSError as error:
        if isinstance(source, RefreshedBoard):
            source.close()
        raise ValueError(f"the board cannot listen on {host}:{port}: pass another port") from error
    if wait:
        blocks.block_thread()
    return blocks


def _is_here(host: str) -> bool:
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _, _, address in addresses:
        with suppress(OSError), socket.socket(family, kind) as tried:
            tried.bind(address)
            return True
    return False


def _refreshed(
    location: str | Path, collect_in: str | Path | None, every: float, retry: float | None
) -> RefreshedBoard:
    read = partial(read_snapshot, location)
    if collect_in is None:
        return RefreshedBoard(read, every, retry=retry)
    # The snapshot is there at once; collecting takes minutes if much has changed.
    return RefreshedBoard(lambda: build(collect_in, str(location)).board, every, retry=retry, first=read)
