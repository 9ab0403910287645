"""Attacks on runs, folders and files of strangers: `pytest -m slow tests/adversary` prints counts by kind."""

from collections import Counter
from pathlib import Path

import pytest
from attacks import Attacks
from stranger_data import world  # noqa: F401
from stranger_folders import honest, stranger  # noqa: F401


@pytest.fixture
def attacks(request, record_property):
    """Counts the attacks of a test, whose kind is the name of its file: `test_encoders.py` attacks "encoders"."""
    kind = request.path.stem.removeprefix("test_")
    tally = Attacks(kind)
    yield tally
    record_property("attacks", [kind, tally.tried, len(tally.failures)])
    tally.check()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter):
    tried, failed = Counter(), Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", []):
                if name == "attacks" and report.when == "teardown":
                    kind, attempts, failures = value
                    tried[kind] += attempts
                    failed[kind] += failures
    if tried:
        terminalreporter.section("attacks: kind, tried, held, failed")
        for kind in sorted(tried):
            terminalreporter.write_line(
                f"{kind:<24} {tried[kind]:>6} {tried[kind] - failed[kind]:>6} {failed[kind]:>6}"
            )
        total, lost = sum(tried.values()), sum(failed.values())
        terminalreporter.write_line(f"{'all':<24} {total:>6} {total - lost:>6} {lost:>6}")
