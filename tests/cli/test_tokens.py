"""No access token in what is printed, pickled or said of an error."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch

from hf_orthossl.cli import main
from hf_orthossl.messages import Secret, without_secrets
from hf_orthossl.training import OrthoSSLTrainingArguments

TOKEN = "hf_testTokenTestTokenTestToken12345"
PLAIN = "organizationtoken4242"


@pytest.mark.parametrize("token", [TOKEN, PLAIN])
def test_saved_arguments_hold_no_token(token, tmp_path):
    args = OrthoSSLTrainingArguments(output_dir=str(tmp_path), hub_token=token, use_cpu=True)
    torch.save(args, tmp_path / "training_args.bin")
    assert token.encode() not in (tmp_path / "training_args.bin").read_bytes()
    assert token.encode() not in pickle.dumps(copy.deepcopy(args))
    assert token not in repr(args) + args.to_json_string() + repr(args.hub_token)
    assert not torch.load(tmp_path / "training_args.bin", weights_only=False).hub_token
    # What uses it has it, also in a copy.
    assert copy.copy(args).hub_token == args.hub_token == token
    assert f"Bearer {args.hub_token}" == f"Bearer {token}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"the token {TOKEN} is wrong", "the token *** is wrong"),
        ("https://me:password@example.com/a does not answer", "https://example.com/a does not answer"),
        ("https://a.b/c?Signature=abc%2F&x=1&access_token=q", "https://a.b/c?Signature=***&x=1&access_token=***"),
        ("mail me@example.com about hf_orthossl", "mail me@example.com about hf_orthossl"),
        (f"{Secret(PLAIN)} is wrong", "*** is wrong"),
    ],
)
def test_texts_without_secrets(text, shown):
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "--hub_token", TOKEN],
        ["pretrain", f"--hub_tokne={TOKEN}"],
        ["pretrain", "--dataset", f"https://user:{TOKEN}@127.0.0.1:1/images"],
        ["publish", "runs/none", "--repo_id", "a/b", "--token", TOKEN],
        ["leaderboard", "build", f"--token={TOKEN}"],
    ],
)
def test_error_lines_show_no_token(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert TOKEN not in capsys.readouterr().err


def test_what_libraries_print_shows_no_token():
    script = (
        "from hf_orthossl.terminal import keep_printing; keep_printing(); import sys\n"
        "print('γ https://user:secret@host/'); print(sys.argv[1], file=sys.stderr); raise ValueError(sys.argv[1])"
    )
    ended = subprocess.run([sys.executable, "-c", script, TOKEN], capture_output=True, encoding="utf-8")
    assert ended.stdout == "γ https://host/\n"
    assert TOKEN not in ended.stderr
    assert ended.stderr.count("***") == 2
