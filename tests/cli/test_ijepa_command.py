"""`orthossl pretrain --method ijepa`: a resumed run is the uninterrupted one, and what it refuses."""

import shutil

import pytest

from hf_orthossl import pretrain
from hf_orthossl.cli import main

SETTINGS = {
    "backbone": "test_vit",
    "backbone_config": {"patch_size": 4, "depth": 2},
    "method": "ijepa",
    "method_config": {"predictor_dim": 12, "predictor_depth": 1, "predictor_heads": 3},
    "per_device_train_batch_size": 8,
    "max_steps": 3,
    "save_steps": 1,
    "knn_images": 0,
    "spectra_steps": 0,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_a_resumed_run_is_the_uninterrupted_one(front, tmp_path):
    """Masks, the target network and its momentum go on as if nothing had happened."""
    weights = {}
    for name in ("whole", "part"):
        run = pretrain("digits", front=front, output_dir=tmp_path / name, **SETTINGS)
        if name == "part":
            shutil.rmtree(run.output_dir / "checkpoint-3")
            run = pretrain("digits", front=front, output_dir=run.output_dir, resume=True, **SETTINGS)
        weights[name] = (run.encoder / "model.safetensors").read_bytes()
    assert weights["whole"] == weights["part"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--backbone resnet10t", "method is ijepa, which masks patches, and backbone 'resnet10t' has no patch tokens"),
        ("--backbone test_vit --image_size 16", "a view of 16 px has 1×1 patches"),
        (
            "--backbone test_vit --backbone_config patch_size=4 --views digits",
            "views has 2 per image, but I-JEPA uses 1",
        ),
        ("--backbone test_vit --method_config predictor_heads=7", "predictor_heads is 7"),
    ],
)
def test_bad_input_is_one_line(flags, said, tmp_path, capsys):
    command = f"pretrain --method ijepa --use_cpu --max_steps 1 --output_dir {tmp_path / 'run'} {flags}"
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not (tmp_path / "run" / "encoder").exists()
