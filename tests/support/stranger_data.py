"""Data sets as strangers write them: files that name others, beside a picture that nobody may read.

A server counts what is asked of it, which must be nothing.
"""

import io
import json
import os
import tarfile
import threading
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_orthossl.data import ImageDataset, StreamingImageDataset, load_source

RED = (201, 11, 31)
PARQUET = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


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
        """What may stand in the place of the name of a file."""
        secret, place = str(self.secret), self.place
        outside = [secret, "../secret.png", f"x/../../{secret}", f"file://{secret}", f"local://{secret}", f"~{secret}"]
        packed = [f"zip://secret.png::{place}/secret.zip", "zip://secret.png::../secret.zip"]
        packed += [f"simplecache::file://{secret}", f"simplecache::{self.url}/a.png", f"zip://a.png::{self.url}/a.zip"]
        odd = [f"{place}/pipe.png", "/dev/zero", "/dev/stdin", "/proc/self/environ", "\x00", "", ".", "con", "a" * 5000]
        return [*outside, *packed, f"{self.url}/a.png", f"hf://../{secret}", *odd]


@pytest.fixture(scope="session")
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
