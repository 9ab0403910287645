"""The files of the Hugging Face Space that shows a board."""

import json

import yaml

from ..names import check_repo_id

# The newest that the page was looked at with: what a later one draws, and fetches, nobody has seen yet.
GRADIO = "6.31.0"
PACKAGE = "hf-orthossl[leaderboard]"
_APP = '''"""Encoders published with orthossl: the board in a data set, and every hour what is new on the Hub."""

from hf_orthossl.hub.leaderboard.app import serve

serve({board}, port=7860, host="0.0.0.0", every=3600, retry=60, collect_in="board")
'''
_README = """---
{front}---

# {title}

Shows the board in [{board}](https://huggingface.co/datasets/{board}), which `orthossl leaderboard build` makes,
and every hour what has changed on the Hub since. While the Hub does not answer, the last board stays.
Written by `orthossl leaderboard deploy`: change it there.
"""
_TITLE = "Self-supervised encoders"


def space_files(board_id: str, *, package: str = PACKAGE) -> dict[str, str]:
    """The files of a Space, by name: `README.md` with its front matter, `requirements.txt` and `app.py`.

    Args:
        board_id (`str`): Data set "owner/name" with the snapshot.
        package (`str`, defaults to "hf-orthossl[leaderboard]"): What `requirements.txt` asks for, such as
            "hf-orthossl[leaderboard] @ git+https://…" before there is a release.

    Raises:
        ValueError: `board_id` is no "owner/name", or `package` is more than one line.
    """
    check_repo_id(board_id, "board_id")
    if len(package.splitlines()) != 1:
        raise ValueError(f"package must be one requirement on one line, got {package!r}")
    front = {
        "title": _TITLE,
        "emoji": "📐",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": GRADIO,
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
        "app.py": _APP.format(board=json.dumps(board_id)),
    }
