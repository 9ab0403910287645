#!/usr/bin/env bash
# Test the lower bounds of pyproject.toml: install them, all together, and nothing newer where a bound exists, into a
# throw-away environment; then import every module, run `orthossl pretrain` and test what depends on other libraries most.
#
#   bash scripts/check_lower_bounds.sh            # a few minutes and several GB, which uv's cache keeps
#   PYTHON=3.12 bash scripts/check_lower_bounds.sh
#
# Neither uv.lock nor .venv of this checkout is read or written.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
cd "$checkout"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="$work/venv/bin/python"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

uv venv --quiet --python "${PYTHON:-3.11}" "$work/venv"
uv pip install --quiet --python "$python" --resolution lowest-direct --requirements pyproject.toml --all-extras
uv pip install --quiet --python "$python" --no-deps .

"$python" - <<'PYTHON'
"""Compare what is installed with the bounds: one that another dependency has raised is not tested, and not honest."""
import importlib.metadata
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
untested = []
for line in sorted({*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)}):
    requirement = Requirement(line)
    bounds = [bound.version for bound in requirement.specifier if bound.operator in (">=", "==")]
    installed = importlib.metadata.version(requirement.name)
    print(f"{requirement.name:<16} {installed}")
    if not any(installed in SpecifierSet(f"=={bound}.*") for bound in bounds):
        untested.append(f"{line}: {installed} is the oldest release that the other bounds allow")
sys.exit("\n".join(untested) or 0)
PYTHON

# From elsewhere, so that the installed package is what runs.
cd "$work"
"$python" - <<'PYTHON'
"""Import every module."""
import importlib
import pkgutil

import hf_orthossl

for module in pkgutil.walk_packages(hf_orthossl.__path__, "hf_orthossl."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
PYTHON

"$work/venv/bin/orthossl" pretrain --max_steps 3 --output_dir run
test -s run/encoder/model.safetensors
test -s run/encoder/README.md

cd "$checkout"
"$work/venv/bin/pytest" -p no:cacheprovider \
  tests/encoders/test_loading.py tests/encoders/test_export.py tests/encoders/test_programs.py \
  tests/data/test_decoding.py tests/data/test_sources.py \
  tests/hub/test_publish.py tests/hub/test_leaderboard_views.py \
  tests/metrics tests/spectra/test_figures.py \
  tests/evaluation/test_detection_metrics.py tests/evaluation/test_linear_probe.py \
  tests/training/test_optimizers.py tests/training/test_fronts.py
