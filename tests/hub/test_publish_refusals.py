"""What publishing refuses, before anything is sent."""

import dataclasses
import json

import pytest
from published_encoders import REPO, RESULT, SECRET
from safetensors.torch import load_file, save_file

from hf_orthossl.hub import publish_encoder, publish_results
from hf_orthossl.hub.publish import check_destination


@pytest.mark.parametrize(
    "bad",
    [{"revision": name} for name in ("a b..c", "a..b", "/a", "a/", "a.lock", "-a", "a\n", "", "a//b", "a@{1}")]
    + [{"license": name} for name in ("MIT", "mit\ntags: x", "a b", "", "[x](y)", "m" * 60)],
    ids=repr,
)
def test_branches_and_licences_are_checked_before_any_request(bad, folder, hub_here):
    with pytest.raises(ValueError, match=next(iter(bad))):
        publish_encoder(folder, REPO, **bad)
    assert hub_here.requests == []


def test_a_destination_is_checked_as_publishing_will(folder, hub_here):
    check_destination(REPO, private=True)
    publish_encoder(folder, REPO)
    check_destination(REPO)
    with pytest.raises(ValueError, match="is public: make it private"):
        check_destination(REPO, private=True)
    broken = hub_here.files(REPO)["README.md"].replace(b"<!-- /orthossl:about -->", b"")
    hub_here.change(hub_here.repo(REPO), {"README.md": broken})
    with pytest.raises(ValueError, match="cannot be updated: line 30"):
        check_destination(REPO)


def test_a_branch_is_made_where_it_is_missing(folder, hub_here):
    publication = publish_encoder(folder, REPO, revision="v2")
    assert "model.safetensors" in hub_here.files(REPO, "v2")
    assert set(hub_here.files(REPO)) == {".gitattributes"}
    assert any("@v2" in line for line in publication.loading)
    assert all(line in publication.card for line in publication.loading)
    assert f'from_pretrained("{REPO}", revision="v2")' in publication.card
    assert f'model="{REPO}", revision="v2")' in publication.card
    publish_results(f"{REPO}@v2", [dataclasses.replace(RESULT, value=0.9)])
    card = hub_here.files(REPO, "v2")["README.md"].decode()
    assert all(line in card for line in publication.loading)
    assert "0.900" in card


@pytest.mark.parametrize("name", ["results.json", "config.json", "README.md", "spectra.safetensors", "spectra.png"])
@pytest.mark.parametrize("which", ["any", "ours"])
def test_a_token_in_a_file_is_never_sent(name, which, folder, hub_here):
    hub_here.tokens["s3cret-0123456789"] = ("tester", True)
    token = SECRET if which == "any" else "s3cret-0123456789"
    if name == "config.json":
        config = json.loads((folder / name).read_text())
        config["orthossl"]["training"] = {"views": token}
        (folder / name).write_text(json.dumps(config))
    elif name == "results.json":
        (folder / name).write_text(json.dumps([RESULT.to_dict() | {"note": token}]))
    elif name == "README.md":
        (folder / name).write_text((folder / name).read_text() + f"\n## Mine\n\nlog in with {token}\n")
    elif name == "spectra.safetensors":
        save_file(load_file(folder / name), folder / name, metadata={"note": token})
    else:
        (folder / name).write_bytes((folder / name).read_bytes() + token.encode())
    with pytest.raises(ValueError, match=r"contains an access token.*nothing was published"):
        publish_encoder(folder, REPO, token="s3cret-0123456789" if which == "ours" else None)
    assert hub_here.repo(REPO) is None


def test_not_our_repo(folder, hub_here):
    hub_here.add_repo(REPO, {"config.json": '{"model_type": "bert"}', "model.safetensors": b"weights"})
    with pytest.raises(ValueError, match=r"contains files that orthossl did not publish.*choose another repo_id"):
        publish_encoder(folder, REPO)
    assert hub_here.files(REPO)["model.safetensors"] == b"weights"
    hub_here.add_repo("tester/begun", {"README.md": "Words to come.\n"})
    publish_encoder(folder, "tester/begun")
    assert "model.safetensors" in hub_here.files("tester/begun")


@pytest.mark.parametrize("repo_id", ["encoder", "a/b/c", "tester/en coder", "", "tester/..", "https://hf.co/tester/e"])
def test_malformed_repo_ids(repo_id, folder, hub_here):
    with pytest.raises(ValueError, match="repo_id"):
        publish_encoder(folder, repo_id)
    assert hub_here.requests == []


def test_tokens_that_may_not_write(folder, hub_here, monkeypatch):
    hub_here.tokens["reader"] = ("tester", False)
    with pytest.raises(OSError, match=r"does not accept the token \(401\)"):
        publish_encoder(folder, REPO, token="unknown")
    with pytest.raises(OSError, match=r"has no write access to tester/encoder \(403\)"):
        publish_encoder(folder, REPO, token="reader")
    with pytest.raises(OSError, match=r"has no write access to other/encoder \(403\)"):
        publish_encoder(folder, "other/encoder")
    publish_encoder(folder, REPO)
    (folder / "results.json").write_text("[]")
    with pytest.raises(OSError, match=r"has no write access to tester/encoder \(403\)"):
        publish_encoder(folder, REPO, token="reader")
    with pytest.raises(ValueError, match="is public: make it private"):
        publish_encoder(folder, REPO, private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="run `hf auth login`, or set HF_TOKEN"):
        publish_encoder(folder, REPO)
    assert len(hub_here.commits(REPO)) == 2


def test_folders_that_are_no_encoders(folder, tmp_path, hub_here):
    def refused(error, words):
        with pytest.raises(error, match=words):
            publish_encoder(folder, REPO)

    with pytest.raises(FileNotFoundError, match="nowhere"):
        publish_encoder(tmp_path / "nowhere", REPO)
    weights, config = (folder / "model.safetensors").read_bytes(), (folder / "config.json").read_text()
    (folder / "model.safetensors").write_bytes(weights[:100])
    refused(ValueError, r"model.safetensors is not a safetensors file, or is cut off")
    (folder / "model.safetensors").unlink()
    refused(FileNotFoundError, "has no model.safetensors")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(config[:-20])
    refused(ValueError, "config.json is not JSON")
    (folder / "config.json").write_text('{"architecture": "resnet18"}')
    refused(ValueError, "no orthossl block")
    assert hub_here.requests == []
