"""Publishing to a real server on loopback: what goes there, that it loads without this package, and every refusal."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from hf_orthossl import SSLConfig, SSLModel, load_encoder
from hf_orthossl.data import load_source
from hf_orthossl.evaluation import Result, write_results
from hf_orthossl.hub import publish_encoder, publish_results, write_encoder_folder
from hf_orthossl.hub.publish import check_destination
from hf_orthossl.hub.remote import ModelRepo

REPO = "tester/encoder"
SECRET = "hf_" + "aB3" * 12
RESULT = Result("knn", "uoft-cs/cifar10", "test", "top1", 0.875, {"step": "end", "k": 20, "temperature": 0.07})


def written(folder, backbone, **config):
    torch.manual_seed(0)
    encoder = load_encoder(backbone, image_size=32, **config).eval()
    model = SSLModel(SSLConfig(backbone, image_size=32, backbone_config=config, regularizer="so"), encoder)
    source = load_source("digits", split="train[:60]")
    return encoder, write_encoder_folder(model, folder, source=source, results=[RESULT])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return written(tmp_path_factory.mktemp("tiny") / "encoder", "resnet10t", channels=[8, 8, 16, 16])


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny[1], tmp_path / "run" / "encoder")


ROUND_TRIP = """
import sys
sys.modules["hf_orthossl"] = None
import numpy as np, timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline
image = Image.fromarray(np.load(sys.argv[1]))
found = {}
with torch.no_grad():
    for name in ("timm", "vit", "remote"):
        repo, trust = f"tester/{name}", name == "remote"
        pixels = AutoImageProcessor.from_pretrained(repo)(image, return_tensors="pt")["pixel_values"]
        model = AutoModel.from_pretrained(repo, trust_remote_code=trust).eval()
        output = model(pixels)
        pipe = pipeline("image-feature-extraction", model=repo, trust_remote_code=trust, pool=name != "vit")
        features = torch.tensor(pipe(image))
        if name == "vit":
            found[name], found["vit pipeline"] = output.last_hidden_state[:, 0], features[:, 0]
        else:
            found[name], found[name + " pipeline"] = output.pooler_output.flatten(1), features.flatten(1)
    pixels = AutoImageProcessor.from_pretrained("tester/timm")(image, return_tensors="pt")["pixel_values"]
    encoder = timm.create_model("hf-hub:tester/timm", num_classes=0, pretrained=True).eval()
    found["timm create_model"] = encoder(pixels)
np.savez(sys.argv[2], **{name: value.numpy() for name, value in found.items()})
"""


def test_published_encoders_load_without_this_package(tiny, hub_here, tmp_path):
    vit = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(vit, add_pooling_layer=False).save_pretrained(tmp_path / "plain")
    made = {
        "timm": tiny,
        "vit": written(tmp_path / "vit", str(tmp_path / "plain")),
        "remote": written(tmp_path / "remote", "wide_resnet28_2"),
    }
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", pixels)
    expected = {}
    for name, (encoder, encoder_folder) in made.items():
        publication = publish_encoder(encoder_folder, f"tester/{name}")
        assert any("trust_remote_code" in line for line in publication.loading) == (name == "remote")
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
        image = torch.tensor(np.array(Image.fromarray(pixels))).permute(2, 0, 1) / 255
        with torch.no_grad():
            expected[name] = encoder(((image - mean) / std)[None]).numpy()
    command = [sys.executable, "-c", ROUND_TRIP, str(tmp_path / "image.npy"), str(tmp_path / "found.npz")]
    environment = os.environ | hub_here.environment(tmp_path / "home")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "found.npz")
    assert len(found.files) == 7
    for key in found.files:
        np.testing.assert_allclose(found[key], expected[key.split()[0]], rtol=1e-5, atol=1e-5, err_msg=key)


def test_one_commit_of_the_encoder_and_nothing_else(folder, hub_here):
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", ".env", "notes.txt", "other.py"):
        (folder / name).write_text(f"token={SECRET}")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").write_bytes(b"state")
    publication = publish_encoder(folder, REPO, license="apache-2.0")
    files = hub_here.files(REPO)
    published = set(files) - {".gitattributes"}
    results = {path for path in published if path.startswith(".eval_results/")}
    assert results
    assert published - results == {
        "README.md",
        "config.json",
        "model.safetensors",
        "results.json",
        "spectra.json",
        "spectra.png",
        "spectra.safetensors",
    }
    assert [commit.parent is None for commit in hub_here.commits(REPO)] == [False, True]
    assert publication.files == {path: len(files[path]) for path in published}
    assert publication.url == f"{hub_here.url}/{REPO}"
    assert publication.commit == hub_here.commits(REPO)[0].oid
    assert files["README.md"].decode() == publication.card
    assert f"hf-hub:{REPO}" in publication.card
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not hub_here.repo(REPO).private


def test_a_dry_run_asks_nobody_and_shows_what_a_real_one_sends(folder, hub_here, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    shown = publish_encoder(folder, REPO, dry_run=True)
    assert hub_here.requests == []
    assert shown.url is None
    sent = publish_encoder(folder, REPO, token=hub_here.token, private=True)
    assert (shown.files, shown.card) == (sent.files, sent.card)
    assert hub_here.repo(REPO).private


def test_the_owners_words_stay_and_the_same_again_is_no_commit(folder, hub_here):
    publish_encoder(folder, REPO)
    card = hub_here.files(REPO)["README.md"].decode()
    hub_here.change(hub_here.repo(REPO), {"README.md": card + "\n## Thanks\n\nTo my cat.\n", "cat.txt": "Tom"})
    again = publish_encoder(folder, REPO)
    assert "To my cat." in hub_here.files(REPO)["README.md"].decode()
    assert hub_here.files(REPO)["cat.txt"] == b"Tom"
    assert again.commit == hub_here.commits(REPO)[0].oid
    before = len(hub_here.commits(REPO))
    publish_encoder(folder, REPO)
    assert len(hub_here.commits(REPO)) == before


def test_another_encoder_in_the_same_repo_leaves_nothing_of_the_first(folder, hub_here):
    publish_encoder(folder, REPO)
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "modeling_own.Own"}}
    hub_here.change(
        hub_here.repo(REPO),
        {"config.json": json.dumps(config), "modeling_own.py": "", "preprocessor_config.json": "{}", "own.txt": ""},
    )
    publish_encoder(folder, REPO)
    files = hub_here.files(REPO)
    assert not {"modeling_own.py", "preprocessor_config.json"} & set(files)
    assert "own.txt" in files


def eval_files(hub):
    return {name for name in hub.files(REPO) if name.startswith(".eval_results/")}


def changed_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def test_results_of_the_same_weights_stay_and_those_of_others_go(folder, hub_here):
    publish_encoder(folder, REPO)
    linear = Result("linear", "uoft-cs/cifar10", "test", "top1", 0.5, {"protocol": "sgd"})
    publish_results(REPO, [linear, dataclasses.replace(RESULT, value=0.9)])
    theirs = yaml.safe_dump(
        [{"dataset": {"id": "a/b", "task_id": "c"}, "value": 1, "source": {"url": "https://x.org"}}]
    )
    hub_here.change(hub_here.repo(REPO), {".eval_results/theirs.yaml": theirs})
    before, commits = hub_here.files(REPO), len(hub_here.commits(REPO))
    publish_encoder(folder, REPO)
    assert (hub_here.files(REPO), len(hub_here.commits(REPO))) == (before, commits)
    assert [entry["value"] for entry in json.loads(before["results.json"])] == [0.5, 0.9]

    changed_weights(folder)
    publish_encoder(folder, REPO)
    assert [entry["value"] for entry in json.loads(hub_here.files(REPO)["results.json"])] == [0.875]
    assert eval_files(hub_here) == {".eval_results/uoft_cs_cifar10-knn.yaml", ".eval_results/theirs.yaml"}
    (folder / "results.json").unlink()
    changed_weights(folder)
    publish_encoder(folder, REPO)
    assert eval_files(hub_here) == {".eval_results/theirs.yaml"}
    assert "results.json" not in hub_here.files(REPO)


def test_an_old_folders_results_lose_their_paths(folder, hub_here):
    write_results(folder / "results.json", [dataclasses.replace(RESULT, dataset="/secret/data/cats")])
    publish_encoder(folder, REPO)
    assert json.loads(hub_here.files(REPO)["results.json"])[0]["dataset"] == "cats"
    assert not any(b"secret" in content for content in hub_here.files(REPO).values())


def test_only_pictures_of_ours_or_in_the_card_go_out(folder, hub_here):
    for name in ("filters.png", "desk.png", "shown.png", "html.jpg"):
        (folder / name).write_bytes(b"picture")
    card = folder / "README.md"
    card.write_text(card.read_text() + '\n![mine](shown.png) <img src="./html.jpg"> ![up](../desk.png) desk.png\n')
    publish_encoder(folder, REPO)
    pictures = {name for name in hub_here.files(REPO) if name.endswith((".png", ".jpg"))}
    assert pictures == {"spectra.png", "filters.png", "shown.png", "html.jpg"}


def test_which_owners_text_won_is_said(folder, hub_here):
    assert publish_encoder(folder, REPO, dry_run=True).note is None
    assert publish_encoder(folder, REPO).note is None
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nWritten here.\n")
    assert "is kept instead" in publish_encoder(folder, REPO, dry_run=True).note
    again = publish_encoder(folder, REPO)
    assert "repository's card was kept" in again.note
    assert "Written here." not in again.card
    hub_here.change(hub_here.repo(REPO), {"README.md": hub_here.files(REPO)["README.md"] + b"\nWritten  here.\n"})
    assert publish_encoder(folder, REPO).note is None


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
    with pytest.raises(ValueError, match="cannot be updated: line 22"):
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
    with pytest.raises(ValueError, match=r"holds an access token.*nothing was published"):
        publish_encoder(folder, REPO, token="s3cret-0123456789" if which == "ours" else None)
    assert hub_here.repo(REPO) is None


def test_not_our_repo(folder, hub_here):
    hub_here.add_repo(REPO, {"config.json": '{"model_type": "bert"}', "model.safetensors": b"weights"})
    with pytest.raises(ValueError, match=r"holds files that orthossl did not publish.*choose another repo_id"):
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
    with pytest.raises(OSError, match=r"may not write to tester/encoder \(403\)"):
        publish_encoder(folder, REPO, token="reader")
    with pytest.raises(OSError, match=r"may not write to other/encoder \(403\)"):
        publish_encoder(folder, "other/encoder")
    publish_encoder(folder, REPO)
    (folder / "results.json").write_text("[]")
    with pytest.raises(OSError, match=r"may not write to tester/encoder \(403\)"):
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
    refused(ValueError, r"model.safetensors is broken")
    (folder / "model.safetensors").unlink()
    refused(FileNotFoundError, "has no model.safetensors")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(config[:-20])
    refused(ValueError, "config.json is not JSON")
    (folder / "config.json").write_text('{"architecture": "resnet18"}')
    refused(ValueError, "no orthossl block")
    assert hub_here.requests == []


@pytest.mark.parametrize("status", [500, 502, 429])
@pytest.mark.parametrize("request_line", ["GET /api/models", "POST .*create", "POST .*commit/", "validate-yaml"])
def test_a_stumbling_hub_is_asked_again(status, request_line, folder, hub_here):
    hub_here.fail(request_line, status, times=2)
    publish_encoder(folder, REPO)
    assert [fault.times for fault in hub_here.faults] == [0]
    assert len(hub_here.commits(REPO)) == 2


@pytest.mark.parametrize("request_line", ["PUT /lfs", "POST .*commit/", "POST .*preupload"])
def test_a_connection_cut_mid_upload_is_taken_up_again(request_line, folder, hub_here):
    hub_here.cut(request_line)
    publish_encoder(folder, REPO)
    assert [fault.times for fault in hub_here.faults] == [0]
    assert hub_here.files(REPO)["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(hub_here.commits(REPO)) == 2


@pytest.mark.parametrize("request_line", ["PUT /lfs", "POST .*commit/", "POST .*preupload", "validate-yaml"])
@pytest.mark.parametrize("how", ["status", "cut"])
def test_a_hub_that_stays_away_leaves_nothing_half_published(request_line, how, folder, hub_here):
    if how == "cut":
        hub_here.cut(request_line, times=1000)
    else:
        hub_here.fail(request_line, 503, times=1000)
    words = "connection to .* broke off" if how == "cut" else "answered 503 again and again"
    with pytest.raises(OSError, match=f"{words}.*nothing was published"):
        publish_encoder(folder, REPO)
    assert set(hub_here.files(REPO)) == {".gitattributes"}


@pytest.mark.parametrize("status", [None, 500, 504])
def test_a_commit_whose_answer_is_lost_is_recognized(status, folder, hub_here):
    if status is None:
        hub_here.cut("POST .*commit/", late=True)
    else:
        hub_here.fail("POST .*commit/", status, late=True)
    publication = publish_encoder(folder, REPO)
    assert publication.commit == hub_here.commits(REPO)[0].oid
    assert len(hub_here.commits(REPO)) == 2


def test_an_answer_lost_for_good_is_said_to_be_unknown(folder, hub_here):
    hub_here.cut("POST .*commit/", late=True)
    hub_here.fail("GET .*blobs", 500, times=1000)
    with pytest.raises(OSError, match="is not known: publish again later"):
        publish_encoder(folder, REPO)


def test_somebody_elses_commit_in_between(folder, hub_here, monkeypatch):
    publish_encoder(folder, REPO)
    (folder / "results.json").write_text("[]")
    commit = ModelRepo.commit

    def late(self, *arguments):
        hub_here.change(hub_here.repo(REPO), {"README.md": "theirs"})
        return commit(self, *arguments)

    monkeypatch.setattr(ModelRepo, "commit", late)
    with pytest.raises(OSError, match=r"changed while publishing \(412\): nothing was published"):
        publish_encoder(folder, REPO)
    assert hub_here.files(REPO)["README.md"] == b"theirs"
    assert hub_here.files(REPO)["results.json"] != b"[]"


def test_offline_is_said_so(folder, hub_here, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        publish_encoder(folder, REPO)
