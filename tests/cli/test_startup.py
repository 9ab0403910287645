"""Starting is cheap: the package and its help import nothing heavy."""

import subprocess
import sys

import hf_orthossl


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_importing_the_package_imports_no_library():
    loaded = run("import sys, hf_orthossl; print(*[m for m in ('torch', 'timm', 'transformers') if m in sys.modules])")
    assert loaded.strip() == ""


def test_help_imports_no_library():
    code = (
        "import sys; from hf_orthossl.cli import main; main(['--help']);"
        "assert not {'torch', 'timm', 'transformers'} & set(sys.modules)"
    )
    assert "pretrain" in run(code)


def test_every_public_name_exists():
    assert all(getattr(hf_orthossl, name) is not None for name in hf_orthossl.__all__)
