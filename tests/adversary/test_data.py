"""Data sets of strangers: what they name outside, what they make the reader request, and what is damaged in them."""

import io
import json
import os
import random
import socket
import struct
import tarfile
import threading
import zipfile
import zlib
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attacks import command, ended, start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_orthossl.data import ImageDataset, StreamingImageDataset, load_source

RED = (201, 11, 31)
PARQUET = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
generated = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def png(number: int, size: int = 16) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 200, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class World:
    """A folder of the user's with a picture that nobody may read, and a server that nobody may ask."""

    def __init__(self, place: Path):
        self.place, self.asked, self.made = place, [], 0
        self.secret = place / "secret.png"
        Image.new("RGB", (16, 16), RED).save(self.secret)
        with zipfile.ZipFile(place / "secret.zip", "w") as archive:
            archive.write(self.secret, "secret.png")
        (place / "elsewhere").mkdir()
        parquet(place / "elsewhere" / "x.parquet", [{"bytes": self.secret.read_bytes(), "path": None}] * 3)
        os.mkfifo(place / "pipe.png")
        world = self

        class Trap(BaseHTTPRequestHandler):
            def do_GET(self):
                world.asked.append(self.path)
                self.send_response(404)
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Trap)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def folder(self) -> Path:
        self.made += 1
        folder = self.place / f"set{self.made}"
        folder.mkdir()
        return folder

    def targets(self) -> list[str]:
        secret = str(self.secret)
        return [
            *(
                secret,
                "../secret.png",
                f"x/../../{secret}",
                f"file://{secret}",
                f"local://{secret}",
                str(Path("~")) + secret,
            ),
            *(
                f"zip://secret.png::{self.place}/secret.zip",
                "zip://secret.png::../secret.zip",
                f"simplecache::file://{secret}",
            ),
            *(
                f"{self.url}/a.png",
                f"zip://a.png::{self.url}/a.zip",
                f"simplecache::{self.url}/a.png",
                f"hf://../{secret}",
            ),
            *(
                f"{self.place}/pipe.png",
                "/dev/zero",
                "/dev/stdin",
                "/proc/self/environ",
                "\x00",
                "",
                ".",
                "con",
                "a" * 5000,
            ),
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.server.shutdown()


def parquet(path: Path, rows: list[dict]) -> None:
    table = pa.table({"image": pa.array(rows, STRUCT), "label": pa.array([i % 2 for i in range(len(rows))])})
    pq.write_table(table.replace_schema_metadata(PARQUET), path)


def as_parquet(folder: Path, target: str) -> Path:
    parquet(
        folder / "a.parquet", [{"bytes": png(i), "path": None} for i in range(8)] + [{"bytes": None, "path": target}]
    )
    return folder


def as_parquet_file(folder: Path, target: str) -> Path:
    return as_parquet(folder, target) / "a.parquet"


def as_saved(folder: Path, target: str) -> Path:
    as_parquet(folder, target)
    table = pq.read_table(folder / "a.parquet")
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    saved = datasets.Dataset(table.replace_schema_metadata(None)).cast(features)
    (folder / "a.parquet").unlink()
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink:
        info = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
        table = saved.data.table.replace_schema_metadata(info).combine_chunks()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
        "_fingerprint": "a" * 16,
        "_format_columns": None,
    }
    state |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    info = {"features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def as_state(folder: Path, target: str) -> Path:
    """`save_to_disk` names its files, which are joined to the folder."""
    as_saved(folder, str(folder / "none.png"))
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": target}]
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def images(folder: Path) -> None:
    for number in range(8):
        (folder / f"{number}.png").write_bytes(png(number))


def as_metadata(folder: Path, target: str) -> Path:
    images(folder)
    names = [f"{number}.png" for number in range(8)] + [target]
    (folder / "metadata.jsonl").write_text("".join(json.dumps({"file_name": name}) + "\n" for name in names))
    return folder


def as_csv_metadata(folder: Path, target: str) -> Path:
    images(folder)
    clean = target.replace("\x00", "").replace('"', "")
    (folder / "metadata.csv").write_text(
        "file_name,label\n" + "".join(f"{n}.png,0\n" for n in range(8)) + f'"{clean}",1\n'
    )
    return folder


def as_card(folder: Path, target: str) -> Path:
    as_parquet(folder, str(folder / "none.png"))
    front = {"configs": [{"config_name": "default", "data_files": target}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(front)}\n---\n")
    return folder


def as_card_of_splits(folder: Path, target: str) -> Path:
    as_parquet(folder, str(folder / "none.png"))
    front = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": ["a.parquet", target]}]}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(front)}\n---\n")
    return folder


def as_card_folder(folder: Path, target: str) -> Path:
    as_parquet(folder, str(folder / "none.png"))
    front = {"configs": [{"config_name": "default", "data_dir": os.path.dirname(target) or target}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(front)}\n---\n")
    return folder


def as_column(folder: Path, target: str) -> Path:
    """A card that declares a column of texts as images."""
    names = pa.table({"image": [target] * 3})
    pq.write_table(names.replace_schema_metadata(PARQUET), folder / "a.parquet")
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\nconfigs:\n- config_name: default\n"
        "  data_files: a.parquet\n---\n"
    )
    return folder


def as_tar(folder: Path, target: str) -> Path:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name in ("a.png", "b.png", "c.png", target.replace("\x00", "")[:90] or "d.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png(1))
            archive.addfile(member, io.BytesIO(png(1)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo(f"link{ord(kind)}.png")
            member.type, member.linkname = kind, target.replace("\x00", "")[:90]
            archive.addfile(member)
    return folder / "a.tar"


def as_zip(folder: Path, target: str) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"{number}.png", png(number))
        archive.writestr("../../../escaped.png", png(9))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, target.replace("\x00", ""))
    return folder


CARRIERS = [
    *(as_parquet, as_parquet_file, as_saved, as_state, as_metadata, as_csv_metadata),
    *(as_card, as_card_of_splits, as_card_folder, as_column, as_tar, as_zip),
]


def read(data: Path, streaming: bool = False) -> list[tuple[int, int, int]]:
    """Reads every image of a data set as training does, and returns a corner of each."""
    source = load_source(str(data), streaming=streaming, max_unreadable=100)
    source.image_size  # noqa: B018
    if streaming:
        stream = StreamingImageDataset(source, image_size=16)
        return [tuple(item["pixel_values"][:, 0, 0].tolist()) for item in stream if "pixel_values" in item]
    items = ImageDataset(source, image_size=16, unreadable="omit")
    return [
        tuple(item["pixel_values"][:, 0, 0].tolist())
        for item in items.__getitems__(list(range(len(items))))
        if "pixel_values" in item
    ]


def held(world: World, data: Path, **options) -> None:
    """Asserts that reading ends well or in one line, shows nothing from outside, and asks no server."""
    world.asked.clear()
    corners = []
    # Errors of any other class are no answer to a user.
    with suppress(ValueError, OSError):
        corners = read(data, **options)
    assert not any(np.abs(np.subtract(corner, RED)).max() < 3 for corner in corners), "the picture outside was read"
    assert not world.asked, world.asked
    assert not list(world.place.glob("escaped*")) + list(world.place.parent.glob("escaped*"))


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier.__name__)
def test_nothing_outside_is_reached(carrier, world, attacks, monkeypatch):
    monkeypatch.chdir(world.place / "elsewhere")
    for target in world.targets():
        with attacks.attempt(f"{carrier.__name__} with {target[:80]!r}"):
            try:
                data = carrier(world.folder(), target)
            except (ValueError, OSError, pa.ArrowException):
                continue  # such a file cannot be made
            held(world, data)


@pytest.mark.parametrize("carrier", [as_parquet_file, as_metadata, as_card, as_column], ids=lambda c: c.__name__)
def test_nothing_outside_is_reached_by_commands(carrier, world, attacks):
    for target in (str(world.secret), f"{world.url}/a.png", "../elsewhere/x.parquet"):
        for streaming in ([], ["--streaming"]):
            data = carrier(world.folder(), target)
            world.asked.clear()
            with attacks.attempt(f"pretrain on {carrier.__name__} with {target!r} {streaming}"):
                outcome = command(
                    *(
                        "pretrain",
                        "--dataset",
                        data,
                        "--max_steps",
                        "1",
                        "--per_device_train_batch_size",
                        "4",
                        "--use_cpu",
                    ),
                    *("--backbone_config", "channels=[8,8,16,16]", "--output_dir", world.folder() / "run", *streaming),
                )
                assert outcome.code in (0, 2), outcome.tail
                assert "Traceback" not in outcome.err, outcome.tail
                assert not world.asked, world.asked


def test_data_sets_on_the_hub(world, local_hub, attacks, tmp_path):
    rows = [{"bytes": png(i), "path": None} for i in range(8)]
    parquet(tmp_path / "a.parquet", [*rows, {"bytes": None, "path": str(world.secret)}])
    shard = (tmp_path / "a.parquet").read_bytes()
    for place, (name, target) in enumerate(
        [
            ("a row that names a file here", "a.parquet"),
            ("a card that names a file here", str(world.place / "elsewhere" / "x.parquet")),
            ("a card that names another server", f"{world.url}/x.parquet"),
            ("a card that names a file above", "../../../../elsewhere/x.parquet"),
        ]
    ):
        front = json.dumps({"configs": [{"config_name": "default", "data_files": target}]})
        local_hub.add_repo(
            f"tester/data{place}", {"README.md": f"---\n{front}\n---\n", "a.parquet": shard}, kind="dataset"
        )
        world.asked.clear()
        with attacks.attempt(name):
            argv = [
                "spectra",
                "resnet10t",
                "--untrained",
                "--dataset",
                f"tester/data{place}",
                "--output_dir",
                tmp_path / "o",
            ]
            outcome = ended(start(*argv, "--max_unreadable", "5", **local_hub.environment(tmp_path / "home")))
            assert outcome.code in (0, 2), outcome.tail
            assert "Traceback" not in outcome.err, outcome.tail
            assert not world.asked
            if outcome.code == 0:
                assert "1 cannot be read" in outcome.out + (tmp_path / "o" / "spectra.txt").read_text(), outcome.out


def mutated(content: bytes, chosen: random.Random) -> bytes:
    """Some bytes changed, cut off, doubled or zeroed."""
    data = bytearray(content)
    kind = chosen.choice(["flip", "cut", "double", "zero", "insert"])
    start = chosen.randrange(len(data))
    length = min(chosen.choice([1, 4, 64, 1000]), len(data) - start)
    if kind == "flip":
        for place in range(start, start + length):
            data[place] ^= 1 << chosen.randrange(8)
    elif kind == "cut":
        del data[start:]
    elif kind == "double":
        data[start:start] = data[start : start + length]
    elif kind == "zero":
        data[start : start + length] = bytes(length)
    else:
        data[start:start] = chosen.randbytes(length)
    return bytes(data)


@generated
@given(
    carrier=st.sampled_from(
        [as_parquet, as_parquet_file, as_saved, as_metadata, as_csv_metadata, as_card, as_tar, as_zip]
    ),
    seed=st.integers(0, 2**32),
    streaming=st.booleans(),
)
def test_damaged_files(carrier, seed, streaming, world, attacks):
    chosen = random.Random(seed)
    folder = world.folder()
    data = carrier(folder, str(folder / "7.png"))
    for _ in range(4):
        file = chosen.choice(sorted(path for path in folder.iterdir() if path.is_file()))
        whole = file.read_bytes()
        file.write_bytes(mutated(whole, chosen))
        with attacks.attempt(f"{carrier.__name__}, {file.name} damaged with seed {seed}, streaming {streaming}"):
            held(world, data, streaming=streaming)
        file.write_bytes(whole)


@generated
@given(
    metadata=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=12,
    ),
    key=st.sampled_from(["configs", "dataset_info", "data_files", "license", "file_name", "features", "splits"]),
    kind=st.sampled_from(["README.md", "metadata.jsonl", "metadata.csv", "dataset_info.json", "dataset_infos.json"]),
)
def test_cards_and_metadata_of_any_content(metadata, key, kind, world, attacks):
    folder = world.folder()
    images(folder)
    as_parquet(folder, str(folder / "1.png"))
    text = json.dumps({key: metadata})
    if kind == "README.md":
        text = f"---\n{text}\n---\n"
    elif kind == "metadata.jsonl":
        text = f"{json.dumps({'file_name': '1.png', key: metadata})}\n{text}\n"
    elif kind == "metadata.csv":
        text = f"file_name,{key}\n1.png,{json.dumps(text)}\n"
    (folder / kind).write_text(text)
    with attacks.attempt(f"{kind} with {key}: {metadata!r}"):
        held(world, folder)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that announces so many pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6), 9)) + chunk(b"IEND", b"")


def test_bombs(world, attacks, tmp_path):
    """What is small on the disk and large in memory."""
    text = b"\x89PNG\r\n\x1a\n" + png(1)[8:33]
    packed = b"key\0\0" + zlib.compress(bytes(5 * 10**8), 9)
    text += (
        struct.pack(">I", len(packed))
        + b"zTXt"
        + packed
        + struct.pack(">I", zlib.crc32(b"zTXt" + packed))
        + png(1)[33:]
    )
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(ord('b') + n)}: &{chr(ord('b') + n)} [{','.join(['*' + chr(ord('a') + n)] * 9)}]\n" for n in range(9)
    )
    for name, files in {
        "60,000 × 60,000 pixels": {"x.png": bomb(60_000, 60_000)},
        "2³¹ − 1 pixels wide": {"x.png": bomb(2**31 - 1, 1)},
        "no pixels": {"x.png": bomb(0, 0)},
        "half a gigabyte of text": {"x.png": text},
        "a billion laughs": {"README.md": f"---\n{laughs}configs: *i\n---\n".encode()},
        "a card of 100 MB": {"README.md": b"---\na: " + b"x" * 10**8 + b"\n---\n"},
        "a deep card": {"README.md": b"---\nconfigs: " + b"[" * 50_000 + b"\n---\n"},
    }.items():
        folder = world.folder()
        images(folder)
        as_parquet(folder, str(folder / "1.png"))
        for file, content in files.items():
            (folder / file).write_bytes(content)
        if "x.png" in files:
            (folder / "a.parquet").unlink()
        with attacks.attempt(name):
            outcome = command(
                *(
                    "spectra",
                    "resnet10t",
                    "--untrained",
                    "--dataset",
                    folder,
                    "--output_dir",
                    tmp_path,
                    "--images",
                    "20",
                ),
                memory=6 * 2**30,
            )
            assert outcome.code in (0, 2), outcome.tail
            assert "Traceback" not in outcome.err, outcome.tail


def test_what_is_no_regular_file(world, attacks, tmp_path):
    for kind in ("pipe", "socket", "folder", "device", "loop", "dangling"):
        folder = world.folder()
        images(folder)
        odd = folder / "odd.png"
        if kind == "pipe":
            os.mkfifo(odd)
        elif kind == "socket":
            server = socket.socket(socket.AF_UNIX)
            here = os.getcwd()
            os.chdir(folder)
            server.bind("odd.png")
            os.chdir(here)
        elif kind == "folder":
            odd.mkdir()
        else:
            odd.symlink_to({"device": "/dev/zero", "loop": "odd.png", "dangling": "nowhere.png"}[kind])
        with attacks.attempt(f"a {kind} among the images"):
            outcome = command("spectra", "resnet10t", "--untrained", "--dataset", folder, "--output_dir", tmp_path)
            outcome.worked()
        (folder / "list.txt").write_text("".join(f"{number}.png\n" for number in range(8)) + "odd.png\n")
        with attacks.attempt(f"a {kind} in a list"):
            outcome = command(
                "spectra", "resnet10t", "--untrained", "--dataset", folder / "list.txt", "--output_dir", tmp_path
            )
            assert outcome.code in (0, 2), outcome.tail
            assert "Traceback" not in outcome.err, outcome.tail
        with attacks.attempt(f"a {kind} in a parquet file"):
            held(world, as_parquet_file(world.folder(), str(odd)))
        with attacks.attempt(f"a {kind} as the data set"):
            outcome = command("spectra", "resnet10t", "--untrained", "--dataset", odd, "--output_dir", tmp_path)
            outcome.refused()
