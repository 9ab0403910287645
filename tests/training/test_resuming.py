"""Which steps a resumed run still takes, from which checkpoint, and what it refuses."""

import os
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from survival_runs import FRONTS, KILLED, Life, assert_same, digits, history, state, tiny_arguments, tiny_model, train

from hf_orthossl import OrthoSSLTrainer
from hf_orthossl.training.checkpoints import staged
from hf_orthossl.training.run_folder import MARK, overwriting, put_back


def trainer(folder, **changes):
    return OrthoSSLTrainer(model=tiny_model(), args=tiny_arguments(folder, **changes), train_dataset=digits())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a Trainer's run that ended after 4 steps, with `checkpoint-2` and `checkpoint-4`."""
    folder = tmp_path_factory.mktemp("run")
    train("trainer", folder, max_steps=4)
    return folder


@pytest.fixture
def copied(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.mark.parametrize("front", FRONTS)
def test_a_finished_run_of_part_of_an_epoch_takes_no_step_more(front, tmp_path):
    """Half an epoch of 3 steps is 2; resumed twice, as each resume might add one."""
    half = {"max_steps": -1, "num_train_epochs": 0.5}
    final, log = state(train(front, tmp_path, **half)), history(tmp_path)
    for _ in range(2):
        assert_same(state(train(front, tmp_path, resume=True, **half)), final)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2"}
    assert history(tmp_path) == log


def test_a_finished_run_knows_its_steps(copied):
    finished = trainer(copied, max_steps=4, resume=True)
    assert finished.train().global_step == finished.state.global_step == 4


@pytest.mark.parametrize("front", FRONTS)
def test_a_run_cannot_end_before_the_steps_it_has_done(front, tmp_path):
    train(front, tmp_path, max_steps=2)
    log = history(tmp_path)
    with pytest.raises(
        ValueError, match=r"max_steps is 1, but the run in .* has done 2 steps: .*--max_steps 2 or more"
    ):
        train(front, tmp_path, max_steps=1, resume=True)
    with pytest.raises(ValueError, match=r"num_train_epochs is 0.2, but the run"):
        train(front, tmp_path, max_steps=-1, num_train_epochs=0.2, resume=True)
    assert history(tmp_path) == log


def test_a_checkpoint_may_be_named_by_a_path(copied):
    """The one named, not the newest."""
    finished = trainer(copied, max_steps=2)
    finished.train(resume_from_checkpoint=copied / "checkpoint-2")
    assert finished.state.global_step == 2


def test_a_named_checkpoint_must_have_as_many_images_per_step(copied):
    other = trainer(copied, max_steps=8, per_device_train_batch_size=8)
    with pytest.raises(ValueError, match="checkpoint-2 has 32 images per optimizer step, not 16"):
        other.train(resume_from_checkpoint=str(copied / "checkpoint-2"))


def test_a_loader_asked_for_later_takes_nothing_back(copied):
    """`checkpoint-4` holds the averages of one step; after step 6 they were logged and gone."""
    resumed = trainer(copied, max_steps=6, resume=True)
    resumed.train()
    before = resumed.step.state_dict()
    resumed.get_train_dataloader()
    assert resumed.step.state_dict() == before


def _save_in_part(folder, errors):
    """In a process of a group: what staging a checkpoint ends with, where this one meets the error it is given."""
    import torch.distributed as dist

    error = errors[dist.get_rank()]
    try:
        with staged(Path(folder), 1, write=dist.get_rank() == 0):
            if error is not None:
                raise error
    except BaseException as raised:
        return type(raised), str(raised)


@pytest.mark.parametrize("error", [pickle.PicklingError("no"), MemoryError("no"), KeyboardInterrupt("no")])
def test_whatever_goes_wrong_in_one_process_the_others_hear_of_it(error, two_processes, tmp_path):
    one, other = two_processes.run(_save_in_part, str(tmp_path), [None, error])
    assert other == (type(error), "no")
    assert one[0] is OSError
    assert "another process could not write" in one[1]
    assert not list(tmp_path.iterdir())


def _overwrite_and_die(folder, after):
    """Starts to overwrite a run, and dies at the `after`-th change of a file, or else before the first step."""
    left = [after]

    def watch(event, arguments):
        if event in ("os.rename", "os.mkdir", "open") and str(folder) in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os._exit(KILLED)

    sys.addaudithook(watch)
    with overwriting(SimpleNamespace(output_dir=str(folder), overwrite_output=True)):
        (folder / "config.yaml").write_text(MARK + "# Run b2\nnew: true")
        (folder / "unreadable_images.txt").write_text("new")
        os._exit(0)


def test_a_kill_while_overwriting_loses_nothing(tmp_path):
    old = {
        "config.yaml": MARK + "# Run a1\nold: true",
        "history.jsonl": '{"run": "a1", "step": 0}',
        "checkpoint-1/weights": "1",
        "encoder/weights": "2",
    }
    after, died = 0, KILLED
    while died == KILLED:
        after += 1
        folder = tmp_path / str(after)
        for name, text in old.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        died = Life(_overwrite_and_die, folder, after).end()
        put_back(folder)
        found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
        assert found == old
    assert died == 0
    assert after > 6
