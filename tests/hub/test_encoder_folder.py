"""The folder a run leaves: its card's snippets run and give the encoder's own representation."""

import dataclasses
import json

import pytest
import torch
import yaml
from PIL import Image
from transformers import ViTConfig, ViTModel

from hf_orthossl import SSLConfig, SSLModel, load_encoder
from hf_orthossl.data import ImageDataset, load_source
from hf_orthossl.evaluation import Result, extract_features, read_results
from hf_orthossl.hub import encoder_folder, render_card, write_encoder_folder
from hf_orthossl.hub.encoder_record import EncoderRecord

SMALL = {"channels": [8, 8, 16, 16]}


@pytest.fixture(scope="module")
def digits():
    return load_source("digits", split="train[:60]")


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """A Hugging Face ViT as someone else would have saved it."""
    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def written(backbone, source, folder, *, training=None, results=None, **config):
    torch.manual_seed(0)
    encoder = load_encoder(backbone, image_size=32, **config)
    settings = {"method": "byol", "regularizer": "so", "regularizer_config": {"include": "*"}}
    settings |= {"embedding_regularizer": "sigreg", "embedding_config": {"slices": 8}}
    model = SSLModel(SSLConfig(backbone, image_size=32, backbone_config=config, **settings), encoder)
    results = [Result("knn", "digits", "test", "top1", 0.875, {"step": "end"})] if results is None else results
    return encoder.eval(), write_encoder_folder(model, folder, source=source, results=results, training=training)


def snippets(folder):
    return [part.split("```")[0] for part in (folder / "README.md").read_text().split("```python")[1:]]


@pytest.mark.parametrize("library", ["timm", "transformers", "remote code"])
def test_every_snippet_gives_the_encoders_representations(library, digits, vit_folder, tmp_path, monkeypatch):
    backbone = {"timm": "resnet10t", "transformers": str(vit_folder), "remote code": "wide_resnet28_2"}[library]
    encoder, folder = written(backbone, digits, tmp_path / "encoder", **(SMALL if library == "timm" else {}))
    pixels = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    with torch.no_grad():
        expected = encoder((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    write_pair(tmp_path, pixels, monkeypatch)
    found = snippets(folder)
    assert len(found) == (3 if library == "timm" else 2)
    assert ("import timm" in found[0]) == (library == "timm")
    for snippet in found:
        scope = {}
        exec(snippet, scope)
        if "similarity" in snippet:
            torch.testing.assert_close(scope["representations"], expected, rtol=1e-4, atol=1e-5)
            similarity = expected[0].double() @ expected[1].double() / expected.double().norm(dim=1).prod()
            assert scope["similarity"].item() == pytest.approx(similarity.item(), abs=1e-5)
        else:
            torch.testing.assert_close(scope["representation"].detach(), expected[:1], rtol=1e-4, atol=1e-5)


def write_pair(folder, pixels, monkeypatch):
    """Write the two images that the snippets open, without loss whatever their names say, and go to their folder."""
    for name, image in zip(("first.jpg", "second.jpg"), pixels.numpy(), strict=True):
        Image.fromarray(image).save(folder / name, "PNG")
    monkeypatch.chdir(folder)


def test_a_path_of_any_characters_is_a_valid_snippet(digits, tmp_path, monkeypatch):
    _, folder = written("resnet10t", digits, tmp_path / 'it\'s <b>"`x`"\n```', **SMALL)
    write_pair(tmp_path, torch.zeros(2, 32, 32, 3, dtype=torch.uint8), monkeypatch)
    for snippet in snippets(folder):
        exec(snippet, {})


def test_the_folder_says_what_was_done(digits, tmp_path):
    training = {"optim": "lars", "learning_rate": 0.3, "steps": 12, "seed": 5}
    _, folder = written("resnet10t", digits, tmp_path / "encoder", training=training, **SMALL)
    record = EncoderRecord.read(folder)
    assert (record.method, record.regularizer, record.image_size, record.num_images) == ("byol", "so", 32, 60)
    assert record.training == training
    assert record.regularizer_config == {"include": "*"}
    embedding = (record.embedding_regularizer, record.embedding_weight, record.embedding_layer)
    assert embedding == ("sigreg", 0.05, "embedding")
    assert record.embedding_config == {"slices": 8, "points": 17, "t_max": 5.0}
    assert (record.library, record.remote_code, record.base_model) == ("timm", False, None)
    assert read_results(folder / "results.json")[0].value == 0.875
    spectra = json.loads((folder / "spectra.json").read_text())
    assert spectra["metadata"]["num_images"] == 60
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "timm"
    assert {"orthossl", "byol", "so", "sigreg"} <= set(front["tags"])
    for text in ("0.875", "| optimizer | lars |", "| optimizer steps | 12 |", "60 images of digits", "spectra.png"):
        assert text in card
    assert "A regularizer of the embedding was added to its loss: SIGReg, w = 0.05." in card
    for text in ("| regularizer of the embedding | SIGReg |", "| w | 0.05 |", "| slices (sigreg) | 8 |"):
        assert text in card


def test_paths_of_this_machine_stay_here(digits, vit_folder, tmp_path):
    source = load_source("digits", split="train[:60]")
    source.name = str(tmp_path / "holiday")
    _, folder = written(str(vit_folder), source, tmp_path / "encoder")
    record = json.loads((folder / "config.json").read_text())["orthossl"]
    assert record["dataset"] == "holiday"
    assert str(tmp_path) not in json.dumps(record) + (folder / "spectra.json").read_text()
    assert str(tmp_path) not in render_card(folder, repo_id="user/name")


def test_a_second_export_replaces_the_first_but_not_what_its_owner_wrote(digits, tmp_path):
    _, folder = written("resnet10t", digits, tmp_path / "encoder", **SMALL)
    card = folder / "README.md"
    mine = b"My own words, caf\xc3\xa9.\r\nAnd more of them.\n"
    card.write_bytes(card.read_bytes() + mine)
    config = {"channels": [8, 8, 16, 32]}
    encoder, folder = written("resnet10t", digits, tmp_path / "encoder", results=[], **config)
    assert load_encoder(str(folder), pretrained=True).num_features == encoder.num_features == 32
    text = card.read_bytes()
    assert text.endswith(mine)
    assert b"a vector of 32 numbers" in text
    assert b"a vector of 16 numbers" not in text
    assert not (folder / "results.json").exists(), "numbers of other weights"


def test_broken_markers_cost_neither_the_run_nor_the_text(digits, tmp_path):
    _, folder = written("resnet10t", digits, tmp_path / "encoder", **SMALL)
    card = folder / "README.md"
    broken = card.read_text().replace("<!-- /orthossl:usage -->", "")
    card.write_text(broken)
    with pytest.warns(UserWarning, match="was not updated.*section results begins before section usage"):
        written("resnet10t", digits, tmp_path / "encoder", **SMALL)
    assert card.read_text() == broken


def test_no_data_set_gives_spectra_of_the_weights(tmp_path):
    _, folder = written("resnet10t", None, tmp_path / "encoder", **SMALL)
    assert "only the spectra of the weights" in (folder / "README.md").read_text()


def test_labelled_images_give_a_map_and_private_classes_keep_their_names(digits, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(encoder_folder, "plot_representations", lambda *args, **kwargs: drawn.append((args, kwargs)))
    encoder, _ = written("resnet10t", digits, tmp_path / "named", **SMALL)
    (representations, labels, path), options = drawn[0]
    assert options["class_names"] == [str(number) for number in range(10)]
    assert path.name == "representations.png"
    assert torch.equal(labels, torch.tensor(digits.dataset["label"]))
    expected = extract_features(encoder, ImageDataset(digits, image_size=32, unreadable="omit")).representations
    torch.testing.assert_close(representations, expected)
    private = dataclasses.replace(digits, name=str(tmp_path / "patients"))
    written("resnet10t", private, tmp_path / "private", **SMALL)
    assert drawn[1][1]["class_names"] is None
    unlabelled = dataclasses.replace(digits, label_column=None)
    written("resnet10t", unlabelled, tmp_path / "unlabelled", **SMALL)
    assert len(drawn) == 2


def test_the_card_shows_the_map_even_of_a_collapsed_encoder(digits, tmp_path):
    torch.manual_seed(0)
    encoder = load_encoder("resnet10t", image_size=32, **SMALL)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.zero_()
    model = SSLModel(SSLConfig("resnet10t", image_size=32, backbone_config=SMALL), encoder)
    folder = write_encoder_folder(model, tmp_path / "encoder", source=digits)
    assert (folder / "representations.png").is_file()
    assert "](representations.png)" in (folder / "README.md").read_text()
