"""Shared by all tests: one thread, fixed seeds, no network, and a small encoder."""

import os
import signal

# Read by the libraries when they are imported: no test may reach the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two threads on a busy two-core machine wait for each other; one is reproducible and, for small tensors, no slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from local_hub import LocalHub
from processes import ProcessGroup
from tiny_encoder import TinyEncoder

# A shell that starts the tests in the background leaves them deaf to Ctrl-C, and with them every process they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_xdist_auto_num_workers(config) -> int:
    """All cores for the whole suite; one process, which starts sooner and can be debugged, for tests that are named."""
    if config.option.file_or_dir:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Each worker imports torch, and some tests start four processes.
    return min(cores, 8)


@pytest.fixture(autouse=True)
def _reproducible():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def tiny_encoder():
    return TinyEncoder()


@pytest.fixture
def cifar10():
    """Folder with real CIFAR-10, where this machine has it."""
    folder = SHARED / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"needs real CIFAR-10 in {folder}")
    return folder


@pytest.fixture
def bccd():
    """Folder with real photographs of blood cells and their boxes, where this machine has them."""
    folder = SHARED / "bccd"
    if not folder.is_dir():
        pytest.skip(f"needs real blood cells in {folder}")
    return folder


@pytest.fixture(scope="session")
def two_processes():
    """Two processes in one gloo group: `two_processes.run(function, *args)`, the function of a module's top level."""
    group = ProcessGroup(2)
    yield group
    group.close()


@pytest.fixture(scope="session")
def four_processes():
    """Four processes in one gloo group."""
    group = ProcessGroup(4)
    yield group
    group.close()


@pytest.fixture
def local_hub(tmp_path_factory):
    """A Hub on loopback; clients in other processes take `local_hub.environment(home)`."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub_here(local_hub, tmp_path, monkeypatch):
    """The local Hub as this process's own, with its token, and no waiting between tries."""
    settings = {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "ENDPOINT": local_hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": local_hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no_token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", local_hub.token)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("hf_orthossl.hub.client.RETRY_AFTER", (0, 0))
    return local_hub
