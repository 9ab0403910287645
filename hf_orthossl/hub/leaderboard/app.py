"""The leaderboard as a Gradio app."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from .catalogue import Catalogue
from .downloads import middleware, routes
from .page import render_page
from .refreshing import RefreshedBoard
from .rendering import HERE
from .schema import Board
from .snapshot import read_snapshot

TITLE = "Self-supervised encoders: accuracy and spectra"
_SHELL = """<style>{css}</style><header><h1>{title}</h1>\
<p>Image encoders published with <code>orthossl</code>: how well they do, and how many directions of their \
representation they use. A representation that has collapsed shows in its spectrum.</p></header>\
<p id="board-status" role="status" class="sr">Loading the board.</p>\
<div class="view"><p class="small">Loading …</p></div>"""


class _Current:
    """The catalogue of the present board: made anew when the board is another one."""

    def __init__(self, board: Board | Callable[[], Board]):
        self._get = board if callable(board) else lambda: board
        self._catalogue = Catalogue(self._get())

    def __call__(self) -> Catalogue:
        board = self._get()
        catalogue = self._catalogue
        if catalogue.board is not board:
            catalogue = self._catalogue = Catalogue(board)
        return catalogue


def build_app(board: Board | Callable[[], Board], *, base_url: str = "") -> gr.Blocks:
    """The leaderboard's page. [`launch_options`] says how to launch it so that nothing is fetched from elsewhere.

    Args:
        board ([`Board`] or `Callable`): What to show, or a function that gives the present one, asked at every view.
        base_url (`str`, *optional*): Where it will be served, which badges link to.

    Returns:
        `gradio.Blocks`.
    """
    current = _Current(board)

    def show(query: str) -> str:
        return render_page(current(), str(query), base_url)

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        # The template stays the default: Gradio fills `value` in after it has run, so no text can be a template.
        gr.HTML(
            Markup(_SHELL).format(css=Markup((HERE / "style.css").read_text(encoding="utf-8")), title=TITLE),
            js_on_load=(HERE / "page.js").read_text(encoding="utf-8"),
            server_functions=[show],
            elem_classes="orthossl",
            apply_default_css=False,
        )
    # To pages of a Space Gradio adds a header that calls the Hub and loads fonts from elsewhere.
    blocks.space_id = None
    blocks.current_catalogue = current
    return blocks


def launch_options(blocks: gr.Blocks) -> dict[str, Any]:
    """Arguments of `blocks.launch`: downloads and badges beside the page, fonts of the visitor's own system, no links
    to elsewhere."""
    return {
        "theme": gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "app_kwargs": {"routes": routes(blocks.current_catalogue), "middleware": middleware()},
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
    base_url: str | None = None,
    wait: bool = True,
) -> gr.Blocks:
    """Serves the leaderboard.

    Args:
        board (`str`, `Path` or [`Board`]): Folder or data set "owner/name" of a snapshot, or the board itself.
        port (`int`, defaults to 7860): Where to listen.
        host (`str`, defaults to "127.0.0.1"): Address to listen on; "0.0.0.0" is every one of this machine.
        every (`float`, defaults to 3600): Seconds after which the snapshot is read anew.
        retry (`float`, *optional*): Seconds until the next try where the snapshot cannot be read at the start, with an
            empty page until then; by default that is an error.
        collect_in (`str` or `Path`, *optional*): Folder in which the board is collected from the Hub each time, on top
            of the snapshot and with its re-runs; by default the snapshot alone is read.
        base_url (`str`, *optional*): What badges link to; in a Space its address, else `http://host:port`.
        wait (`bool`, defaults to `True`): Whether to stay until it is stopped.

    Returns:
        `gradio.Blocks`, with its address as `local_url`.

    Raises:
        ValueError: the snapshot is not of its form, the port is taken, or the host is not this machine.
        OSError: the snapshot cannot be read.
    """
    if not _is_here(host):
        raise ValueError(f"host {host!r} is no address of this machine: pass another host")
    reading = not isinstance(board, Board)
    source = _refreshed(board, collect_in, every, retry) if reading else board
    space = os.environ.get("SPACE_HOST")
    base_url = base_url or (f"https://{space}" if space else f"http://{host}:{port}")
    blocks = build_app(source, base_url=base_url.rstrip("/"))
    try:
        blocks.launch(server_name=host, server_port=port, prevent_thread_lock=True, **launch_options(blocks))
    except OSError as error:
        if reading:
            source.close()
        raise ValueError(f"the board cannot listen on {host}:{port}: pass another port") from error
    if wait:
        blocks.block_thread()
    return blocks


def _is_here(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _, _, address in found:
        try:
            with socket.socket(family, kind) as tried:
                tried.bind(address)
            return True
        except OSError:
            continue
    return False


def _refreshed(
    location: str | Path, collect_in: str | Path | None, every: float, retry: float | None
) -> RefreshedBoard:
    def read() -> Board:
        return read_snapshot(location)

    if collect_in is None:
        return RefreshedBoard(read, every, retry=retry)

    def collect() -> Board:
        from .building import build

        return build(collect_in, str(location)).board

    # The snapshot is there at once; collecting takes minutes where much has changed.
    return RefreshedBoard(collect, every, retry=retry, first=read)
