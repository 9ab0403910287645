"""`orthossl pretrain --method distill`: what it prints, records and publishes of its teacher, and what it refuses."""

import json
import shutil

import pytest
from tiny_teacher import write_teacher

from hf_orthossl import load_encoder, pretrain
from hf_orthossl.cli import main

SETTINGS = {
    "backbone_config": {"channels": [8, 8, 16, 16]},
    "method": "distill",
    "per_device_train_batch_size": 16,
    "max_steps": 2,
    "save_steps": 1,
    "knn_images": 0,
    "spectra_steps": 0,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path / "home" / "teacher", image_size=16, patch_size=4)


def settings(teacher, **changes):
    return {**SETTINGS, "method_config": {"teacher": teacher, "hidden_dim": 16}, **changes}


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_the_teacher_is_named_and_not_saved(front, teacher, tmp_path, capsys):
    run = pretrain("digits", front=front, output_dir=tmp_path / "run", **settings(teacher))
    digest = load_encoder(teacher, pretrained=True).start.sha256()[:16]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher ")]
    assert f"teacher, sha256 {digest}" in line
    card = (run.encoder / "README.md").read_text()
    assert f"Its teacher was teacher, sha256 {digest}" in card
    # Whoever publishes the encoder does not publish where it was made.
    for file in run.encoder.glob("*.json"):
        assert teacher not in file.read_text()
    assert teacher not in card
    assert json.loads((run.encoder / "config.json").read_text())["orthossl"]["method_config"]["teacher"] == "teacher"
    student = load_encoder(run.encoder, pretrained=True)
    assert student.num_features == 16


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_a_run_is_not_resumed_with_a_teacher_that_was_replaced(front, teacher, tmp_path):
    folder = tmp_path / "run"
    pretrain("digits", front=front, output_dir=folder, **settings(teacher))
    more = settings(teacher, max_steps=3, resume=True)
    write_teacher(tmp_path / "home" / "teacher", seed=8, image_size=16, patch_size=4)
    with pytest.raises(ValueError, match=r"teacher is teacher, sha256 .* was started with teacher, sha256"):
        pretrain("digits", front=front, output_dir=folder, **more)
    write_teacher(tmp_path / "home" / "teacher", image_size=16, patch_size=4)
    pretrain("digits", front=front, output_dir=folder, **more)


def test_a_resumed_run_is_the_uninterrupted_one(teacher, tmp_path):
    weights = {}
    for name in ("whole", "part"):
        run = pretrain("digits", output_dir=tmp_path / name, **settings(teacher))
        if name == "part":
            shutil.rmtree(run.output_dir / "checkpoint-2")
            run = pretrain("digits", output_dir=run.output_dir, **settings(teacher, resume=True))
        weights[name] = (run.encoder / "model.safetensors").read_bytes()
    assert weights["whole"] == weights["part"]


def refused(capsys, flags):
    flags = f"pretrain --method distill --use_cpu --max_steps 1 {flags}"
    with pytest.raises(SystemExit) as caught:
        main(flags.split())
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--output_dir {out}", "teacher is empty, and distillation needs an encoder with its weights"),
        ("--output_dir {out} --method_config teacher=resnt18", "did you mean 'resnet18'"),
        ("--output_dir {out} --method_config teacher={teacher} target=token", "did you mean 'tokens'"),
        ("--output_dir {home} --method_config teacher={teacher} --overwrite_output", "where the student is to be"),
        ("--output_dir {out} --method_config teacher={teacher} --pretrained {teacher} --image_size 16", "to learn"),
        ("--output_dir {out} --method_config teacher={teacher} --whitening 0.1", "distill has none"),
    ],
)
def test_bad_teachers_are_one_line(flags, said, teacher, tmp_path, capsys):
    line = refused(capsys, flags.format(teacher=teacher, out=tmp_path / "run", home=tmp_path / "home"))
    assert said in line
    assert (tmp_path / "home" / "teacher" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "encoder").exists()
