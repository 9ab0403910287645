"""What a checkpoint folder looks like after any damage and after a kill at any moment, without a model."""

import os
import shutil
import subprocess

import pytest
from survival_runs import KILLED, Life

from hf_orthossl.training.checkpoints import (
    MANIFEST,
    damage,
    newest_checkpoint,
    remove_old_checkpoints,
    seal,
    staged,
)

FILES = {"model.safetensors": b"weights" * 5, "loop_state.json": b'{"step": 2}', "sharded/part_0": b"part"}


def write(folder, content=FILES):
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def checkpoint(tmp_path):
    write(tmp_path / "checkpoint-2")
    seal(tmp_path / "checkpoint-2")
    return tmp_path / "checkpoint-2"


def test_every_flipped_bit_and_every_cut_is_found(checkpoint):
    assert damage(checkpoint) is None
    for name in (*FILES, MANIFEST):
        path, whole = checkpoint / name, (checkpoint / name).read_bytes()
        for place in range(len(whole)):
            # More bits of the manifest: there a flip could make other, valid JSON.
            for bit in range(place % 2, 8, 2) if name == MANIFEST else (place % 8,):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
                reason = damage(checkpoint)
                assert reason is not None, (name, place, bit)
                assert name == MANIFEST or reason == f"{name}: checksum differs"
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            assert damage(checkpoint, thorough=False) is not None, (name, length)
        path.unlink()
        assert damage(checkpoint, thorough=False) == f"{name} is missing"
        path.write_bytes(whole)
    assert damage(checkpoint) is None


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
@pytest.mark.parametrize("name", [MANIFEST, "model.safetensors", "sharded/part_0"])
def test_a_pipe_in_place_of_a_file_is_damage_and_not_waited_for(checkpoint, name):
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    assert damage(checkpoint) == f"{name} is not a regular file"


def test_the_manifest_holds_what_sha256sum_says(checkpoint):
    listed = subprocess.run(["sha256sum", *FILES], cwd=checkpoint, capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        checksum, name = line.split()
        assert f'"sha256": "{checksum}"' in (checkpoint / MANIFEST).read_text(), name


def save_and_die(folder, step, after):
    """Saves a checkpoint in the staging folder, and dies before the `after`-th operation on a file."""
    import sys

    left = [after]

    def watch(event, arguments):
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and str(folder) in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os._exit(KILLED)

    sys.addaudithook(watch)
    with staged(folder, step) as staging:
        write(staging / f"checkpoint-{step}", {name: data * step for name, data in FILES.items()})
    remove_old_checkpoints(folder, 1, folder / f"checkpoint-{step}")


def is_ours(checkpoint):
    """Accept every checkpoint: which run one belongs to is asked in test_one_run_one_folder.py."""


def test_a_kill_at_any_operation_leaves_a_whole_checkpoint(tmp_path):
    """The one before or the new one, never less; and the next start cleans up."""
    for step, again in ((3, False), (2, True)):  # 2 is there already, as after a run was started anew
        after, found, died = 0, [], KILLED
        while died == KILLED:
            after += 1
            folder = tmp_path / f"{step}-{after}"
            write(folder / "checkpoint-2")
            seal(folder / "checkpoint-2")
            died = Life(save_and_die, folder, step, after).end()
            newest = newest_checkpoint(folder, "loop_state.json", is_ours)
            found.append((newest / "model.safetensors").read_bytes() == FILES["model.safetensors"] * step)
            assert found[-1] or (newest / "model.safetensors").read_bytes() == FILES["model.safetensors"]
            assert damage(newest) is None
            assert {path.name.partition("-")[0] for path in folder.iterdir()} == {"checkpoint"}
        assert died == 0
        assert after > 15
        # The old one until the new one is complete, and from then on the new one.
        assert found == sorted(found)
        assert not found[0]
        assert again or {path.name for path in folder.iterdir()} == {"checkpoint-3"}


@pytest.fixture
def five(tmp_path):
    for step in (1, 2, 3, 10, 11):
        write(tmp_path / f"checkpoint-{step}")
        seal(tmp_path / f"checkpoint-{step}")
    return tmp_path


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_old_checkpoints_go_and_the_only_whole_one_stays(five):
    remove_old_checkpoints(five, None, five / "checkpoint-11")
    remove_old_checkpoints(five, 0, five / "checkpoint-11")
    assert len(names(five)) == 5
    (five / "checkpoint-10" / "model.safetensors").write_bytes(b"cut off")
    remove_old_checkpoints(five, 2, five / "checkpoint-11")
    # Of the two kept, the damaged one is none.
    assert names(five) == {"checkpoint-11", "checkpoint-10", "checkpoint-3"}
    remove_old_checkpoints(five, 1, five / "checkpoint-11")
    assert names(five) == {"checkpoint-11"}


def test_checkpoints_ahead_of_the_run_are_left_alone(five):
    remove_old_checkpoints(five, 1, five / "checkpoint-3")
    assert names(five) == {"checkpoint-3", "checkpoint-10", "checkpoint-11"}


def test_the_newest_whole_one_is_taken_and_the_others_named(five, caplog):
    (five / "checkpoint-11" / MANIFEST).unlink()
    with (five / "checkpoint-10" / "model.safetensors").open("r+b") as file:
        file.write(b"W")
    assert newest_checkpoint(five, "loop_state.json", is_ours) == five / "checkpoint-3"
    assert [record.getMessage() for record in caplog.records] == [
        "checkpoint-11 is damaged (manifest.json is missing), renamed to checkpoint-11.damaged: "
        "resuming from checkpoint-3",
        "checkpoint-10 is damaged (model.safetensors: checksum differs), renamed to checkpoint-10.damaged: "
        "resuming from checkpoint-3",
    ]
    assert newest_checkpoint(five, "loop_state.json", is_ours) == five / "checkpoint-3"
    assert len(caplog.records) == 2


def test_no_whole_one_is_one_clear_error(checkpoint):
    (checkpoint / "sharded" / "part_0").unlink()
    said = "has no valid checkpoint to resume from: checkpoint-2 is damaged .sharded/part_0 is missing.; run without"
    with pytest.raises(FileNotFoundError, match=said):
        newest_checkpoint(checkpoint.parent, "loop_state.json", is_ours)
    assert checkpoint.is_dir()
