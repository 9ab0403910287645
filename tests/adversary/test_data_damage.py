"""Data sets of strangers that are damaged, say anything, are huge in memory, or hold what is no file."""

import json
import os
import random
import socket
import struct
import zlib

from attacks import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stranger_data import (
    as_card,
    as_csv_metadata,
    as_metadata,
    as_parquet,
    as_parquet_file,
    as_saved,
    as_tar,
    as_zip,
    held,
    images,
    png,
)

generated = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


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


def chunk(name: bytes, body: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def measure(data, folder, *options, **limits):
    """Runs `spectra` on a data set."""
    argv = ("spectra", "resnet10t", "--untrained", "--dataset", data, "--output_dir", folder, *options)
    return command(*argv, **limits)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that announces so many pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6), 9)) + chunk(b"IEND", b"")


def test_bombs(world, attacks, tmp_path):
    """What is small on the disk and large in memory."""
    text = b"\x89PNG\r\n\x1a\n" + png(1)[8:33]
    packed = b"key\0\0" + zlib.compress(bytes(5 * 10**8), 9)
    text += chunk(b"zTXt", packed) + png(1)[33:]
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
            measure(folder, tmp_path, "--images", "20", memory=6 * 2**30).answered()


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
            measure(folder, tmp_path).worked()
        (folder / "list.txt").write_text("".join(f"{number}.png\n" for number in range(8)) + "odd.png\n")
        with attacks.attempt(f"a {kind} in a list"):
            measure(folder / "list.txt", tmp_path).answered()
        with attacks.attempt(f"a {kind} in a parquet file"):
            held(world, as_parquet_file(world.folder(), str(odd)))
        with attacks.attempt(f"a {kind} as the data set"):
            measure(odd, tmp_path).refused()
