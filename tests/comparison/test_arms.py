"""The names of arms: what they become, which are refused, and which strengths are tried."""

import pytest

from hf_orthossl.comparison.arms import parse_arm, parse_arms
from hf_orthossl.methods import EMBEDDING_REGULARIZERS
from hf_orthossl.regularization import PENALTIES
from hf_orthossl.training.choices import MUONS

# Steps at which γ need not be scaled.
PAPER = 195_000


@pytest.mark.parametrize(
    ("name", "strength", "options"),
    [
        ("none", None, {"regularizer": "none"}),
        ("srip", 1e-4, {"regularizer": "srip", "gamma": 1e-4}),
        ("so:auto", None, {"regularizer": "so", "gamma": "auto"}),
        ("so:decoupled", 0.05, {"regularizer": "so", "penalty_mode": "decoupled", "strength": 0.05}),
        ("muon", None, {"regularizer": "none", "optim": "muon"}),
        ("adamuon+so", 1e-6, {"regularizer": "so", "gamma": 1e-6, "optim": "adamuon"}),
        ("orthogonal", None, {"regularizer": "none", "constrain": "orthogonal"}),
        ("sigreg", 0.1, {"regularizer": "none", "embedding_regularizer": "sigreg", "embedding_weight": 0.1}),
        ("whitening", 1e-4, {"regularizer": "none", "whitening": 1e-4}),
        (
            "koleo+whitening+so",
            1e-6,
            {"regularizer": "so", "gamma": 1e-6, "embedding_regularizer": "koleo", "whitening": 1e-4},
        ),
    ],
)
def test_a_name_is_options_of_pretrain(name, strength, options):
    if "decoupled" in name and not hasattr(PENALTIES["so"], "default_strength"):
        pytest.skip("penalties have no decoupled step yet")
    assert parse_arm(name, PAPER).settings(strength) == options


def test_candidates_are_multiples_of_defaults_and_gamma_goes_by_the_steps():
    assert parse_arm("so", PAPER).strengths == (1e-6, 1e-5, 1e-4)
    # A tenth of the steps needs ten times the weight.
    assert parse_arm("so", PAPER // 10).strengths == (1e-5, 1e-4, 1e-3)
    assert parse_arm("so", 1).strengths == parse_arm("so", 195).strengths == (1e-3, 1e-2, 1e-1)
    assert parse_arm("whitening", PAPER).strengths == (1e-5, 1e-4, 1e-3)
    weight = EMBEDDING_REGULARIZERS["sigreg"].default_weight
    for steps in (10, PAPER):
        assert parse_arm("sigreg", steps).strengths == pytest.approx([weight / 10, weight, weight * 10])
    assert parse_arm("muon", 100).strengths == parse_arm("so:auto", 100).strengths == ()


def test_strengths_replace_candidates():
    arms = parse_arms(["none", "so", "muon"], 100, {"so": [1e-3], "muon": [1e-3, 1e-2]})
    assert [arm.strengths for arm in arms] == [(), (1e-3,), (1e-3, 1e-2)]
    # What an optimizer that orthogonalizes updates does goes by its rate.
    assert arms[2].settings(1e-2) == {"regularizer": "none", "optim": "muon", "learning_rate": 1e-2}


@pytest.mark.parametrize(
    ("names", "strengths", "message"),
    [
        (["none", "sripp"], {}, "arm sripp: 'sripp' is unknown: did you mean 'srip'"),
        (["none", "so:decoupeld"], {}, "did you mean 'so:decoupled'"),
        (["none", "muon+sow"], {}, r"arm muon\+sow: 'sow' is unknown: did you mean 'so'"),
        (["none", "sigreg:auto"], {}, "'sigreg:auto' is unknown: did you mean"),
        (["none", "so+"], {}, "'' is unknown"),
        (["none", "so+srip"], {}, "so and srip are both penalties: pass an arm with one of them"),
        (["none", "muon+adamuon"], {}, "muon and adamuon are both optimizers"),
        (["none", "none+so"], {}, r"none\+so: none excludes all others"),
        (["none"], {}, "arms is none: a comparison needs two or more"),
        (["so", "none", "so"], {}, "arms has so twice"),
        (["so+muon", "muon+so"], {}, r"arms so\+muon and muon\+so are the same"),
        (["none", "so"], {"srip": [1.0]}, "strengths has 'srip', which is none of the arms"),
        (["none", "so"], {"none": [1.0]}, "strengths has none, an arm without a strength"),
    ],
)
def test_refused_in_one_line(names, strengths, message):
    with pytest.raises(ValueError, match=message):
        parse_arms(names, 100, strengths)


def test_every_part_of_every_kind_is_known():
    names = ["none", *PENALTIES, *EMBEDDING_REGULARIZERS, *MUONS, "orthogonal", "whitening"]
    assert [arm.name for arm in parse_arms(names, 100, {})] == names
    assert len({arm.folder for arm in parse_arms(["so:auto", *names], 100, {})}) == len(names) + 1
