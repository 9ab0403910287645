"""Nearest images, duplicates and outliers: against scikit-learn, planted ones, and what the command shows."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from sklearn.neighbors import NearestNeighbors

from hf_orthossl import load_encoder, load_source
from hf_orthossl.cli import main
from hf_orthossl.encoders import export_encoder
from hf_orthossl.retrieval import find_neighbours, nearest_others

SIDE = 32


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    return load_encoder("resnet10t", image_size=SIDE, channels=[8, 8, 16, 24]).eval()


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    export_encoder(encoder, folder / "encoder")
    return folder


def picture(seed, side=48):
    """A smooth random picture, which compression and small sizes change little."""
    noise = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


@pytest.fixture
def images(tmp_path):
    """40 images of two classes; of number 3 there is a second file of the same pixels and one of another class that
    was compressed, of number 8 one of another size."""
    folder = tmp_path / "images"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
    for number in range(40):
        picture(number).save(folder / ("cat", "dog")[number % 2] / f"{number:02d}.png")
    picture(3).save(folder / "dog" / "same.bmp")
    picture(3).save(folder / "cat" / "compressed.jpg", quality=80)
    picture(8).resize((96, 96), Image.Resampling.BICUBIC).save(folder / "cat" / "larger.png")
    return folder


def neighbours(*arguments):
    main(["neighbours", "--device=cpu", "--cache=none", *map(str, arguments)])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        neighbours(*arguments)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("orthossl")]
    return line


@pytest.mark.parametrize(("count", "k", "chunk"), [(200, 7, 64), (30, 29, 8), (5, 20, 2)])
def test_nearest_others_are_those_of_scikit_learn(count, k, chunk):
    vectors = torch.randn(count, 16)
    similarity, index = nearest_others(vectors, k, chunk=chunk)
    oracle = NearestNeighbors(n_neighbors=min(k, count - 1), metric="cosine", algorithm="brute").fit(vectors.double())
    distance, expected = oracle.kneighbors()
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_allclose(similarity, 1 - distance, atol=1e-6)


def test_equal_images_are_neighbours_of_each_other_and_never_of_themselves():
    vectors = torch.cat([torch.ones(6, 4), torch.randn(5, 4)])
    similarity, index = nearest_others(vectors, 3)
    assert similarity.shape == index.shape == (11, 3)
    assert not (index == torch.arange(11)[:, None]).any()
    assert all(len({*row}) == 3 for row in index.tolist())
    torch.testing.assert_close(similarity[:6], torch.ones(6, 3))


def test_planted_duplicates_are_found_and_no_others(encoder, images):
    found = find_neighbours(encoder, load_source(images))
    assert {group.kind for group in found.duplicates} == {"near"}
    members = [{image.path.rpartition("/")[2] for image in group.images} for group in found.duplicates]
    assert sorted(members, key=len) == [{"08.png", "larger.png"}, {"03.png", "same.bmp", "compressed.jpg"}]
    assert [group.disagrees for group in sorted(found.duplicates, key=lambda one: len(one.images))] == [False, True]
    (images / "cat" / "compressed.jpg").unlink()
    again = find_neighbours(encoder, load_source(images))
    assert again.duplicates[0].kind == "exact"
    assert {image.path.rpartition("/")[2] for image in again.duplicates[0].images} == {"03.png", "same.bmp"}
    assert again.duplicates[0].difference == 0


def test_outliers_have_the_largest_mean_distance(encoder, images):
    Image.new("RGB", (48, 48), (255, 0, 0)).save(images / "dog" / "red.png")
    source = load_source(images)
    found = find_neighbours(encoder, source, k=4)
    assert found.outliers[0].path.endswith("red.png")
    vectors = encoder.embed(source).vectors.double()
    distance, _ = NearestNeighbors(n_neighbors=4, metric="cosine", algorithm="brute").fit(vectors).kneighbors()
    expected = np.sort(distance.mean(1))[::-1][:20]
    np.testing.assert_allclose([one.distance for one in found.outliers], expected, atol=1e-5)


def test_queries_are_read_as_the_data_set_is(encoder, images, tmp_path):
    """A copy of an image elsewhere finds the image, also by the values that more than 8 bits have in the data set."""
    picture(5).save(tmp_path / "query.png")
    found = find_neighbours(encoder, load_source(images), queries=[tmp_path / "query.png"], k=2)
    (query,) = found.queries
    assert (query.row, query.label, query.neighbours[0].label) == (None, None, "dog")
    assert query.neighbours[0].path.endswith("dog/05.png")
    assert query.neighbours[0].similarity == pytest.approx(1, abs=1e-5)
    wide = tmp_path / "wide"
    wide.mkdir()
    for number in range(6):
        values = np.asarray(picture(number).convert("L")).astype(np.uint16) * 16
        Image.fromarray(values).save(wide / f"{number}.png")
    found = find_neighbours(encoder, load_source(wide), queries=[wide / "4.png"], k=1)
    assert found.queries[0].neighbours[0].similarity == pytest.approx(1, abs=1e-5)


def test_a_collapsed_encoder_is_said_so(images, tmp_path, capsys):
    torch.manual_seed(0)
    encoder = load_encoder("resnet10t", image_size=SIDE, channels=[8, 8, 8, 8])
    with torch.no_grad():
        for parameter in encoder.backbone.layer4.parameters():
            parameter.zero_()
    export_encoder(encoder, tmp_path / "encoder")
    out = tmp_path / "out"
    out.mkdir()
    (out / "duplicates.png").write_bytes(b"of an earlier run")
    neighbours(tmp_path, "--dataset", images, "--output_dir", out)
    assert "The representations of all 43 images are equal: the encoder has collapsed" in capsys.readouterr().out
    written = json.loads((out / "neighbours.json").read_text())
    assert (written["collapsed"], written["queries"], written["outliers"]) == (True, [], [])
    assert [path.name for path in out.iterdir()] == ["neighbours.json"]


def test_the_command_writes_sheets_and_json(model, images, tmp_path, capsys):
    (images / "cat" / "00.png").write_bytes(b"")
    out = tmp_path / "out"
    neighbours(model, "--dataset", images, "--k", 3, "--shown", 5, "--output_dir", out)
    told = capsys.readouterr().out
    assert "Note: 42 of 43 images of train were used: 1 cannot be read and was left out" in told
    assert "queries  5 images, 3 neighbours each" in told
    assert "copies   5 images in 2 groups: 0 of equal pixels, 2 of nearly equal ones; 1 with different classes" in told
    assert f"results  {out} (neighbours.png, duplicates.png, outliers.png, neighbours.json)" in told
    written = json.loads((out / "neighbours.json").read_text())
    assert written["about"]["images"] == 42
    assert [len(query["neighbours"]) for query in written["queries"]] == [3] * 5
    for name in ("neighbours.png", "duplicates.png", "outliers.png"):
        with Image.open(out / name) as sheet:
            assert np.asarray(sheet.convert("L")).std() > 20
    # In Python the same.
    found = find_neighbours(
        load_encoder(model, pretrained=True).eval(), load_source(images), model=str(model), k=3, shown=5
    )
    assert json.loads(json.dumps(found.to_json()["queries"])) == written["queries"]


def test_bad_input_is_one_line(model, images, tmp_path, capsys):
    data = ["--dataset", images, "--output_dir", tmp_path / "out"]
    (tmp_path / "text.txt").write_text("no image")
    line = refused(capsys, model, *data, "--query", tmp_path / "text.txt")
    assert line.startswith(f"orthossl neighbours: error: query {tmp_path / 'text.txt'} cannot be read (")
    assert line.endswith("pass the path of an image file")
    assert "cannot be read (no such file)" in refused(capsys, model, *data, "--query", tmp_path / "gone.png")
    assert "cannot be read (not a regular file)" in refused(capsys, model, *data, "--query", images)
    assert "k is 0: it must be 1 or more" in refused(capsys, model, *data, "--k", 0)
    assert "shown is 41: a sheet has at most 40 rows" in refused(capsys, model, *data, "--shown", 41)
    one = ["--dataset", images / "cat" / "00.png", "--output_dir", tmp_path / "out"]
    assert "has 1 image: pass a data set of at least 2 images" in refused(capsys, model, *one)
    assert not (tmp_path / "out").exists()


def shared_neighbours(model, images):
    return find_neighbours(load_encoder(model, pretrained=True), load_source(images), k=3).to_json()


def test_several_processes_find_the_same(model, images, two_processes):
    alone = shared_neighbours(model, images)
    for found in two_processes.run(shared_neighbours, model, images):
        assert [query["path"] for query in found["queries"]] == [query["path"] for query in alone["queries"]]
        for ours, theirs in zip(found["queries"], alone["queries"], strict=True):
            assert [near["path"] for near in ours["neighbours"]] == [near["path"] for near in theirs["neighbours"]]
        assert [group["images"] for group in found["duplicates"]] == [group["images"] for group in alone["duplicates"]]
