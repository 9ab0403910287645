"""Files and folders are replaced whole, by processes that may be killed, and on disks that are full."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_orthossl import files
from hf_orthossl.cli import run
from hf_orthossl.disk_errors import NotWritten, not_written
from hf_orthossl.files import append_lines, read_lines, replace_file, replacing_files, replacing_folder


@pytest.fixture
def small_files():
    """Files of this process may not grow beyond 1,000 bytes, as on a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_is_too_large_names_file_need_and_remedy(tmp_path, small_files):
    path = replace_file(tmp_path / "card.md", "the owner's words")
    with pytest.raises(
        OSError, match=r"card.md cannot be written \(.*10.0 kB needed.*1.0 kB allowed\): raise the limit"
    ):
        replace_file(path, b"x" * 10_000)
    assert path.read_text() == "the owner's words"
    assert names(tmp_path) == ["card.md"]


@pytest.mark.parametrize(
    "save",
    [
        lambda folder: save_file({"a": torch.zeros(10_000)}, folder / "weights"),
        lambda folder: torch.save({"a": torch.zeros(10_000)}, folder / "weights"),
        lambda folder: replace_file(folder / "weights", b"x" * 10_000),
    ],
    ids=["safetensors", "torch", "ours"],
)
def test_a_folder_that_cannot_be_written_stays_as_it_was(save, tmp_path, small_files):
    def write(kind):
        with replacing_folder(tmp_path / "encoder", ["weights", "card"]) as folder:
            kind(folder)

    write(lambda folder: (folder / "card").write_text("first"))
    with pytest.raises(NotWritten, match=rf"^{tmp_path / 'encoder'}.*raise the limit"):
        write(save)
    assert (tmp_path / "encoder" / "card").read_text() == "first"
    assert names(tmp_path) == ["encoder"]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_takes_the_place_of_another_and_keeps_what_is_not_ours(in_one_step, tmp_path, monkeypatch):
    if not in_one_step:
        monkeypatch.setattr(files.sys, "platform", "other")
    place = tmp_path / "encoder"
    with replacing_folder(place, ["weights", "card"]) as folder:
        (folder / "weights").write_text("1")
        (folder / "card").write_text("1")
    (place / "notes" / "more").mkdir(parents=True)
    (place / "notes" / "more" / "mine.txt").write_text("mine")
    (place / "link").symlink_to("elsewhere")
    with replacing_folder(place, ["weights", "card"]) as folder:
        (folder / "weights").write_text("2")
    assert names(place) == ["link", "notes", "weights"]
    assert (place / "weights").read_text() == "2"
    assert (place / "notes" / "more" / "mine.txt").read_text() == "mine"
    assert os.readlink(place / "link") == "elsewhere"
    assert names(tmp_path) == ["encoder"]


def test_a_folder_that_cannot_be_moved_gets_its_files_one_by_one(tmp_path, monkeypatch):
    def busy(new, place):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(files, "_exchange", busy)
    place = tmp_path / "mounted"
    place.mkdir()
    for name in ("weights", "card", "mine"):
        (place / name).write_text("old")
    with replacing_folder(place, ["weights", "card"]) as folder:
        (folder / "weights").write_text("new")
    assert {path.name: path.read_text() for path in place.iterdir()} == {"weights": "new", "mine": "old"}
    assert names(tmp_path) == ["mounted"]


def test_several_files_are_replaced_together_or_not_at_all(tmp_path):
    with replacing_files(tmp_path / "spectra") as folder:
        (folder / "arrays").write_text("old")
        (folder / "numbers").write_text("old")

    def write_half():
        with replacing_files(tmp_path / "spectra") as folder:
            (folder / "arrays").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert {path.name: path.read_text() for path in (tmp_path / "spectra").iterdir()} == {
        "arrays": "old",
        "numbers": "old",
    }


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path):
    path = tmp_path / "history.jsonl"
    assert read_lines(path) == []
    append_lines(path, ['{"step": 1}', '{"step": 2}'])
    with path.open("a") as file:
        file.write('{"step": 3, "changed": {"a": 1}')
    assert read_lines(path) == ['{"step": 1}', '{"step": 2}']
    append_lines(path, ['{"step": 4}'])
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 4}\n'


def test_lines_that_do_not_fit_leave_those_before(tmp_path, small_files):
    path = tmp_path / "history.jsonl"
    append_lines(path, ["x" * 900])
    with pytest.raises(OSError, match=r"history.jsonl cannot be written"):
        append_lines(path, ["y" * 50, "z" * 500])
    assert path.read_text() == "x" * 900 + "\n"


def test_lines_are_not_appended_to_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "history.jsonl")
    with pytest.raises(OSError, match="not a regular file"):
        append_lines(tmp_path / "history.jsonl", ["waits for ever"])


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from hf_orthossl import files\n"
        "for name in ('a.json', 'b.json'):\n"
        "    files._unfinished(Path(sys.argv[1]) / name).write_text('half')\n"
        "os.rename(Path(sys.argv[1]) / 'encoder', files._unfinished(Path(sys.argv[1]) / 'encoder', 'earlier'))\n"
        "print(flush=True); sys.stdin.read()"
    )
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "weights").write_text("complete")
    other = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path],
        cwd=Path(files.__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    other.stdout.readline()
    replace_file(tmp_path / "a.json", "whole")
    assert len(names(tmp_path)) == 4, "the other process is still writing"
    other.communicate()
    replace_file(tmp_path / "a.json", "whole")
    assert names(tmp_path) == ["a.json", "encoder"]
    assert (tmp_path / "encoder" / "weights").read_text() == "complete"


def test_what_another_machine_began_is_swept_after_a_day(tmp_path):
    left = tmp_path / ".a.json.00000000-1-0.partial"
    left.write_text("half")
    replace_file(tmp_path / "a.json", "whole")
    assert left.exists()
    os.utime(left, (0, 0))
    replace_file(tmp_path / "a.json", "whole")
    assert not left.exists()


def test_two_processes_that_write_one_file_do_not_meet(tmp_path):
    with files.replacing(tmp_path / "a") as one, files.replacing(tmp_path / "a") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one", "the last to finish"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "5.0 MB needed, .* free\\): free space, or"),
        (errno.EDQUOT, "5.0 MB needed\\): free space, or"),
        (errno.EROFS, "mount it writable, or"),
        (errno.EACCES, "change the permissions, or"),
    ],
)
def test_each_reason_has_its_remedy(number, words, tmp_path):
    error = not_written(tmp_path / "a", OSError(number, os.strerror(number)), need=5_000_000)
    with pytest.raises(NotWritten, match=rf"a cannot be written \({os.strerror(number)}.*{words}"):
        raise error


def test_full_shared_memory_is_named(capsys):
    def full(argv):
        raise RuntimeError("unable to resize file </torch_1_2_3> to the right size: No space left on device (28)")

    with pytest.raises(SystemExit) as ended:
        run("orthossl test", full, [])
    assert ended.value.code == 2
    assert "error: shared memory (/dev/shm) cannot be written (No space left on device" in capsys.readouterr().err


def test_hard_links_are_not_needed(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refused)
    place = tmp_path / "encoder"
    place.mkdir()
    (place / "mine").write_text("mine")
    with replacing_folder(place, ["weights"]) as folder:
        (folder / "weights").write_text("new")
    assert (place / "mine").read_text() == "mine"
