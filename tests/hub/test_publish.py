"""Publishing to a real server on loopback: what goes there, and that it loads without this package."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import torch
import yaml
from PIL import Image
from published_encoders import REPO, RESULT, SECRET, written
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from hf_orthossl.evaluation import Result, write_results
from hf_orthossl.hub import publish_encoder, publish_results

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
        "representations.png",
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
    assert pictures == {"spectra.png", "representations.png", "filters.png", "shown.png", "html.jpg"}


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
