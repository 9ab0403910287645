"""Shared by the tests of publishing: an encoder folder as a run leaves it."""

import shutil
from types import SimpleNamespace

import pytest
from leaderboard_repos import encoders
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
