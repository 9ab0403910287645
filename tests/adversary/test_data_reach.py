"""Data sets of strangers that name what is outside of them: files of the user, other servers, pipes and devices."""

import json

import pyarrow as pa
import pytest
from attacks import command, ended, start
from stranger_data import (
    CARRIERS,
    as_card,
    as_card_folder,
    as_column,
    as_metadata,
    as_parquet_file,
    as_state,
    held,
    images,
    parquet,
    png,
    read,
)


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier.__name__)
def test_nothing_outside_is_reached(carrier, world, attacks, monkeypatch):
    monkeypatch.chdir(world.place / "elsewhere")
    for target in world.targets():
        try:
            data = carrier(world.folder(), target)
        except (ValueError, OSError, pa.ArrowException):
            continue  # such a file cannot be made
        with attacks.attempt(f"{carrier.__name__} with {target[:80]!r}"):
            held(world, data)


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier.__name__)
def test_what_is_inside_is_read(carrier, world):
    """The control: what the other tests see refused is refused for its target, and not for its form."""
    folder = world.folder()
    images(folder)
    targets = {as_state: "data-00000-of-00001.arrow", as_card_folder: ".", as_card: "a.parquet"}
    assert len(read(carrier(folder, targets.get(carrier, "1.png")))) >= 3


@pytest.mark.parametrize("carrier", [as_parquet_file, as_metadata, as_card, as_column], ids=lambda c: c.__name__)
def test_nothing_outside_is_reached_by_commands(carrier, world, attacks):
    for target in (str(world.secret), f"{world.url}/a.png", "../elsewhere/x.parquet"):
        for streaming in ("", "--streaming"):
            data = carrier(world.folder(), target)
            world.asked.clear()
            with attacks.attempt(f"pretrain on {carrier.__name__} with {target!r} {streaming}"):
                options = "--max_steps 1 --per_device_train_batch_size 4 --backbone_config channels=[8,8,16,16]"
                folder = world.folder() / "run"
                outcome = command(
                    *("pretrain", "--dataset", data, "--output_dir", folder), *options.split(), *streaming.split()
                )
                outcome.answered()
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
            options = f"spectra resnet10t --untrained --dataset tester/data{place} --max_unreadable 5"
            argv = (*options.split(), "--output_dir", tmp_path / "o")
            outcome = ended(start(*argv, **local_hub.environment(tmp_path / "home")))
            outcome.answered()
            assert not world.asked
            if outcome.code == 0:
                assert "1 cannot be read" in outcome.out + (tmp_path / "o" / "spectra.txt").read_text(), outcome.out
