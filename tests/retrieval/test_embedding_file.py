"""`orthossl embed`: the same rows in each format, whatever kills and processes do, and every bad input in one line."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from hf_orthossl import load_encoder, load_source
from hf_orthossl.cli import main
from hf_orthossl.data import ImageDataset
from hf_orthossl.encoders import export_encoder
from hf_orthossl.retrieval import embed_to_file, embedding_file, formats

SIDE, WIDTH = 32, 24


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    return load_encoder("resnet10t", image_size=SIDE, channels=[8, 8, 16, WIDTH]).eval()


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    export_encoder(encoder, folder / "encoder")
    return folder


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(embedding_file, "PART_IMAGES", 8)


@pytest.fixture
def images(tmp_path):
    """Two classes of 15 images each, of which two cannot be read."""
    rng = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / "images" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE + number, 3), dtype=np.uint8)).save(path)
    for name in ("cat/04.png", "dog/29.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    return tmp_path / "images"


def embed(*arguments):
    main(["embed", "--batch_size=4", "--device=cpu", *map(str, arguments)])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        embed(*arguments)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("orthossl")]
    return line


def read(path):
    """Return vectors, paths, labels and what ran, of any of the formats."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"hf_orthossl"])
        vectors = np.array(table["vector"].to_pylist(), dtype=np.float32).reshape(len(table), *about["shape"])
        return vectors, table["path"].to_pylist(), table["label"].to_pylist(), about
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            about = json.loads(str(arrays["about"]))
            return arrays["vectors"], arrays["paths"].tolist(), arrays["labels"].tolist(), about
    with path.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    about = json.loads(path.with_suffix(".json").read_text())
    vectors = np.load(path, mmap_mode="r")
    return vectors, [row["path"] for row in rows], [int(row["label"]) for row in rows], about


@pytest.mark.parametrize("name", ["out.parquet", "out.npz", "out.npy"])
def test_one_row_per_image(name, model, images, tmp_path, capsys, small_parts):
    output = tmp_path / "new" / name
    embed(model, "--dataset", images, "--output", output)
    vectors, paths, labels, about = read(output)
    source = load_source(images)
    kept = [row for row in range(30) if source.names([row])[0][-6:] not in ("04.png", "29.png")]
    assert paths == source.names(kept)
    assert labels == [int("dog" in path) for path in paths]
    plain = timm.create_model(f"local-dir:{model / 'encoder'}", pretrained=True).eval()
    pixels = torch.stack([ImageDataset(source, image_size=SIDE)[row]["pixel_values"] for row in kept]) / 255
    mean, std = (torch.tensor(plain.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = plain((pixels - mean) / std)
    assert vectors.dtype == np.float32
    torch.testing.assert_close(torch.tensor(np.array(vectors)), expected, atol=1e-5, rtol=1e-5)
    assert about["images"] == 28
    assert [entry[1][-10:] for entry in about["unreadable"]] == ["cat/04.png", "dog/29.png"]
    assert (about["encoder"]["model"], about["data"]["fingerprint"]) == (str(model), source.fingerprint)
    assert (about["layer"], about["shape"], about["data"]["class_names"]) == ("representation", [24], ["cat", "dog"])
    out = capsys.readouterr().out
    assert "Note: 28 of 30 images of train were used: 2 cannot be read and were left out (" in out
    assert f"vectors  {output} (28 rows of 24 numbers" in out
    left = {output, output.with_suffix(".csv"), output.with_suffix(".json")} if name.endswith("npy") else {output}
    assert {*output.parent.iterdir()} == left


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_goes_on(seed, model, images, tmp_path, capsys, monkeypatch, small_parts):
    """Killed again and again, in any batch and while the output is written: no row is missing or doubled."""
    whole, output = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    embed(model, "--dataset", images, "--output", whole)
    rng = np.random.default_rng(seed)
    read_vectors, write = embedding_file.VectorReader.__call__, formats.WRITERS[".parquet"]
    left = 0

    def killed(reader, pixels):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return read_vectors(reader, pixels)

    def killed_writing(file, *rest):
        write(file, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding_file.VectorReader, "__call__", killed)
    monkeypatch.setitem(formats.WRITERS, ".parquet", killed_writing)
    (folder, done) = (tmp_path / ".killed.parquet.parts", [])
    while len(done) < 4:
        # One batch is that which finds the shape of the vectors.
        left = int(rng.integers(3, 6))
        with pytest.raises(SystemExit) as stop:
            embed(model, "--dataset", images, "--output", output)
        assert stop.value.code == 130
        assert not output.exists()
        before, done = done, sorted(path.name for path in folder.glob("part-*"))
        assert {*before} <= {*done}
        # As a power failure leaves it.
        if len(done) == 2:
            (folder / done[0]).write_bytes(b"PAR1")
    monkeypatch.undo()
    capsys.readouterr()
    embed(model, "--dataset", images, "--output", output)
    assert "resumed  30 of 30 images were embedded before" in capsys.readouterr().out
    assert pq.read_table(output).equals(pq.read_table(whole), check_metadata=True)
    assert not folder.exists()


def begun(model, images, output, monkeypatch):
    """Begin an output and stop before its first part."""

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedding_file, "_write_part", stopped)
        with pytest.raises(SystemExit):
            embed(model, "--dataset", images, "--output", output)


def test_a_run_goes_on_only_with_the_same_encoder_data_and_layer(model, images, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out.npz"
    begun(model, images, output, monkeypatch)
    capsys.readouterr()
    command = [model, "--dataset", images, "--output", output]
    assert "was begun with layer representation, which is layer2 now: repeat that command" in refused(
        capsys, *command, "--layer", "layer2"
    )
    assert "was begun with another encoder (" in refused(capsys, *command, "--untrained")
    assert "was begun with resize shorter side to 32 px" in refused(capsys, *command, "--image_size", 64)
    (images / "cat" / "02.png").unlink()
    assert "was begun with other images (30 images before, 29 now)" in refused(capsys, *command)
    assert not output.exists()


def test_tokens_and_layers(images, tmp_path, capsys):
    vit = ["test_vit", "--untrained", "--image_size", SIDE, "--dataset", images, "--tokens", "patch"]
    embed(*vit, "--output", tmp_path / "a.npy")
    embed(*vit, "--output", tmp_path / "a.parquet")
    vectors, _, _, about = read(tmp_path / "a.npy")
    assert vectors.shape[1:] == tuple(about["shape"]) == (2, 2, 64)
    np.testing.assert_array_equal(read(tmp_path / "a.parquet")[0], vectors)
    assert "28 rows of 2×2×64 numbers" in capsys.readouterr().out
    torch.manual_seed(0)
    encoder = load_encoder("test_vit", image_size=SIDE)
    expected = encoder.embed(images, tokens="patch").vectors
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)


def test_images_without_files_or_labels(encoder, tmp_path):
    rng = np.random.default_rng(0)
    source = load_source([Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(3)])
    written = embed_to_file(encoder, source, tmp_path / "out.parquet", batch_size=2)
    assert (written.images, written.shape, written.computed) == (3, (WIDTH,), 3)
    table = pq.read_table(written.path)
    assert table.column_names == ["row", "path", "vector"]
    assert table["path"].to_pylist() == ["row 0", "row 1", "row 2"]


def test_collapse_and_broken_weights_are_said(tmp_path):
    torch.manual_seed(0)
    encoder = load_encoder("resnet10t", image_size=SIDE, channels=[8, 8, 8, 8])
    source = load_source("digits", split="test[:20]")
    last = encoder.backbone.layer4[-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()
    written = embed_to_file(encoder, source, tmp_path / "equal.npz")
    assert written.notes == ["The vectors of all 20 images are equal: at this layer the encoder has collapsed."]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.fill_(float("nan"))
    written = embed_to_file(encoder, source, tmp_path / "broken.npz")
    assert written.notes == ["20 of 20 vectors are not finite: the encoder may have diverged."]


def test_too_many_unreadable_images_stop_it_and_a_higher_limit_goes_on(model, images, tmp_path, capsys, small_parts):
    command = [model, "--dataset", images, "--output", tmp_path / "out.npz"]
    line = refused(capsys, *command, "--max_unreadable", 1)
    assert "2 of 30 images cannot be read, more than the 1 allowed" in line
    assert "cat/04.png (the file is empty)" in line
    embed(*command, "--max_unreadable", 2)
    out = capsys.readouterr().out
    assert "resumed  30 of 30 images were embedded before" in out
    assert read(tmp_path / "out.npz")[0].shape == (28, WIDTH)


def test_bad_input_is_one_line(model, images, tmp_path, capsys):
    there = tmp_path / "there.npz"
    there.write_bytes(b"mine")
    data = ["--dataset", images]
    assert f"output {there} exists: remove it, or pass another --output" in refused(
        capsys, model, *data, "--output", there
    )
    # Before anything is opened or downloaded.
    assert f"output {there} exists" in refused(capsys, "no/such-model", "--dataset", "no/data", "--output", there)
    assert there.read_bytes() == b"mine"
    (tmp_path / "a.csv").write_bytes(b"mine")
    assert "a.csv exists" in refused(capsys, model, *data, "--output", tmp_path / "a.npy")
    assert "its name must end in .parquet, .npz, .npy" in refused(capsys, model, *data, "--output", tmp_path / "a.csv")
    assert "there.npz is a file: pass another --output" in refused(capsys, model, *data, "--output", there / "a.npz")
    out = ["--output", tmp_path / "out.npz"]
    assert f"layer is 'layer22', which backbone '{model}' does not have: did you mean 'layer2'" in refused(
        capsys, model, *data, *out, "--layer", "layer22"
    )
    assert "there is no such file or folder" in refused(capsys, model, "--dataset", tmp_path / "gone", *out)
    assert "tokens is 'patches': did you mean 'patch'?" in refused(capsys, model, *data, *out, "--tokens", "patches")
    assert "batch_size is 0: it must be 1 or more" in refused(capsys, model, *data, *out, "--batch_size", 0)
    assert "split 'tset' is not in data set" in refused(capsys, model, *data, *out, "--split", "tset")
    flat = ["linear", "--untrained", *data, *out, "--image_size", 8]
    assert "has neither patch tokens nor a feature map at its end" in refused(capsys, *flat, "--tokens", "patch")
    assert {path.name for path in tmp_path.iterdir()} == {"images", "there.npz", "a.csv"}


def embed_shared(model, images, output):
    """Embed in one of several processes, and return what was written and which parts this one computed."""
    written, write = [], embedding_file._write_part

    def counted(folder, number, *rest):
        written.append(number)
        write(folder, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_file, "PART_IMAGES", 8)
        patch.setattr(embedding_file, "_write_part", counted)
        encoder = load_encoder(model, pretrained=True)
        done = embed_to_file(encoder, load_source(images), output, batch_size=4)
    return done.images, done.notes, written


def test_several_processes_share_the_images_out(model, images, tmp_path, two_processes):
    alone = embed_shared(model, images, tmp_path / "alone.parquet")
    first, second = two_processes.run(embed_shared, model, images, tmp_path / "together.parquet")
    assert (first[2], second[2]) == ([0, 1], [2, 3])
    assert first[:2] == second[:2] == alone[:2]
    expected, found = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("alone", "together"))
    assert found.drop(["vector"]).equals(expected.drop(["vector"]))
    vectors = [np.array(table["vector"].to_pylist()) for table in (found, expected)]
    np.testing.assert_allclose(*vectors, atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "alone.parquet", "together.parquet"}
