"""What the board's page says of loading is right: the code that it shows is run, for every kind of encoder."""

import ast
import os
import subprocess
import sys
from html import unescape
from urllib.parse import quote

import numpy as np
import pytest
import torch
from published_encoders import written
from synthetic_board import entry
from transformers import ViTConfig

from hf_orthossl.hub import publish_encoder
from hf_orthossl.hub.leaderboard.board.build import build
from hf_orthossl.hub.leaderboard.page.catalogue import Catalogue
from hf_orthossl.hub.leaderboard.page.views import render_page
from hf_orthossl.hub.leaderboard.schema import Board

IDS = ("timm-code", "auto-code", "own-code")
# Runs each snippet; all but the last kind without this package.
RUN = """
import sys
import numpy as np, torch
found = {}
for line in sys.stdin.read().split("=====")[1:]:
    key, code = line.split(chr(10), 1)
    if "own-code" not in key:
        sys.modules["hf_orthossl"] = None
    else:
        sys.modules.pop("hf_orthossl", None)
    scope = {}
    exec(code, scope)
    with torch.no_grad():
        given = scope["encoder"](torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32))
    # A transformer's class token is the representation, as its card says.
    tokens = getattr(given, "last_hidden_state", given)
    pooled = tokens[:, 0] if tokens.ndim == 3 else getattr(given, "pooler_output", given).flatten(1)
    found[key] = pooled.numpy()
np.savez(sys.argv[1], **found)
"""


def snippets(catalogue, repo_id):
    html = render_page(catalogue, f"show=model&model={repo_id}")
    parts = {name: html.partition(f'id="{name}">')[2].partition("</pre>")[0] for name in IDS}
    return {name: unescape(text) for name, text in parts.items() if text}


def test_every_encoder_loads_as_its_page_says(hub_here, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTConfig(image_size=32, patch_size=8, **sizes).save_pretrained(tmp_path / "models" / "tiny_vit")
    made = {
        "timm": written(tmp_path / "timm", "resnet10t", channels=[8, 8, 16, 16]),
        "transformers": written(tmp_path / "transformers", str(tmp_path / "models" / "tiny_vit")),
        "own": written(tmp_path / "own", "resnet18_cifar"),
    }
    for name, (_, folder) in made.items():
        publish_encoder(folder, f"tester/{name}")
    board = build(tmp_path / "board").board
    assert [(e.repo_id, e.library, e.remote_code) for e in board.entries] == [
        ("tester/own", "timm", True),
        ("tester/timm", "timm", False),
        ("tester/transformers", "transformers", False),
    ]
    shown = {name: snippets(Catalogue(board), f"tester/{name}") for name in made}
    assert {name: tuple(codes) for name, codes in shown.items()} == {
        "timm": ("timm-code", "auto-code"),
        "transformers": ("auto-code",),
        "own": ("auto-code", "own-code"),
    }
    script = "".join(f"====={name} {kind}\n{code}\n" for name in made for kind, code in shown[name].items())
    environment = os.environ | hub_here.environment(tmp_path / "home")
    command = [sys.executable, "-c", RUN, str(tmp_path / "found.npz")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "found.npz")
    assert len(found.files) == 5
    images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    for key in found.files:
        with torch.no_grad():
            expected = made[key.split()[0]][0](images)
        np.testing.assert_allclose(found[key], expected, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    "text", ["x', trust_remote_code=True) #", 'x", trust_remote_code=True) #', "</pre><script>", "\\"]
)
def test_no_name_breaks_out_of_the_code(text):
    catalogue = Catalogue(Board([entry(f"a/{text}")], [], "2026-01-01", "https://huggingface.co"))
    codes = snippets(catalogue, quote(f"a/{text}"))
    assert set(codes) == {"timm-code", "auto-code"}
    for code in codes.values():
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and node.args]
        assert calls
        for call in calls:
            (where,) = call.args
            assert text in where.value
            assert {keyword.arg for keyword in call.keywords} <= {"pretrained", "revision"}
