"""Published weights measured again: honest claims are borne out, others are shown for what they are."""

import dataclasses
import json

import pytest
from leaderboard_hostile import stolen_spectra
from leaderboard_repos import SPLITS, files_of
from synthetic_board import entry, spectra

from hf_orthossl.cli.leaderboard import verified_table
from hf_orthossl.evaluation import Result, read_results
from hf_orthossl.hub import publish_encoder
from hf_orthossl.hub.leaderboard.board.build import add_verification, build, publish_verification
from hf_orthossl.hub.leaderboard.board.rank import rank
from hf_orthossl.hub.leaderboard.board.snapshot import read_snapshot
from hf_orthossl.hub.leaderboard.claims.remeasure import Data, verify
from hf_orthossl.hub.leaderboard.claims.verify import (
    Verification,
    compare,
    interval,
    merge,
    spectra_digest,
    verifications_from,
    verifications_json,
    with_verifications,
)
from hf_orthossl.hub.leaderboard.page.catalogue import Catalogue
from hf_orthossl.hub.leaderboard.page.routes import badge_words
from hf_orthossl.hub.leaderboard.schema import Board, BoardResult, from_json, to_json

DATA = Data(train_split=SPLITS["train_split"])


@pytest.fixture
def hub(hub_here, monkeypatch):
    monkeypatch.setattr("hf_orthossl.hub.client.RETRY_AFTER", (0, 0))
    return hub_here


def test_publish_appears_verify_badge(board_encoders, hub, tmp_path):
    publish_encoder(board_encoders[0], "tester/sound")
    first = build(tmp_path / "board", "tester/board", publish=True)
    (entry,) = first.board.entries
    assert {result.source for result in entry.results} == {"author"}
    found = verify("tester/sound", DATA)
    assert [pair.agrees for pair in found.compared] == [True, True]
    assert all(abs(pair.difference) < 1e-9 for pair in found.compared), "the same weights, images and protocol"
    assert found.verification.spectra == ""
    assert found.notes == []
    assert publish_verification("tester/board", found.verification) == f"{hub.url}/datasets/tester/board"
    hub.requests.clear()
    second = build(tmp_path / "elsewhere", "tester/board", publish=True)
    assert not any("/resolve/" in line for line in hub.requests if "tester/sound" in line), "nothing is read again"
    (entry,) = second.board.entries
    claims = read_results(board_encoders[0] / "results.json")
    for source in ("verified", "board"):
        of_source = {result.metric: result.value for result in entry.results if result.source == source}
        assert of_source == pytest.approx({claim.metric: claim.value for claim in claims})
    assert entry.spectra is not None
    assert read_snapshot("tester/board") == second.board
    (row,) = rank(second.board, "knn", "digits", "top1")
    assert row.result.source == "board"
    words = badge_words(Catalogue(second.board), "tester/sound", ("knn", "digits", "top1"))
    assert words == ("orthossl · knn digits top1", f"#1 of 1 · {row.result.value:.3f} ✓")
    # Another commit of the same weights: what was measured still holds. Other weights: it does not.
    hub.change(hub.repo("tester/sound"), {"notes.md": "x"})
    (entry,) = build(tmp_path / "elsewhere", "tester/board").board.entries
    assert {result.source for result in entry.results} == {"verified", "board"}
    files = files_of(board_encoders[1], "tester/sound")
    hub.change(hub.repo("tester/sound"), {name: files[name] for name in ("model.safetensors", "spectra.json")})
    (entry,) = build(tmp_path / "elsewhere", "tester/board").board.entries
    assert {result.source for result in entry.results} == {"author"}


def test_a_claim_beyond_the_interval_differs_and_is_listed(board_encoders, hub, tmp_path):
    claims = [boast(claim, 0.97) for claim in read_results(board_encoders[1] / "results.json")]
    hub.add_repo("tester/boaster", files_of(board_encoders[1], "tester/boaster", claims))
    found = verify("tester/boaster", DATA)
    assert [pair.agrees for pair in found.compared] == [False, False]
    top1 = found.compared[0]
    assert top1.measured.low <= 0.97 - top1.difference <= top1.measured.high
    assert top1.difference > 0.5
    add_verification(tmp_path / "board", found.verification)
    board = build(tmp_path / "board").board
    (entry,) = board.entries
    assert {result.source for result in entry.results} == {"author", "board"}
    assert [one.field for one in board.rejected] == [
        "verification, knn top1 on digits",
        "verification, knn top5 on digits",
    ]
    assert "claims 0.9700; this board measured" in board.rejected[0].reason
    assert rank(board, "knn", "digits", "top1")[0].result.value < 0.5
    again = build(tmp_path / "board").board
    assert (again.entries, again.rejected) == (board.entries, board.rejected), "applied once, however often it is built"


def boast(claim, value):
    """The claim with another value, and without the interval that would give it away."""
    protocol = {name: entry for name, entry in claim.protocol.items() if name != "interval"}
    return dataclasses.replace(claim, value=value, protocol=protocol)


def test_spectra_of_other_weights_are_found_out(board_encoders, hub, tmp_path):
    sound, collapsed = (files_of(folder, "tester/thief") for folder in board_encoders[:2])
    hub.add_repo("tester/thief", stolen_spectra(collapsed, sound))
    before = build(tmp_path / "board").board
    assert before.entries[0].spectra is not None, "they are in order by themselves"
    found = verify("tester/thief", DATA)
    assert "recomputed from the published weights" in found.verification.spectra
    add_verification(tmp_path / "board", found.verification)
    board = build(tmp_path / "board").board
    assert board.entries[0].spectra is None
    assert [one.field for one in board.rejected] == ["verification, spectra"]
    assert [pair.agrees for pair in found.compared] == [True, True]
    sources = {result.source for result in board.entries[0].results}
    assert sources == {"author", "board"}, "no mark beside spectra of other weights, though the accuracies agree"


def test_a_record_of_another_encoder_withholds_the_mark(board_encoders, hub, tmp_path):
    files = files_of(board_encoders[0], "tester/liar")
    config = json.loads(files["config.json"])
    config["orthossl"] |= {"mean": [0.1, 0.2, 0.3]}
    hub.add_repo("tester/liar", files | {"config.json": json.dumps(config).encode()})
    found = verify("tester/liar", DATA)
    assert found.verification.record.startswith("the record says mean = [0.1, 0.2, 0.3]")
    assert "mark       withheld" in verified_table(found)
    assert verifications_from(verifications_json([found.verification]).encode()) == [found.verification]
    add_verification(tmp_path / "board", found.verification)
    board = build(tmp_path / "board").board
    assert {result.source for result in board.entries[0].results} == {"author", "board"}
    assert [one.field for one in board.rejected] == ["verification, record"]


def test_what_costs_too_much_is_not_measured(board_encoders, hub, monkeypatch):
    hub.add_repo("tester/dear", files_of(board_encoders[0], "tester/dear"))
    module = "hf_orthossl.hub.leaderboard.claims.remeasure"
    for limit, words in (("MAX_WEIGHTS", "of weights: at most"), ("MAX_FLOP", "GFLOP"), ("MAX_SIDE", "pixels")):
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.{limit}", 1)
            with pytest.raises(ValueError, match=words):
                verify("tester/dear", DATA)


def test_measuring_ends_when_the_time_is_over(board_encoders, hub, monkeypatch):
    hub.add_repo("tester/slow", files_of(board_encoders[0], "tester/slow"))

    def endless(*args, **kwargs):
        while True:
            pass

    monkeypatch.setattr("hf_orthossl.hub.leaderboard.claims.remeasure.remeasure", endless)
    with pytest.raises(ValueError, match="tester/slow was not measured within 1 s: pass --max_minutes"):
        verify("tester/slow", DATA, seconds=1)


def test_spectra_of_better_features_are_found_out(board_encoders, hub):
    """The weights' spectra are their own; those of the features are another encoder's."""
    own, other = (files_of(folder, "tester/thief") for folder in (board_encoders[1], board_encoders[0]))
    from safetensors.torch import load, save

    scalars = [json.loads(files["spectra.json"]) for files in (own, other)]
    scalars[0]["features"] = scalars[1]["features"]
    arrays = [load(files["spectra.safetensors"]) for files in (own, other)]
    mixed = {name: (arrays[1] if name.startswith("features/") else arrays[0])[name] for name in arrays[0]}
    own |= {"spectra.json": json.dumps(scalars[0]).encode(), "spectra.safetensors": save(mixed)}
    hub.add_repo("tester/thief", own)
    assert "of representation is published as" in verify("tester/thief", DATA).verification.spectra


def test_the_training_runs_own_accuracy_and_probes_are_measured_again(board_encoders, hub):
    settings = {"k": 5, "temperature": 0.07, "bank": 120, "queries": 60, "step": "end"}
    probe = {"protocol": "sgd", "epochs": 5, "learning_rate": 0.1, "weight_decay": 0.0, "batch_size": 64}
    claims = [
        Result("knn", "digits", "test[:100]", "top1", 0.3, settings),
        Result("linear", "digits", "test[:100]", "top1", 0.3, probe | {"train_images": 300, "test_images": 100}),
        Result("linear", "digits", "test[:100]", "top1", 0.3, probe | {"epochs": 10**9}),
        Result("knn", "digits", "test[:100]", "top1", 0.3, {"k": 5, "temperature": None, "train_images": 300}),
        Result("finetune", "digits", "test", "top1", 0.9, {"protocol": "full"}),
        Result("knn", "my_photos", "test", "top1", 0.9, {"k": 5, "temperature": 0.07}),
    ]
    hub.add_repo("tester/many", files_of(board_encoders[0], "tester/many", claims))
    found = verify("tester/many", DATA)
    assert [pair.measured is not None for pair in found.compared[:6]] == [True, True, False, True, False, False]
    assert found.compared[0].measured.protocol == {"k": 5, "temperature": 0.07, "bank": 120, "queries": 60}
    told = "; ".join(found.notes)
    for words in ("epochs must be a whole number up to 1,000", "only kNN and linear", "pass --dataset"):
        assert words in told


def test_a_strangers_name_is_no_folder_here(board_encoders, hub, tmp_path, monkeypatch):
    (tmp_path / "owner" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    claims = [Result("knn", "owner/photos", "test", "top1", 0.9, {"k": 5, "temperature": 0.07})]
    files = files_of(board_encoders[0], "tester/one", [Result("knn", "a/b", "test", "top1", 0.9, claims[0].protocol)])
    hub.add_repo("tester/one", {p: c.replace(b"a/b", b"owner/photos") for p, c in files.items()})
    found = verify("tester/one")
    assert found.verification.results == []
    assert "pass --dataset" in found.notes[0]


def test_data_that_cannot_be_loaded_leave_the_other_claims(board_encoders, hub):
    settings = {"k": 5, "temperature": 0.07, "train_images": 300, "test_images": 100}
    claims = [
        Result("knn", "uoft-cs/cifar10", "test", "top1", 0.9, settings),
        Result("knn", "digits", "test[:100]", "top1", 0.28, settings),
    ]
    hub.add_repo("tester/two", files_of(board_encoders[0], "tester/two", claims))
    found = verify("tester/two", DATA)
    assert {result.dataset for result in found.verification.results} == {"digits"}
    assert "claims on uoft-cs/cifar10, test: not measured again" in found.notes[0]
    with pytest.raises((ValueError, OSError), match="uoft-cs/cifar10"):
        verify("tester/two", dataclasses.replace(DATA, dataset="uoft-cs/cifar10"))


@pytest.mark.parametrize(
    ("model", "match"), [("resnet18", "owner/name"), ("tester/nobody", "no such repository"), ("tester/bare", "board")]
)
def test_what_cannot_be_verified(model, match, hub):
    hub.add_repo("tester/bare", {"README.md": "x"})
    with pytest.raises((ValueError, OSError), match=match):
        verify(model)


def claim(value: float, **changes) -> BoardResult:
    """A kNN accuracy; unknown names are entries of its protocol."""
    about = {name: changes.pop(name) for name in ("low", "high", "source") if name in changes}
    return BoardResult("knn", "digits", "test", "top1", value, {"k": 5} | (changes or {"train_images": 10}), **about)


def test_only_the_number_of_images_may_differ():
    ours = claim(0.5, low=0.4, high=0.6, source="board")
    theirs = [claim(0.55, train_images=9), claim(0.55, k=6, train_images=10), claim(0.7)]
    assert [pair.agrees for pair in compare(theirs, [ours])] == [True, None, False]
    forged = [claim(0.7, low=0.0, high=1.0), claim(0.7, k=5, low=0.0, high=1.0)]
    assert [pair.agrees for pair in compare(forged, [ours])] == [False, False], (
        "an author's interval counts for nothing"
    )
    assert compare([], [ours])[0].claimed is None


def test_a_claim_of_another_number_of_images_is_given_that_numbers_interval():
    ours = claim(0.5, test_images=400, low=0.451, high=0.549)
    same = claim(0.58, test_images=400)
    few = claim(0.999, test_images=1)
    more, many = (claim(0.58, test_images=count) for count in (500, 100_000))
    assert interval(0.58, 500)[0] < 0.549 < interval(0.58, 100_000)[0]
    assert [pair.agrees for pair in compare([same, few, more, many], [ours])] == [False, False, True, False]


def test_a_result_on_what_was_learned_from_is_rejected_and_not_measured(board_encoders, hub):
    settings = {"k": 1, "temperature": None}
    claims = [
        Result("knn", "digits", split, "top1", 1.0, settings) for split in ("train", "train[:60]", "train[1000:]")
    ]
    hub.add_repo("tester/learned", files_of(board_encoders[0], "tester/learned", claims))
    found = verify("tester/learned", dataclasses.replace(DATA, train_split="train[:60]"))
    # The encoder was trained on train[:60].
    assert [result.split for result in found.entry.results] == ["train[1000:]"]
    assert [one.reason for one in found.rejected] == [
        f"split: knn top1 on digits is of '{split}', which was learned from" for split in ("train", "train[:60]")
    ]
    assert found.compared[0].agrees is False
    # With the default training split the neighbours would be the images themselves.
    found = verify("tester/learned")
    assert found.verification.results == []
    assert "shares images with" in found.notes[0]


def test_earlier_re_runs_on_training_images_are_not_shown():
    train = dataclasses.replace(claim(1.0, source="board"), split="train")
    board = Board([entry("a/b", results=[])], [], "2026-01-01", "x")
    found = Verification("a/b", board.entries[0].revision, None, "2026-01-01", "0.1", [train, claim(0.5)])
    (shown,) = with_verifications(board, [found]).entries
    assert [result.split for result in shown.results] == ["test"]


def test_a_verdict_on_spectra_is_of_those_spectra():
    one = entry("a/b", weights="1" * 64)
    digest = spectra_digest(one.spectra)
    found = Verification("a/b", one.revision, "1" * 64, "2026-01-01", "0.1", [], "the spectra are others'", digest)
    mended = dataclasses.replace(one, revision="c" * 40, spectra=spectra(512, 0.25))
    moved = dataclasses.replace(one, revision="d" * 40)
    for shown, stays in ((one, False), (moved, False), (mended, True)):
        board = with_verifications(Board([shown], [], "2026-01-01", "x"), verifications_from(written([found])))
        assert (board.entries[0].spectra is not None) == stays
        assert len(board.rejected) == (not stays)


def written(found: list[Verification]) -> bytes:
    return verifications_json(found).encode()


def test_a_re_run_makes_few_rejections_and_results_that_can_be_read():
    claims = [claim(0.9, k=number) for number in range(200)]
    again = [claim(0.1, k=number, low=0.05, high=0.15, source="board") for number in range(300)]
    board = Board([entry("a/b", results=claims)], [], "2026-01-01", "x")
    found = Verification("a/b", board.entries[0].revision, None, "2026-01-01", "0.1", again)
    shown = with_verifications(board, [found])
    assert len(shown.rejected) == 21
    assert shown.rejected[-1].reason == "and 180 more, not listed"
    assert len(from_json(to_json(shown)).entries) == 1
    assert with_verifications(shown, [found]).rejected == shown.rejected


def test_each_of_two_numbers_of_images_is_compared_with_its_own():
    monitored, frozen = {"bank": 10, "queries": 5}, {"train_images": 10}
    ours = [claim(0.2, **monitored, low=0.15, high=0.25), claim(0.6, **frozen, low=0.5, high=0.7)]
    for order in (ours, ours[::-1]):
        pairs = compare([claim(0.21, **monitored), claim(0.61, **frozen)], order)
        assert [(pair.agrees, pair.measured.protocol) for pair in pairs] == [
            (True, {"k": 5} | monitored),
            (True, {"k": 5} | frozen),
        ]


def test_wilson_interval_is_the_root_of_its_equation():
    for value, count in ((0.3, 100), (0.99, 57), (0.5, 10_000)):
        for end in interval(value, count):
            assert abs(value - end) == pytest.approx(1.959963985 * (end * (1 - end) / count) ** 0.5, rel=1e-6)
    for value in (0.0, 1.0):
        low, high = interval(value, 100)
        assert low <= value <= high
        assert high - low > 0.03


def test_the_latest_re_run_of_the_same_weights_stays():
    one = Verification("a/b", "0" * 40, "1" * 64, "2026-01-01", "0.1")
    later = dataclasses.replace(one, revision="2" * 40, date="2026-02-01")
    other = dataclasses.replace(one, weights="3" * 64)
    assert merge([later, other], [one]) == [other, later]
    assert verifications_from(verifications_json([other, later]).encode()) == [other, later]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "verified": [3]}', '{"format": 2}'])
def test_what_is_no_list_of_re_runs(text):
    with pytest.raises(ValueError, match=r"verified\.json"):
        verifications_from(text.encode())


def test_a_re_run_says_nothing_of_other_repositories():
    board = Board([], [], "2026-01-01", "x")
    assert with_verifications(board, [Verification("a/b", "0" * 40, None, "2026-01-01", "0.1")]) == board


def test_a_protocol_in_prose_is_not_read(board_encoders, hub):
    """Of a repository without results.json and with a sentence in its card, nothing is measured by guessing."""
    claims = [Result("knn", "digits", "test[:100]", "top1", 0.3, {"protocol": "k = 5, temperature = 0.07"})]
    files = files_of(board_encoders[0], "tester/prose", claims)
    del files["results.json"]
    hub.add_repo("tester/prose", files)
    found = verify("tester/prose", DATA)
    assert [result.protocol for result in found.entry.results] == [{"protocol": "k = 5, temperature = 0.07"}]
    assert found.verification.results == []
    assert "its protocol must state k and temperature" in found.notes[0]
