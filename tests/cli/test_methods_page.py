"""What `orthossl methods` and docs/methods.md say of each method."""

import json
import subprocess
import sys
from pathlib import Path

from hf_orthossl.cli import main
from hf_orthossl.methods import METHODS
from hf_orthossl.methods.costs import measured_costs

ROOT = Path(__file__).parents[2]


def listed(capsys):
    main(["methods", "--json"])
    return {entry["method"]: entry for entry in json.loads(capsys.readouterr().out)["methods"]}


def test_each_says_when_to_choose_it_what_it_needs_and_what_a_step_costs(capsys):
    entries, costs = listed(capsys), measured_costs()["costs"]
    assert entries.keys() == METHODS.keys() == costs.keys()
    assert all(entry["summary"] and len(entry["summary"]) <= 110 for entry in entries.values())
    needs = {name: entry["needs"] for name, entry in entries.items() if entry["needs"] != "–"}
    assert needs == {"distill": "teacher", **dict.fromkeys(("mae", "ijepa", "ibot", "dinov2"), "ViT")}
    assert (entries["simclr"]["time"], entries["simclr"]["memory"]) == ("1×", "1×")
    assert all(cost["time"] > 0 and cost["memory"] > 0 for cost in costs.values())


def test_the_page_is_the_one_that_its_script_prints():
    printed = subprocess.run([sys.executable, "scripts/methods_page.py"], cwd=ROOT, capture_output=True, check=True)
    assert printed.stdout.decode() == (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
