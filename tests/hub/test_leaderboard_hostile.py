"""Hostile repositories, collected from a real server on loopback: where each ends, and that the rest stands."""

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from leaderboard_hostile import hostile_repos
from leaderboard_repos import CIFAR, Variations, files_of
from local_hub import LocalHub
from synthetic_board import OTHER_REMEDIES

from hf_orthossl.hub.leaderboard.board.collect import Listed, _reader, collect
from hf_orthossl.hub.leaderboard.board.rank import rank
from hf_orthossl.hub.leaderboard.claims.check import (
    ARRAYS,
    CARD,
    CONFIG,
    RESULTS,
    SCALARS,
    WEIGHTS,
    Published,
    check,
)
from hf_orthossl.hub.leaderboard.fetch import Fetcher
from hf_orthossl.hub.leaderboard.schema import Board, from_json, to_json


@pytest.fixture(scope="module")
def hostile_board(board_encoders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch, LocalHub(folder / "hub") as hub:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        Variations(board_encoders).fill(hub, 10)
        marker = folder / "was-run"
        repos = {repo.name: repo for repo in hostile_repos(lambda name: files_of(board_encoders[0], name), str(marker))}
        for repo in repos.values():
            hub.add_repo(f"stranger/{repo.name}", repo.files)
            if repo.after:
                repo.after(hub, f"stranger/{repo.name}")
        board = collect(folder / "cache", fetcher=Fetcher(hub.url, False))
        yield repos, board, list(hub.requests), marker


# Names without an encoder: `pytest --collect-only` shows them without making any.
PLAIN = {CONFIG: b'{"orthossl": {}}', SCALARS: b'{"features": {"representation": {}}}'}
HOSTILE = [repo.name for repo in hostile_repos(lambda name: PLAIN, "marker")]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_repositories_end_where_they_should(name, hostile_board):
    repos, board, _, _ = hostile_board
    repo = repos[name]
    entries = [entry for entry in board.entries if entry.repo_id == f"stranger/{name}"]
    reasons = [f"{one.field} {one.reason}" for one in board.rejected if one.repo_id == f"stranger/{name}"]
    assert len(entries) == repo.is_entry, f"{repo.tries}: {reasons}"
    if repo.reason:
        assert any(repo.reason in reason for reason in reasons), f"{repo.tries}: {reasons}"
    else:
        assert reasons == []
    assert all(result.source == "author" for entry in entries for result in entry.results)
    for reason in reasons:
        assert reason.isprintable()
        assert len(reason) < 450


def test_no_number_on_training_images_is_a_claim_in_any_form(hostile_board):
    """Nor does a sentence that does not state the split as data rank."""
    repos, board, _, _ = hostile_board
    for entry in board.entries:
        if "training" in entry.repo_id:
            assert entry.results == []
    ranked = {row.entry.repo_id for row in rank(board, "knn", CIFAR, "top1")}
    assert {name for name in ranked if not name.startswith("tester/")} <= {
        f"stranger/{name}" for name, repo in repos.items() if b'"dataset": "uoft' in repo.files.get("results.json", b"")
    }


def test_the_rest_of_the_board_stands(hostile_board):
    repos, board, requests, marker = hostile_board
    sound = [entry for entry in board.entries if entry.repo_id.startswith("tester/")]
    assert len(sound) == 10
    assert all(entry.spectra and len(entry.results) == 2 for entry in sound)
    assert not marker.exists(), "something was run"
    assert len(board.entries) + len(board.rejected) > len(repos)
    # Nothing but what the board reads was asked for, and of the huge file nothing.
    files = {line.split("/resolve/")[1].split("/", 1)[1] for line in requests if "/resolve/" in line}
    assert all(
        name in (CONFIG, CARD, RESULTS, SCALARS, ARRAYS) or re.fullmatch(r"\.eval_results/\w[\w.-]*", name)
        for name in files
    )
    assert not any("huge-file/resolve" in line and SCALARS in line for line in requests)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
NAMED = st.sampled_from(
    [
        "orthossl",
        "backbone",
        "num_features",
        "features",
        "weights",
        "representation",
        "dim",
        "exact",
        "model-index",
        "results",
        "metrics",
        "args",
        "task",
        "dataset",
        "id",
        "task_id",
        "notes",
        "value",
        "metric",
        "interval",
        "schema_version",
        "shape",
        "effective_rank",
        "protocol",
        "split",
        "type",
    ]
)
named_junk = st.recursive(
    junk | st.just(1) | st.just("knn_top1") | st.just("split = test, k = 1"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMED, inner, max_size=6),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(named_junk, named_junk, named_junk, st.binary(max_size=200), st.text(max_size=200))
def test_no_junk_raises_out_of_the_checks(config, scalars, card, arrays, text):
    config = config if isinstance(config, dict) else {"orthossl": config}
    for block in (config, {"orthossl": {"num_features": 16, "backbone": "x", "method": "y", "image_size": 32}}):
        files = {
            CONFIG: json.dumps(block).encode(),
            SCALARS: json.dumps(scalars).encode(),
            ARRAYS: arrays,
            CARD: f"---\n{yaml.safe_dump(card, allow_unicode=True)}\n---\n".encode(errors="replace"),
            ".eval_results/a.yaml": yaml.safe_dump(card).encode(),
            ".eval_results/b.yaml": text.encode(errors="replace"),
            RESULTS: json.dumps([card, *(card if isinstance(card, list) else [])]).encode(),
        }
        entry, rejected = check(
            Published("a/b", "0" * 40, "a", None, dict.fromkeys([*files, WEIGHTS, text], 1), None, 1, files)
        )
        assert entry is not None or rejected


def published(files: dict[str, bytes], **changes) -> Published:
    block = {"num_features": 8, "backbone": "r", "method": "m", "image_size": 32} | changes
    files = {CONFIG: json.dumps({"architecture": "resnet18", "orthossl": block}).encode(), **files}
    return Published("e/v", "a" * 40, "e", None, dict.fromkeys([*files, WEIGHTS], 1), None, None, files)


def result_files(count: int, **changes) -> dict[str, bytes]:
    parts = [
        {"dataset": {"id": "d", "task_id": "knn_top1"}, "notes": f"split = test, k = {number}", "value": 0.5} | changes
        for number in range(count)
    ]
    pages = [parts[start : start + 100] for start in range(0, count, 100)]
    return {f".eval_results/{number}.yaml": yaml.safe_dump(page).encode() for number, page in enumerate(pages)}


def test_too_many_results_are_cut_not_the_encoder():
    entry, rejected = check(published(result_files(500)))
    assert [one.reason for one in rejected] == ["has 500 numbers, 200 are read"]
    board = from_json(to_json(Board([entry], rejected, "2026-01-01", "http://h")))
    assert [len(kept.results) for kept in board.entries] == [200]


def test_rejections_of_one_repository_are_few(monkeypatch):
    files = published(result_files(300, value=7))
    monkeypatch.setattr("hf_orthossl.hub.leaderboard.board.collect.read_published", lambda fetcher, line: (files, []))
    _, rejected = _reader(None)(Listed("e/v", "a" * 40, "e", None))
    assert len(rejected) == 21
    assert (rejected[-1].repo_id, rejected[-1].reason) == ("e/v", "and 280 more, not listed")


@pytest.mark.parametrize(
    ("named", "gamma", "read"),
    [
        ("none", 0.1, (None, None)),
        (" None", None, (None, None)),
        ("", None, (None, None)),
        ("so", 0, (None, None)),
        ("so", 0.5, ("so", 0.5)),
        ("so", None, ("so", None)),
    ],
)
def test_no_penalty_by_another_name(named, gamma, read):
    entry, rejected = check(published({}, regularizer=named, gamma=gamma))
    assert ((entry.regularizer, entry.gamma), rejected) == (read, [])


def test_length_of_training():
    training = {"steps": 40, "epochs": 1.818, "images_per_step": 64}
    entry, rejected = check(published({}, training=training))
    assert ((entry.steps, entry.epochs, entry.images_per_step), rejected) == ((40, 1.818, 64), [])
    assert from_json(to_json(Board([entry], [], "2026-01-01", "http://h"))).entries == [entry]
    entry, rejected = check(published({}, training={"steps": -1, "epochs": "many"}))
    assert (entry.steps, entry.epochs, entry.images_per_step, len(rejected)) == (None, None, None, 2)


# What `config.json` says of a remedy that acted, by field of the entry.
ACTED = {"penalty_mode": "decoupled", "strength": 0.05, **OTHER_REMEDIES}


def with_remedies(**changes):
    """What is read of an encoder with all remedies, some of their settings changed."""
    block = {"regularizer": "so", "gamma": 0.5} | ACTED | changes
    training = {"optimizer": block.pop("optimizer")}
    entry, rejected = check(published({}, training=training, **block))
    assert from_json(to_json(Board([entry], [], "2026-01-01", "http://h"))).entries == [entry]
    return entry, rejected


def test_every_remedy_is_read():
    entry, rejected = with_remedies()
    assert {name: getattr(entry, name) for name in ACTED} == ACTED
    # γ is that of the loss, where the penalty is not.
    assert (entry.regularizer, entry.gamma, entry.remedies_read, rejected) == ("so", None, True, [])
    entry, rejected = with_remedies(penalty_mode="loss")
    assert (entry.gamma, entry.strength, entry.penalty_mode, rejected) == (0.5, None, "loss", [])


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"strength": 0}, ("regularizer", "gamma", "penalty_mode", "strength")),
        ({"regularizer": "none"}, ("regularizer", "gamma", "penalty_mode", "strength")),
        ({"constrain": "None"}, ("constrain",)),
        ({"embedding_weight": 0.0}, ("embedding_regularizer", "embedding_layer", "embedding_weight")),
        ({"embedding_regularizer": ""}, ("embedding_regularizer", "embedding_layer", "embedding_weight")),
        ({"whitening": 0.0}, ("whitening",)),
    ],
)
def test_a_remedy_that_did_not_act_is_none(changes, gone):
    entry, rejected = with_remedies(**changes)
    assert ([getattr(entry, name) for name in gone], entry.remedies_read, rejected) == ([None] * len(gone), True, [])
    assert {name: getattr(entry, name) for name in ACTED if name not in gone} == {
        name: value for name, value in ACTED.items() if name not in gone
    }


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("regularizer", {"so": 1}, "must be a name"),
        ("penalty_mode", "sometimes", "must be one of loss, decoupled, got 'sometimes'"),
        ("penalty_mode", ["loss"], "must be one of loss, decoupled"),
        ("strength", -0.1, "must be a number from 0 to"),
        ("strength", "0.05", "got '0.05'"),
        ("strength", 10**400, "must be a number"),
        ("constrain", True, "must be one of orthogonal, got True"),
        ("constrain", "<script>", "must be one of orthogonal"),
        ("embedding_regularizer", "sigr\u0435g", "look like others"),
        ("embedding_regularizer", "x" * 100_000, "is longer than 40"),
        ("embedding_layer", "attic", "must be one of embedding, representation"),
        ("embedding_weight", float("nan"), "must be a number"),
        ("whitening", [1e-4], "must be a number"),
        ("whitening", True, "must be a number"),
        ("optimizer", 7, "must be a name, got 7"),
        ("optimizer", "Muon\u202e", "look like others"),
    ],
)
def test_a_malformed_remedy_is_rejected_and_the_encoder_stays_in_no_pair(name, value, reason):
    entry, (one,) = with_remedies(**{name: value})
    assert (one.field, getattr(entry, name), entry.remedies_read) == (name, None, False)
    assert reason in one.reason
    assert (entry.backbone, entry.repo_id) == ("r", "e/v")
