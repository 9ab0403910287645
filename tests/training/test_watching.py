"""Selection of the best encoder without labels, and the end of a run that has collapsed."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from survival_runs import FRONTS, assert_same, digits, history, state, tiny_arguments, tiny_model, train
from torch import nn

from hf_orthossl import OrthoSSLTrainer, SpectraCallback, SSLConfig, SSLModel
from hf_orthossl.cli import main
from hf_orthossl.spectra import lidar
from hf_orthossl.spectra.spectrum import FeatureSpectrum
from hf_orthossl.training import TrainingData
from hf_orthossl.training.callbacks.watching import LIDAR_VIEWS, build_spectra
from hf_orthossl.training.resume import begin_record
from hf_orthossl.training.watching import Watch

SELECT = {"select_by": "rankme", "spectra_images": 24, "spectra_steps": 2, "logging_steps": 1, "save_total_limit": 0}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr("hf_orthossl.spectra.SpectralReport.plot", lambda report, path: path.write_bytes(b"figure"))


def spectrum(rank=10.0, alpha=1.0, **changes):
    """A spectrum of 100 dimensions and 200 images."""
    values = {"dim": 100, "num_images": 200, "pool": "none", "exact": True, "largest": 1.0, "total_variance": 1.0}
    values |= {"num_positive": 100, "removed_by_norm": 0, "effective_rank": rank, "rankme": rank, "lidar": rank}
    values |= {"participation_ratio": 1.0, "alpha": alpha, "eigenvalues": torch.ones(100)}
    return FeatureSpectrum(**values | changes)


def watch(tmp_path, **settings):
    return Watch(tiny_arguments(tmp_path, **{"spectra_images": 24} | settings))


@pytest.mark.parametrize(
    ("measure", "values", "best"),
    [
        ("rankme", [3.0, 5.0, 5.0, 4.0], 2),  # of equal ones the earlier
        ("effective_rank", [3.0, 5.0, 6.0], 3),
        ("lidar", [3.0, 2.0], 1),
        ("alpha_req", [2.0, 0.9, 1.2, 0.5], 2),  # closest to 1
        ("alpha_req", [None, 3.0, None], 2),  # too few directions to fit
    ],
)
def test_the_best_is_kept_as_it_was(measure, values, best, tmp_path):
    watched, module = watch(tmp_path, select_by=measure), nn.Linear(2, 2)
    for step, value in enumerate(values, 1):
        nn.init.constant_(module.weight, step)
        seen = spectrum(alpha=value) if measure == "alpha_req" else spectrum(rank=value)
        logged = watched.see(module, step, seen)
    assert logged == {"best_step": best, f"best_{measure}": values[best - 1]}
    assert (watched.selected(module).weight == best).all()
    assert (module.weight == len(values)).all()


def test_two_collapsed_measurements_in_a_row_stop_a_run(tmp_path):
    watched = watch(tmp_path, stop_on_collapse=True, spectra_threshold=0.1)
    stops = []
    # The representation recovers once.
    for step, rank in enumerate([9.9, 10.0, 9.0, 8.0, 7.0], 1):
        watched.see(nn.Linear(2, 2), step, spectrum(rank=rank))
        stops.append(watched.agreed_to_stop(step, 10))
    assert stops[:4] == [False, False, False, True]
    assert watched.describe(4)["stopped"].startswith(
        "on collapse at step 5: the effective rank of the representation was 8 of 100 at step 4 and 7 of 100 at step 5"
    )
    assert not watched.agreed_to_stop(10, 10)  # the run has ended
    assert not watch(tmp_path).agreed_to_stop(5, 10)


@pytest.mark.parametrize("front", FRONTS)
def test_a_resumed_run_writes_the_same_encoder(front, tmp_path):
    """The best of before is part of the checkpoint; what a killed run measured after it counts no more."""
    settings = SELECT | {"learning_rate": 2.0, "max_steps": 6, "save_steps": 3}
    whole = train(front, tmp_path / "whole", **settings)
    entries = history(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    shutil.rmtree(tmp_path / "cut" / "encoder")
    again = train(front, tmp_path / "cut", **settings, resume=True)
    assert_same(state(again), state(whole))
    assert history(tmp_path / "cut") == entries
    written = [load_file(tmp_path / run / "encoder" / "model.safetensors") for run in ("whole", "cut")]
    assert_same(*written)
    # And one that had ended.
    shutil.rmtree(tmp_path / "cut" / "encoder")
    train(front, tmp_path / "cut", **settings, resume=True)
    assert_same(load_file(tmp_path / "cut" / "encoder" / "model.safetensors"), written[0])
    with pytest.raises(ValueError, match="select_by has compared measurements on 24 so far: pass --spectra_images 24"):
        train(front, tmp_path / "cut", **settings | {"spectra_images": 20, "max_steps": 8}, resume=True)


def test_lidar_is_that_of_views_of_the_run(tmp_path):
    """Ten views of each image, by the first view of the recipe, equal at every measurement."""
    model = tiny_model()
    args = tiny_arguments(tmp_path, **SELECT | {"select_by": "lidar"}).with_recipe(model.method.recipe)
    callback = build_spectra(model, TrainingData(digits(), model, args))
    callback.begin(model)
    scalars = callback.measure(2, 8)
    parts = list(callback.views)
    assert all(torch.equal(*pair) for pair in zip(parts, callback.views, strict=True))
    views = torch.cat(parts)
    assert views.shape == (24, LIDAR_VIEWS, 3, 32, 32)
    assert not torch.equal(views[:, 0], views[:, 1])
    model.eval()
    with torch.no_grad():
        expected = lidar(model.encoder(views.flatten(0, 1)).unflatten(0, (24, LIDAR_VIEWS)))
    found = scalars["spectra/features/representation/lidar"]
    assert found == pytest.approx(expected, rel=1e-4) == scalars["spectra/best_lidar"]


def test_a_stopped_command_says_so_last_and_goes_on_when_told(tmp_path, capsys):
    run = f"pretrain --dataset digits --output_dir {tmp_path} --backbone_config channels=[8,8,16,16] --max_steps 4"
    run += " --per_device_train_batch_size 16 --logging_steps 1 --spectra_steps 1 --spectra_images 24 --knn_images 0"
    stop = " --stop_on_collapse --spectra_threshold 0.9 --select_by rankme"
    with pytest.raises(SystemExit) as ended:
        main((run + stop).split())
    assert ended.value.code == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("stopped  on collapse at step 2: the effective rank of the representation was")
    assert any(line.startswith("selected step") for line in lines)
    card = (tmp_path / "encoder" / "README.md").read_text(encoding="utf-8")
    assert "| stopped early | on collapse at step 2:" in card
    assert "| optimizer steps | 2 of 4 |" in card
    assert "| encoder of | step" in card
    main(f"pretrain --output_dir {tmp_path} --resume --stop_on_collapse no".split())
    assert "stopped early" not in (tmp_path / "encoder" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select_by": "rank"}, "select_by is 'rank'"),
        ({"select_by": "lidar", "spectra_images": 0}, "select_by is lidar, which measures features of training images"),
        ({"stop_on_collapse": True, "spectra_images": 0}, "pass --spectra_images 1024 too"),
        ({"select_by": "rankme", "spectra_steps": 0}, "select_by is rankme, but spectra_steps is 0"),
        ({"stop_on_collapse": True, "spectra_threshold": 0}, "but spectra_threshold is 0, which nothing is below"),
        ({"select_by": "rankme", "save_strategy": "no"}, "but save_strategy is no, which keeps no encoder"),
    ],
)
def test_what_has_no_effect_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny_arguments(tmp_path, **{"spectra_images": 24} | options)


class Uncopyable(nn.Module):
    """Has a layer, and something that cannot be copied."""

    num_features = 4

    def __init__(self):
        super().__init__()
        self.layer, self.handle = nn.Linear(3, 4), (number for number in range(3))

    def forward(self, images):
        return self.layer(images.mean((2, 3)))


def test_runs_that_measure_too_rarely_are_refused(tmp_path):
    def begin(model=None, **settings):
        model = model or tiny_model()
        args = tiny_arguments(tmp_path, **SELECT | {"max_steps": 8} | settings).with_recipe(model.method.recipe)
        begin_record(model, TrainingData(digits(), model, args))

    with pytest.raises(ValueError, match="select_by is rankme, which needs 2 measurements or more, and the run has 1"):
        begin(spectra_steps=8)
    with pytest.raises(ValueError, match="and the run has 1: lower --spectra_steps and --logging_steps"):
        begin(logging_steps=8)
    with pytest.raises(
        ValueError, match="stop_on_collapse is True, which needs 3 measurements or more, and the run ha"
    ):
        begin(select_by=None, stop_on_collapse=True, spectra_steps=4)
    begin(spectra_steps=4)
    own = SSLModel(SSLConfig(method="simclr"), Uncopyable())
    with pytest.raises(ValueError, match="which copies the encoder, and this one cannot be copied"):
        begin(own)


def test_a_callback_of_ones_own_cannot_replace_what_decides(tmp_path):
    with pytest.raises(ValueError, match="but a SpectraCallback of your own replaces the one that measures for it"):
        OrthoSSLTrainer(tiny_model(), tiny_arguments(tmp_path, **SELECT), digits(), callbacks=[SpectraCallback(2)])
