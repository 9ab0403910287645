"""The Hugging Face Space that shows a board: its files, and how to deploy it."""

import json
from pathlib import Path
from pprint import pformat

import yaml

from ...client import HubRepo, check_repo_id, require_token
from ..board.build import owned_tip
from ..board.snapshot import BOARD, published_part
from ..fetch import Gone, NoFile
from ..schema import from_json

# The newest version that the page was tested with: a later one may draw, or fetch, something else.
GRADIO = "6.31.0"
PYTHON = "3.12"
PACKAGE = "hf-orthossl[leaderboard]"
# The import by which a Space is known as one of a board.
MARK = "from hf_orthossl.hub.leaderboard.page.app import serve"
_APP = '''"""Encoders published with orthossl: the board in a data set, updated from the Hub every hour."""

{mark}

# From the registry of penalties, which the page does not import, as it needs torch.
PENALTIES = {penalties}

serve({board}, port=7860, host="0.0.0.0", every=3600, retry=60, collect_in="board", penalties=PENALTIES)
'''
_README = """---
{front}---

# {title}

Shows the board in [{board}](https://huggingface.co/datasets/{board}), which `orthossl leaderboard build` makes,
updated every hour with what has changed on the Hub. While the Hub does not answer, the last board stays.
Written by `orthossl leaderboard deploy`, which overwrites changes made here.
"""
_TITLE = "Self-supervised encoders"


def space_files(board_id: str, *, package: str = PACKAGE) -> dict[str, str]:
    """Return the files of a Space by name, see [`deploy`]; raise a `ValueError` for names that do not fit into them."""
    from ....regularization import PENALTIES

    check_repo_id(board_id, "board_id")
    if len(package.splitlines()) != 1:
        raise ValueError(f"package must be one requirement on one line, got {package!r}")
    titles = {name: penalty.title for name, penalty in PENALTIES.items()}
    front = {
        "title": _TITLE,
        "emoji": "📐",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "python_version": PYTHON,
        "app_file": "app.py",
        "pinned": False,
        "license": "apache-2.0",
        "short_description": "Accuracy and spectra of image encoders",
        "tags": ["leaderboard", "orthossl", "self-supervised-learning"],
        "datasets": [board_id],
    }
    return {
        "README.md": _README.format(
            front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True), title=_TITLE, board=board_id
        ),
        "requirements.txt": f"{package}\n",
        "app.py": _APP.format(mark=MARK, board=json.dumps(board_id), penalties=pformat(titles, sort_dicts=True)),
    }


def deploy(
    space: str, board: str, *, package: str = PACKAGE, private: bool = False, token: str | None = None
) -> tuple[str, str | None]:
    """Create or update the Space that shows a data set's board.

    Args:
        space (`str`): The Space, "owner/name".
        board (`str`): The data set, "owner/name".
        package (`str`): The requirement in `requirements.txt`, such as "hf-orthossl[leaderboard] @ git+https://…".
        private (`bool`, defaults to `False`): Make a new Space private.
        token (`str`, *optional*): Access token; defaults to the one of `hf auth login` or `HF_TOKEN`.

    Returns:
        `tuple[str, str | None]`: The address of the Space, and what remains to be done by hand, if anything.

    Raises:
        ValueError: A name is malformed, the data set has no board, or the Space is not one of a board.
        OSError: There is no token, or the Hub does not answer, or refuses.
    """
    check_repo_id(space, "space")
    contents: dict[str, bytes | Path] = {
        path: text.encode() for path, text in space_files(board, package=package).items()
    }
    token = require_token(token)
    try:
        from_json(published_part(board, BOARD, token=token))
    except (Gone, NoFile) as error:
        raise ValueError(
            f"the data set {board} has no board, or none for this token: run orthossl leaderboard build --push_to_hub "
            f"{board} first"
        ) from error
    except ValueError as error:
        raise ValueError(f"{BOARD} of {board}: {error}") from error
    repo = HubRepo(space, token, kind="space")
    tip = owned_tip(repo, "app.py", MARK)
    if tip is None:
        repo.create(private or None, sdk="gradio")
    repo.commit(contents, set(), tip, f"The board of {board}")
    info = HubRepo(board, token, kind="dataset").info()
    if info is None or not info.private:
        return repo.url, None
    return repo.url, f"{board} is private: give the Space a secret HF_TOKEN that can read it, at {repo.url}/settings"
