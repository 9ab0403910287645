"""One run, one folder: who holds the lock, who is refused, and when it is released."""

import os
import re
import shutil
import signal
import threading
import time

import pytest
from survival_runs import FRONTS, Life, tiny_arguments, tiny_model, train

from hf_orthossl import OrthoSSLTrainer
from hf_orthossl.cli import main
from hf_orthossl.locks import LOCK, locked
from hf_orthossl.training.run_folder import run_of


def _hold(folder, ready, with_worker=False):
    """Holds the lock until it is killed; with a worker, which lives on."""
    with locked(folder):
        if with_worker and os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        ready.write_text("")
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """A function that starts a process which holds the lock of a folder, and returns it once it does."""
    lives = []

    def start(folder, **options):
        life = Life(_hold, folder, tmp_path / f"ready{len(lives)}", *options.values())
        while not (tmp_path / f"ready{len(lives)}").exists():
            assert life.process.is_alive()
            time.sleep(0.01)
        lives.append(life)
        return life

    yield start
    for life in lives:
        life.process.kill()
        life.end()


def bytes_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_command_is_refused_beside_a_live_run_and_touches_nothing(holder, tmp_path, capsys):
    folder = tmp_path / "run"
    train("trainer", folder, max_steps=2, gradient_accumulation_steps=1)
    (folder / ".overwritten").mkdir()
    (folder / ".overwritten" / "config.yaml").write_text("of a run that is being replaced")
    life = holder(folder)
    before = bytes_in(folder)
    for flags in ("", "--resume", "--overwrite_output", "--max_steps 9 --seed 3", "--save_strategy no"):
        with pytest.raises(SystemExit) as ended:
            main(["pretrain", "--output_dir", str(folder), "--backbone", "resnet10t", *flags.split()])
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert re.search(rf"output_dir {folder} is in use by process {life.process.pid} on .* wait until", line), line
        assert bytes_in(folder) == before
    for front in FRONTS:
        with pytest.raises(ValueError, match="is in use by process"):
            train(front, folder, resume=True)
        assert bytes_in(folder) == before


def test_the_lock_dies_with_its_process_even_if_a_worker_lives_on(holder, tmp_path):
    life = holder(tmp_path / "run", with_worker=True)
    life.process.kill()
    life.end()
    assert (tmp_path / "run" / LOCK).exists()
    with locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_stopped_run_keeps_its_folder(holder, tmp_path):
    life = holder(tmp_path / "run")
    os.kill(life.process.pid, signal.SIGSTOP)
    with pytest.raises(ValueError, match="in use"), locked(tmp_path / "run"):
        pass


def test_a_thread_is_refused_what_another_thread_holds_and_may_enter_its_own_again(tmp_path):
    refused = []

    def other():
        try:
            with locked(tmp_path):
                pass
        except ValueError as error:
            refused.append(str(error))

    with locked(tmp_path) as outer, locked(tmp_path) as inner:
        assert (outer, inner) == (True, False)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another thread" in refused[0]
    with locked(tmp_path) as outer:
        assert outer


def test_a_folder_that_stays_empty_is_removed_and_links_are_not_followed(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "a" / "b"):
        raise KeyError
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").write_text("words")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="cannot be written"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "words"


@pytest.mark.parametrize("front", FRONTS)
def test_checkpoints_of_another_run_or_step_are_refused(front, tmp_path):
    """A copied, a renamed and a moved checkpoint."""
    settings = {"max_steps": 4, "gradient_accumulation_steps": 1, "save_steps": 2}
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        train(front, folder, **settings)
    own, foreign = run_of(mine), run_of(other)
    assert own != foreign
    shutil.copytree(other / "checkpoint-4", mine / "checkpoint-6")
    before = bytes_in(mine)
    for name, words in (("checkpoint-6", "was saved after step 4"), ("checkpoint-4", f"belongs to run {foreign}")):
        if name == "checkpoint-4":
            shutil.rmtree(mine / "checkpoint-4")
            (mine / "checkpoint-6").rename(mine / "checkpoint-4")
            before = bytes_in(mine)
        with pytest.raises(ValueError, match=words):
            train(front, mine, resume=True, **settings | {"max_steps": 8})
        assert bytes_in(mine) == before
    with pytest.raises(ValueError, match=f"{mine} is the folder of run {own}"):
        OrthoSSLTrainer(tiny_model(), tiny_arguments(mine, **settings), "digits").train(other / "checkpoint-4")
    # In a folder of its own, the run goes on.
    OrthoSSLTrainer(tiny_model(), tiny_arguments(mine, **settings), "digits")


@pytest.mark.parametrize("front", FRONTS)
def test_a_front_replaces_an_earlier_run_only_when_told(front, tmp_path):
    settings = {"max_steps": 2, "gradient_accumulation_steps": 1}
    train(front, tmp_path, **settings)
    (tmp_path / "config.yaml").write_text("mine: true")
    first = run_of(tmp_path)
    before = bytes_in(tmp_path)
    with pytest.raises(ValueError, match="holds another run"):
        train(front, tmp_path, **settings)
    assert bytes_in(tmp_path) == before
    train(front, tmp_path, overwrite_output=True, **settings)
    assert run_of(tmp_path) not in (None, first)
    assert (tmp_path / "config.yaml").read_text() == "mine: true"


@pytest.mark.parametrize("command", ["evaluate resnet10t --untrained", "spectra resnet10t", "forecast"])
def test_measurements_are_refused_where_another_command_writes(command, holder, tmp_path, capsys):
    holder(tmp_path / "results")
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--output_dir", str(tmp_path / "results")])
    assert ended.value.code == 2
    assert "is in use by process" in capsys.readouterr().err
