"""Shared by the tests of publishing: an encoder folder as a run leaves it."""

import shutil

import pytest
from published_encoders import written


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return written(tmp_path_factory.mktemp("tiny") / "encoder", "resnet10t", channels=[8, 8, 16, 16])


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny[1], tmp_path / "run" / "encoder")
