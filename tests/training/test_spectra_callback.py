"""The spectra callback by itself: what it measures, what it warns of, and what cannot stop a run."""

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from watched_training import IMAGES, Classifier, fit, make_model, measured

from hf_orthossl import (
    OrthoSSLTrainingArguments,
    SpectraCallback,
    spectral_report,
)


def test_features_of_a_loader_are_measured_and_nothing_random_is_drawn(tmp_path):
    loader = DataLoader(TensorDataset(IMAGES), batch_size=16, shuffle=True)
    watching = SpectraCallback(every=2, images=loader, layers=["stages.0", "representation"], include="*")
    watched, alone = fit(tmp_path / "a", watching), fit(tmp_path / "b")
    for name, value in watched.model.state_dict().items():
        assert torch.equal(value, alone.model.state_dict()[name]), name
    assert watched.model.head.training
    entry = watched.state.log_history[7]
    oracle = spectral_report(watched.model, IMAGES, layers=["stages.0"])
    assert entry["step"] == 8
    assert entry["spectra/features/stages.0/effective_rank"] == pytest.approx(
        oracle.features["stages.0"].effective_rank, rel=1e-5
    )
    assert "spectra/features/representation/rankme" in entry
    assert "spectra/weights/head.weight/effective_rank" in entry
    losses = [[e["loss"] for e in trainer.state.log_history if "loss" in e] for trainer in (watched, alone)]
    assert losses[0] == losses[1]


def test_a_collapse_is_told_once_per_layer_until_it_recovers(caplog):
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 20))
    callback = SpectraCallback(every=1, threshold=0.3)
    callback.begin(model)
    healthy = model[1].weight.detach().clone()

    def told(step):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            callback.measure(step, 100)
        return [record.getMessage() for record in caplog.records]

    assert told(1) == []
    with torch.no_grad():
        model[1].weight.copy_(torch.outer(torch.ones(20), torch.ones(20)))
    (message,) = told(2)
    # The model is no SSLModel with a penalty whose weight could be raised.
    fact = "spectra at step 2: 1 uses 1 of its 20 directions (effective rank 1.0), below the threshold of 30 %"
    assert message == fact
    assert told(3) == []
    with torch.no_grad():
        model[1].weight.copy_(healthy)
    assert told(4) == []
    with torch.no_grad():
        model[1].weight.zero_().fill_diagonal_(1e-9)[0, 0] = 1
    assert len(told(5)) == 1


def test_few_images_cap_the_rank_without_a_warning(caplog):
    """Nine images span eight directions of 64; using all eight is no collapse."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64))
    callback = SpectraCallback(every=1, threshold=0.5, images=IMAGES[:9])
    callback.begin(model)
    with caplog.at_level(logging.WARNING):
        scalars = callback.measure(1, 1)
    assert scalars["spectra/features/representation/effective_rank"] < 8
    assert not caplog.records


def test_weights_that_are_not_finite_do_not_end_the_run(caplog):
    model = nn.Sequential(nn.Linear(4, 4))
    callback = SpectraCallback(every=1)
    callback.begin(model)
    model[0].weight.data[0, 0] = float("nan")
    with caplog.at_level(logging.WARNING):
        assert callback.measure(1, 1) == {}
    assert "cannot be measured: weight '0.weight'" in caplog.text


def test_without_stages_a_handful_of_matrices_is_measured():
    model = nn.ModuleDict({f"part{chr(97 + i)}": nn.Linear(3, 3) for i in range(20)})
    callback = SpectraCallback(every=1)
    callback.begin(model)
    names = [name for name in callback.measure(1, 1) if name.endswith("weight/effective_rank")]
    assert names == [f"spectra/weights/part{letter}.weight/effective_rank" for letter in "ejot"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"every": -1}, "every is -1: it must be a whole number of steps or a share below 1, or 0 for none"),
        ({"every": 1.5}, "every is 1.5"),
        ({"every": float("nan")}, "every is nan"),
        ({"every": float("inf")}, "every is inf"),
        ({"threshold": 1.0}, r"threshold is 1.0: it must lie in \[0, 1\)"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"layers": ["representation"]}, "layers is given without images"),
        ({"name": "spectra/head"}, "name is 'spectra/head': it must be a word without '/'"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        SpectraCallback(**settings)


@pytest.mark.parametrize("name", ["spectra_steps", "spectra_threshold"])
def test_bad_arguments_are_named_as_given(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} is 1.5"):
        OrthoSSLTrainingArguments(str(tmp_path), use_cpu=True, **{name: 1.5})


def test_patterns_that_match_nothing_are_refused_when_training_begins(tmp_path):
    with pytest.raises(ValueError, match="include pattern 'layer9' matches none"):
        fit(tmp_path, SpectraCallback(include="layer9"))


class NeedsLabels(Classifier):
    def forward(self, pixel_values, labels):
        return super().forward(pixel_values, labels)


def test_features_that_cannot_be_measured_do_not_end_the_run(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_orthossl"):
        trainer = fit(tmp_path, SpectraCallback(every=1, images=IMAGES, threshold=0), model=NeedsLabels())
    told = [record.getMessage() for record in caplog.records if "cannot be measured" in record.getMessage()]
    assert [message.partition(" cannot")[0] for message in told] == [
        f"spectra of features at step {i}" for i in (1, 2, 3)
    ]
    assert "TypeError" in told[0]
    assert "labels" in told[0]
    assert told[-1].endswith("after 3 failures they are no longer measured")
    # Weights are measured all the same.
    assert measured(trainer.state.log_history) == list(range(1, 9))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": 5}, "images is a int: pass normalized images"),
        ({"images": iter([IMAGES])}, "that can be read repeatedly"),
        ({"images": IMAGES[0]}, r"images are torch.float32 of shape \(3, 8, 8\): pass at least 2"),
        ({"images": IMAGES, "layers": ["stages.9"]}, "no layer 'stages.9': did you mean 'stages"),
        ({"images": IMAGES, "layers": ["embedding"]}, "needs the projector"),
    ],
)
def test_images_and_layers_are_checked_when_training_begins(settings, said):
    with pytest.raises(ValueError, match=said):
        SpectraCallback(**settings).begin(Classifier())


def test_advice_on_gamma_is_for_the_encoder_of_a_penalized_model(caplog):
    model, alone = make_model(), make_model()
    alone.regularizer = None
    for watched, expected in ((model, True), (alone, False)):
        callback = SpectraCallback(every=1, threshold=0.999)
        callback.begin(watched)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            callback.measure(1, 1)
        assert caplog.records
        assert all(("raise gamma" in record.getMessage()) == expected for record in caplog.records)
        assert "below the threshold of 99.9 %" in caplog.text


def test_two_callbacks_have_scalars_of_their_own(tmp_path):
    model = Classifier()
    both = SpectraCallback(every=4), SpectraCallback(every=8, module=model.head, include="*", name="head")
    entries = fit(tmp_path, *both, model=model).state.log_history
    by_name = {
        name: [e["step"] for e in entries if f"{name}/weights/relative_rank_min" in e] for name in ("spectra", "head")
    }
    assert by_name == {"spectra": [4, 8], "head": [8]}
    resumed = SpectraCallback(every=4, name="head")
    resumed.begin(model, entries[:4])
    assert resumed.measured == 0
