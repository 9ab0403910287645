"""Shared by the tests of publishing and the leaderboard: encoder folders as runs leave them, the page in a browser."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from board_visitor import BOARD, CHROMIUM, Visitor, free_port
from leaderboard_repos import Variations, encoders
from published_encoders import written


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return written(tmp_path_factory.mktemp("tiny") / "encoder", "resnet10t", channels=[8, 8, 16, 16])


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny[1], tmp_path / "run" / "encoder")


@pytest.fixture(scope="session")
def board_encoders(tmp_path_factory):
    """Encoder folders for the leaderboard: a sound one, a collapsed one, a ViT."""
    return encoders(tmp_path_factory.mktemp("board"))


@pytest.fixture
def board_hub(local_hub, monkeypatch):
    """A local Hub that the leaderboard reads without a token."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    return local_hub


@pytest.fixture
def hub(hub_here, board_encoders, tmp_path, monkeypatch):
    """The local Hub with three encoders and one that is left out, seen from an empty folder."""
    monkeypatch.chdir(tmp_path)
    Variations(board_encoders).fill(hub_here, 3)
    hub_here.add_repo("tester/liar", {"README.md": "---\ntags:\n- orthossl\n---\n"})
    return hub_here


@pytest.fixture(scope="module")
def board():
    """What the server shows; a test may put another one in its place."""
    shown = {"board": BOARD}
    yield shown
    shown["board"] = BOARD


@pytest.fixture(scope="module")
def site(board):
    """Address of a server of this module's own."""
    pytest.importorskip("gradio", reason="the page needs gradio, in the extra [leaderboard]")
    from hf_orthossl.hub.leaderboard.page.app import build_app, launch_options

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    blocks = build_app(lambda: board["board"], base_url=address)
    blocks.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, **launch_options(blocks))
    yield address
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def chromium(site):
    """Debian's Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, in the extra [test]")
    if not Path(CHROMIUM).exists() or not shutil.which(CHROMIUM):
        pytest.skip(f"needs {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visitor(chromium, site, request):
    window = Visitor(chromium, site, **getattr(request, "param", {}))
    yield window
    window.context.close()
    assert window.wrong == []
