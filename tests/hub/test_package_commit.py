"""The commit on a card is the package's own, or none."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hf_orthossl.hub import encoder_record
from hf_orthossl.hub.encoder_record import package_commit


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git repository with a file of this package where a checkout has it."""
    package = tmp_path / "hf_orthossl"
    (package / "hub").mkdir(parents=True)
    for name in ("__init__.py", "hub/encoder_record.py"):
        (package / name).write_text("")
    monkeypatch.setattr(encoder_record, "__file__", str(package / "hub" / "encoder_record.py"))
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_checkout_gives_its_commit_and_says_if_it_was_changed(checkout):
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "x")
    head = git(checkout, "rev-parse", "HEAD").strip()
    assert package_commit() == head
    git(checkout, "tag", "v1")
    (checkout / "hf_orthossl" / "__init__.py").write_text("changed")
    assert package_commit() == f"{head}-dirty"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_installed_inside_another_repository_gives_none(checkout):
    git(checkout, "init", "-q")
    (checkout / "theirs").write_text("")
    git(checkout, "add", "theirs")
    git(checkout, "commit", "-qm", "x")
    assert package_commit() is None


def test_without_git_there_is_none(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    assert package_commit() is None
