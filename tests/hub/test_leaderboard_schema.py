"""The board's own form: what it refuses when read, its order, its pairs and its snapshot."""

import dataclasses
import json
import math

import pytest
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_board import OTHER_REMEDIES, entry, measured, spectra, synthetic_board

from hf_orthossl.evaluation.results import learned_from, overlap
from hf_orthossl.hub.leaderboard.board.rank import measurements, paired, rank
from hf_orthossl.hub.leaderboard.board.snapshot import read_snapshot, write_snapshot
from hf_orthossl.hub.leaderboard.claims.spectra import alpha_req, effective_rank, spectra_of
from hf_orthossl.hub.leaderboard.schema import Board, BoardResult, RejectedError, Rejection, Spectra, from_json, to_json
from hf_orthossl.spectra import alpha_req as alpha_by_torch
from hf_orthossl.spectra import effective_rank as by_torch

NOW, HUB = "2026-01-31T12:00:00+00:00", "http://localhost"


def board_of(*entries) -> Board:
    return Board(list(entries), [], NOW, HUB)


def test_a_board_is_read_as_it_was_written():
    board = synthetic_board(40)
    board = dataclasses.replace(board, rejected=[one for one in board.rejected if one.field.isprintable()])
    assert from_json(to_json(board)) == board


CHANGES = {
    "value of 1.5": lambda e: e["results"][0].update(value=1.5),
    "true for a value": lambda e: e["results"][0].update(value=True),
    "NaN": lambda e: e["results"][0].update(value=math.nan),
    "infinity": lambda e: e["spectra"]["summary"].update(effective_rank=math.inf),
    "half an interval": lambda e: e["results"][0].update(high=None),
    "no protocol": lambda e: e["results"][0].update(protocol={}),
    "a protocol in prose": lambda e: e["results"][0].update(protocol="k = 20"),
    "a nested protocol": lambda e: e["results"][0].update(protocol={"k": [20]}),
    "a protocol of 10,000 entries": lambda e: e["results"][0].update(protocol={str(i): i for i in range(10_000)}),
    "NaN in a protocol": lambda e: e["results"][0].update(protocol={"k": math.nan}),
    "a huge number in a protocol": lambda e: e["results"][0].update(protocol={"k": 10**400}),
    "unknown source": lambda e: e["results"][0].update(source="friend"),
    "unknown task": lambda e: e["results"][0].update(task="chess"),
    "no repository": lambda e: e.update(repo_id="../../x"),
    "no commit": lambda e: e.update(revision="main"),
    "a negative strength": lambda e: e.update(strength=-0.1),
    "text for a strength": lambda e: e.update(strength="0.05"),
    "an unknown mode": lambda e: e.update(penalty_mode="sometimes"),
    "an unknown constraint": lambda e: e.update(constrain="<b>"),
    "an unknown layer": lambda e: e.update(embedding_layer=["embedding"]),
    "an invisible regularizer": lambda e: e.update(embedding_regularizer="sig\u200breg"),
    "NaN for a weight": lambda e: e.update(embedding_weight=math.nan),
    "true for a weight": lambda e: e.update(whitening=True),
    "an optimizer of many lines": lambda e: e.update(optimizer="Mu\non"),
    "a word for a flag": lambda e: e.update(remedies_read="yes"),
    "no date": lambda e: e.update(last_modified="yesterday"),
    "half a parameter": lambda e: e.update(parameters=0.5),
    "a look-alike": lambda e: e.update(method="b\u0443ol"),
    "too many results": lambda e: e.update(results=e["results"] * 500),
    "too many points": lambda e: e["spectra"]["curves"].update(input=[1.0] * 201),
    "more points than eigenvalues": lambda e: e["spectra"]["lengths"].update(input=3),
    "a rising curve": lambda e: e["spectra"]["curves"].update(input=[0.5, 1.0]),
    "NaN in a curve": lambda e: e["spectra"]["curves"].update(input=[1.0, math.nan, 0.0]),
    "a curve of text": lambda e: e["spectra"]["curves"].update(input=["1"]),
    "a curve above 1": lambda e: e["spectra"]["curves"].update(input=[2.0, 1.0]),
    "a huge integer in a curve": lambda e: e["spectra"]["curves"].update(input=[10**400]),
    "a list for an object": lambda e: e.update(spectra=[]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_wrong_with_one_entry_rejects_it_alone(change):
    content = json.loads(to_json(board_of(entry("a/one"), entry("a/two"))))
    CHANGES[change](content["entries"][0])
    board = from_json(json.dumps(content))
    assert [kept.repo_id for kept in board.entries] == ["a/two"]
    (one,) = board.rejected
    assert one.reason
    # And the board with its rejection can be written and read again.
    assert from_json(to_json(board)) == board


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "format"),
        ('{"format": 99}', "format"),
        # Of this form, a constrained encoder had no constraint.
        ('{"format": 4, "rejected": [], "entries": [], "collected_at": "2026-01-31", "endpoint": "x"}', "format"),
        ('{"format": 5}', "rejected"),
        ('{"format": 5, "rejected": [], "entries": [], "collected_at": 3, "endpoint": "x"}', "collected_at"),
    ],
)
def test_what_is_no_board_is_refused_in_one_line(text, match):
    with pytest.raises(ValueError, match=match) as raised:
        from_json(text)
    assert "\n" not in str(raised.value)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("0" * 40) | st.just("a/b"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(BoardResult)]), inner, max_size=5)
        | st.dictionaries(st.sampled_from(["repo_id", "revision", "results", "spectra", "curves", "summary"]), inner)
    ),
    max_leaves=15,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(junk, max_size=3), st.lists(junk, max_size=3), st.sampled_from(["entries", "spectra", "results"]), junk)
def test_junk_never_raises_anything_else(entries, rejected, place, value):
    content = json.loads(to_json(board_of(entry("a/one"))))
    if place != "entries":
        content["entries"][0][place] = value
    content["entries"] += entries
    content["rejected"] += rejected
    board = from_json(json.dumps(content))
    assert len(board.entries) + len(board.rejected) == len(content["entries"]) + len(content["rejected"])


def test_a_curve_keeps_its_ends_and_its_ranks():
    curve = Spectra({}, {"x": [1.0] * 200, "y": [1.0, 0.5]}, {"x": 3072, "y": 2})
    assert (curve.ranks("x")[0], curve.ranks("x")[-1], len(curve.ranks("x"))) == (1, 3072, 200)
    assert curve.ranks("x") == sorted(set(curve.ranks("x")))
    assert curve.ranks("y") == [1, 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_effective_rank_without_torch_is_that_with_torch(values):
    import numpy as np
    import torch

    ours, theirs = effective_rank(np.array(values)), by_torch(torch.tensor(values, dtype=torch.float64))
    assert ours == pytest.approx(theirs, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-12, 1), min_size=1, max_size=150))
def test_alpha_without_torch_is_that_with_torch(values):
    import numpy as np
    import torch

    values = sorted(values, reverse=True)
    ours, theirs = alpha_req(np.array(values)), alpha_by_torch(torch.tensor(values, dtype=torch.float64))
    assert ours == (None if theirs is None else pytest.approx(theirs, rel=1e-6, abs=1e-6))


@pytest.mark.parametrize(("length", "claimed"), [(64, 0.3), (64, -1e15), (4, 1.0)])
def test_alpha_is_that_of_the_curve(length, claimed):
    """λ = 1 / j has α = 1; four eigenvalues leave one to fit, and so no α."""
    import numpy as np

    curve = 1 / np.arange(1, length + 1)
    about = {
        "dim": length,
        "num_images": 100,
        "tokens_per_image": 1,
        "exact": True,
        "effective_rank": effective_rank(np.sqrt(curve)),
        "num_positive": length,
        "participation_ratio": float(curve.sum() ** 2 / np.square(curve).sum()),
        "rankme": 2.0,
        "alpha": 1.0,
    }

    def read(**changes):
        scalars = {"schema_version": 1, "weights": {}, "features": {"representation": about | changes}}
        return spectra_of(scalars, {"features/representation/eigenvalues": curve}, length)

    with pytest.raises(RejectedError, match="alpha"):
        read(alpha=claimed)
    assert read(alpha=None).summary.get("alpha") is None
    if length > 6:
        assert read().summary["alpha"] == pytest.approx(1)


def test_rank_is_brute_force_order():
    board = synthetic_board(200, seed=3)
    rows = rank(board, "knn", "CIFAR10", "top1")
    measure = ("knn", "cifar10", "top1")
    fitting = {e.repo_id: [r for r in e.results if (r.task, r.dataset, r.metric) == measure] for e in board.entries}
    best = {name: max(results, key=lambda result: result.value) for name, results in fitting.items() if results}
    assert {row.entry.repo_id: row.result.value for row in rows} == {name: r.value for name, r in best.items()}
    assert [row.result.value for row in rows] == sorted((r.value for r in best.values()), reverse=True)
    for row in rows:
        assert row.rank == 1 + sum(result.low > row.result.value for result in best.values())


def test_the_boards_own_number_counts_before_the_claim():
    claim = measured("knn", "cifar10", "top1", 0.99)
    own = dataclasses.replace(claim, value=0.4, low=0.39, high=0.41, source="board")
    board = board_of(entry("a/liar", results=[claim, own]), entry("a/honest", value=0.6))
    assert [row.entry.repo_id for row in rank(board, "knn", "cifar10", "top1")] == ["a/honest", "a/liar"]


def test_a_refuted_claim_never_ranks():
    claim = dataclasses.replace(measured("knn", "cifar10", "top1", 0.999), protocol={"k": 20, "test_images": 899})
    own = dataclasses.replace(claim, value=0.1, low=0.07, high=0.13, protocol={"k": 20, "test_images": 360})
    other = dataclasses.replace(claim, value=0.998, protocol={"k": 20, "by": "magic"})
    own = dataclasses.replace(own, source="board")
    board = board_of(entry("evil/m", results=[claim, other, own]), entry("good/m", value=0.97))
    rows = rank(board, "knn", "cifar10", "top1")
    found = [(row.rank, row.entry.repo_id, row.result.value, row.result.source) for row in rows]
    assert found == [(1, "good/m", 0.97, "author"), (2, "evil/m", 0.1, "board")]


def test_what_was_learned_from_does_not_rank():
    train = dataclasses.replace(measured("knn", "cifar10", "top1", 1.0), split="train")
    test = measured("knn", "cifar10", "top1", 0.4)
    board = board_of(entry("a/both", results=[train, test]), entry("a/train", results=[train]))
    assert [(row.entry.repo_id, row.result.split) for row in rank(board, "knn", "cifar10", "top1")] == [
        ("a/both", "test")
    ]


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("train", "test", False),
        ("train", "train[:10]", True),
        ("train[:80%]", "train[80%:]", False),
        ("train[:81%]", "train[80%:]", True),
        ("train[:80%]", "train[80:]", True),
        ("train[-20%:]", "train[:80%]", True),
        ("train[80%:]+test", "train[:80%]+validation", False),
        ("train+test", "test[5:]", True),
        ("all", "test", True),
        ("train[oops]", "Train", True),
    ],
)
def test_splits_that_share_images(one, other, share):
    assert overlap(one, other) == overlap(other, one) == share


def test_what_an_encoder_learned_from():
    assert [learned_from(name, None) for name in ("train", "TRAIN+test", "trainval", "all", "test")] == [True] * 4 + [
        False
    ]
    assert not learned_from("train[80%:]", None)
    assert learned_from("train[80%:]", "train")
    assert not learned_from("train[80%:]", "train[:80%]")
    assert learned_from("test", "test")


def test_what_is_measured_most_comes_first():
    few = [measured("linear", "imagenet-1k", "top1", 0.5)]
    board = board_of(entry("a/1"), entry("a/2"), entry("a/3", results=few), entry("a/4", results=[]))
    assert measurements(board) == [("knn", "cifar10", "top1"), ("linear", "imagenet-1k", "top1")]


def test_pairs_differ_by_the_penalty_alone():
    board = board_of(
        entry("a/plain", value=0.6),
        entry("a/worse", value=0.5),
        entry("a/so", regularizer="so", value=0.7),
        entry("a/srip", regularizer="srip", value=0.55),
        entry("a/other-method", regularizer="so", method="dino", value=0.9),
        entry("a/other-size", regularizer="so", image_size=64, value=0.9),
        entry("a/other-width", regularizer="so", parameters=1_000, value=0.9),
        entry("a/other-data", regularizer="so", pretrained_on="stl10", value=0.9),
        entry("a/unknown-data", regularizer="so", pretrained_on=None, value=0.9),
        entry("a/other-backbone", regularizer="so", backbone="resnet50", value=0.9),
    )
    found = [(without.repo_id, with_.repo_id, round(difference, 6)) for without, with_, difference in paired(board)]
    assert found == [("a/plain", "a/so", 0.1), ("a/plain", "a/srip", -0.05)]


def test_pairs_are_of_one_length_of_training():
    told = {"steps": 40, "epochs": 1.8, "images_per_step": 64}
    board = board_of(
        entry("a/plain", value=0.6, **told),
        entry("a/untold", regularizer="so", value=0.9),
        entry("a/longer", regularizer="so", value=0.9, **told | {"steps": 60}),
        entry("a/more-data", regularizer="so", value=0.9, **told | {"epochs": 1.0}),
        entry("a/larger-batch", regularizer="so", value=0.9, **told | {"images_per_step": 128}),
    )
    assert paired(board) == []
    so = entry("a/so", regularizer="so", value=0.7, **told)
    (pair,) = paired(dataclasses.replace(board, entries=[*board.entries, so]))
    assert pair[1].repo_id == "a/so"


@pytest.mark.parametrize("remedy", OTHER_REMEDIES)
def test_no_side_of_a_pair_has_another_remedy(remedy):
    """An encoder with another remedy, the best of all, is neither the plain side nor the one with the penalty."""
    told, other = {"embedding_regularizer": "koleo", "optimizer": "LARS"}, {remedy: OTHER_REMEDIES[remedy]}
    board = board_of(
        entry("a/plain", value=0.6, **told),
        entry("a/plain-other", value=0.9, **told | other),
        entry("a/so", regularizer="so", value=0.7, **told),
    )
    assert [(without.repo_id, with_.repo_id) for without, with_, _ in paired(board)] == [("a/plain", "a/so")]
    both = entry("a/so-other", regularizer="so", value=0.8, **told | other)
    found = [(a.repo_id, b.repo_id, round(d, 6)) for a, b, d in paired(board_of(*board.entries, both))]
    assert found == [("a/plain", "a/so", 0.1), ("a/plain-other", "a/so-other", -0.1)]


def test_a_decoupled_penalty_is_another_kind_than_one_in_the_loss():
    decoupled = {"regularizer": "so", "gamma": None, "penalty_mode": "decoupled"}
    board = board_of(
        entry("a/plain", value=0.6),
        entry("a/loss", regularizer="so", penalty_mode="loss", value=0.8),
        entry("a/weak", **decoupled, strength=0.01, value=0.5),
        entry("a/strong", **decoupled, strength=0.05, value=0.7),
    )
    found = [(without.repo_id, with_.repo_id, round(difference, 6)) for without, with_, difference in paired(board)]
    assert found == [("a/plain", "a/loss", 0.2), ("a/plain", "a/strong", 0.1)]


def test_what_could_not_be_read_is_in_no_pair():
    unread = entry("a/unread", value=0.5, remedies_read=False)
    so = entry("a/so", regularizer="so", value=0.7)
    assert paired(board_of(unread, so)) == []
    assert paired(board_of(entry("a/plain"), dataclasses.replace(so, remedies_read=False))) == []


def test_pairs_are_of_one_protocol():
    other = dataclasses.replace(measured("knn", "cifar10", "top1", 0.9), protocol={"k": 200})
    board = board_of(entry("a/plain", value=0.6), entry("a/so", regularizer="so", results=[other]))
    assert [difference for _, _, difference in paired(board)] == [None]


def test_a_snapshot_is_a_data_set(tmp_path):
    board = synthetic_board(30)
    decoupled = entry("z/z", regularizer="so", penalty_mode="decoupled", strength=0.05, optimizer="Muon")
    board = dataclasses.replace(board, entries=[*board.entries[:29], decoupled])
    board = dataclasses.replace(board, rejected=[Rejection("x/y", None, "config.json", "is not JSON")])
    folder = write_snapshot(board, tmp_path / "board")
    assert read_snapshot(folder) == board
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache")).to_list()
    expected = [(e.repo_id, r.value, r.source) for e in board.entries for r in e.results]
    assert [(row["repo_id"], row["value"], row["source"]) for row in rows if row["value"] is not None] == expected
    without = {e.repo_id for e in board.entries if not e.results}
    assert {row["repo_id"] for row in rows if row["value"] is None} == without
    assert [rows[-1][name] for name in ("strength", "optimizer", "remedies_read")] == [0.05, "Muon", True]
    assert "30 encoders" in (folder / "README.md").read_text()
    assert {path.name for path in folder.iterdir()} == {"board.json", "board.parquet", "README.md"}


def test_an_empty_board_is_a_data_set_too(tmp_path):
    folder = write_snapshot(board_of(), tmp_path / "board")
    assert read_snapshot(folder) == board_of()


@pytest.mark.parametrize(("location", "match"), [("nowhere", "owner/name"), (".", "has no board.json")])
def test_no_snapshot(location, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=match):
        read_snapshot(location)


def test_synthetic_spectra_pass_the_checks():
    kept = from_json(to_json(board_of(entry("a/b", spectra=spectra(512, 0.5)))))
    assert kept.entries[0].spectra == spectra(512, 0.5)
