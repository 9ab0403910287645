"""Collecting from a real server on loopback: what is read, how often, and what becomes of what cannot be read."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from leaderboard_repos import CIFAR, Variations, change, files_of

from hf_orthossl.evaluation import read_results
from hf_orthossl.hub.leaderboard.board.collect import collect
from hf_orthossl.hub.leaderboard.claims.check import WEIGHTS
from hf_orthossl.hub.leaderboard.fetch import Fetcher, TooLarge
from hf_orthossl.hub.leaderboard.schema import UNREAD
from hf_orthossl.hub.measurements import average_seeds, protocol_text
from hf_orthossl.spectra import SpectralReport

# info, config, card, results, two files of spectra, two of .eval_results
OF_A_REPO = 8


def gather(hub, tmp_path, previous=None):
    return collect(tmp_path / "cache", previous, fetcher=Fetcher(hub.url, False, tmp_path / "cache" / "pages"))


def test_entries_are_what_was_published(board_encoders, board_hub, tmp_path):
    for folder in board_encoders:
        board_hub.add_repo(f"tester/{folder.name}", files_of(folder, f"tester/{folder.name}"))
    board_hub.add_repo("tester/other", {"README.md": "---\ntags:\n- bert\n---\n"})
    board_hub.add_repo("tester/hidden", files_of(board_encoders[0], "tester/hidden"), private=True)
    board = gather(board_hub, tmp_path)
    assert board.rejected == []
    assert [entry.repo_id for entry in board.entries] == ["tester/collapsed", "tester/sound", "tester/vit"]
    for entry in board.entries:
        folder = next(folder for folder in board_encoders if entry.repo_id.endswith(folder.name))
        claimed = {(r.key, r.value, r.interval) for r in average_seeds(read_results(folder / "results.json"))}
        assert {(r.key, r.value, None if r.low is None else (r.low, r.high)) for r in entry.results} == claimed
        assert {(r.task, r.dataset, r.source, r.revision) for r in entry.results} == {
            ("knn", "digits", "author", entry.revision)
        }
        report = SpectralReport.load(folder)
        spectrum = report.features["representation"]
        assert entry.spectra.summary["effective_rank"] == pytest.approx(spectrum.effective_rank)
        assert entry.spectra.summary["weights_rank_min"] == pytest.approx(report.summary()["weights/relative_rank_min"])
        curve = spectrum.eigenvalues.numpy()[[rank - 1 for rank in entry.spectra.ranks("representation")]]
        assert entry.spectra.curves["representation"] == pytest.approx(curve, rel=1e-4)
        assert len(entry.spectra.curves["input"]) == 200
        assert entry.spectra.lengths["input"] == 3072
    collapsed, sound, _ = board.entries
    assert (sound.backbone, sound.method, sound.regularizer, sound.gamma) == ("resnet10t", "byol", "so", 1e-6)
    assert (sound.penalty_mode, sound.strength, sound.remedies_read) == ("loss", None, True)
    assert (collapsed.penalty_mode, collapsed.gamma, collapsed.remedies_read) == (None, None, True)
    assert (collapsed.regularizer, sound.pretrained_on, sound.image_size) == (None, "digits", 32)
    assert collapsed.spectra.summary["effective_rank"] < 2 < sound.spectra.summary["effective_rank"]
    weights = board_hub.repo("tester/sound").head["main"].files[WEIGHTS]
    assert sound.weights == weights.sha256
    assert sound.parameters == board_hub.store.numbers(weights)


@pytest.mark.parametrize("form", ["results.json", "README.md", "both"])
def test_each_form_states_protocols_as_data(form, board_encoders, board_hub, tmp_path):
    files = Variations(board_encoders).files("tester/one", 1)
    left_out = {"results.json": ".eval_results", "README.md": (".eval_results", "results.json"), "both": "none"}[form]
    files = {path: c for path, c in files.items() if not path.startswith(left_out)}
    if form == "results.json":
        files["README.md"] = b"---\ntags:\n- orthossl\n---\n"
    board_hub.add_repo("tester/one", files)
    board = gather(board_hub, tmp_path)
    (entry,) = board.entries
    assert board.rejected == []
    assert [(r.task, r.dataset, r.protocol, protocol_text(r)) for r in entry.results] == [
        ("knn", CIFAR, {"k": 20, "temperature": 0.07}, "k = 20, temperature = 0.07"),
        ("linear", CIFAR, {"protocol": "sgd", "epochs": 100}, "sgd, epochs = 100"),
    ]


def test_requests_follow_what_has_changed(board_encoders, board_hub, tmp_path):
    names = Variations(board_encoders).fill(board_hub, 60)
    board_hub.page_size = 25
    first = gather(board_hub, tmp_path)
    assert len(first.entries) == 60
    assert len(board_hub.requests) == 3 + 60 * OF_A_REPO, "three pages"
    board_hub.requests.clear()
    again = gather(board_hub, tmp_path)
    assert (again.entries, again.rejected) == (first.entries, first.rejected)
    assert len(board_hub.requests) == 3
    for name in names[:3]:
        change(board_hub, name, 0.5)
    board_hub.requests.clear()
    changed = gather(board_hub, tmp_path)
    assert len(board_hub.requests) == 3 + 3 * OF_A_REPO
    assert all(0.5 in [result.value for result in entry.results] for entry in changed.entries[:3])
    assert changed.entries[3:] == first.entries[3:]
    board_hub.requests.clear()
    elsewhere = gather(board_hub, tmp_path / "new", previous=changed)
    assert elsewhere.entries == changed.entries
    assert len(board_hub.requests) == 3, "the published board is as good as the folder"


def test_pages_are_asked_for_by_etag(board_encoders, board_hub, tmp_path):
    Variations(board_encoders).fill(board_hub, 2)
    pages = tmp_path / "cache" / "pages"
    gather(board_hub, tmp_path)
    (page,) = pages.iterdir()
    known = page.read_bytes()
    # What a 304 leaves in place is used: the kept page is the one that is read.
    page.write_bytes(known.replace(b"encoder-0001", b"encoder-0009"))
    assert any(one.repo_id == "tester/encoder-0009" for one in gather(board_hub, tmp_path).rejected)
    page.write_bytes(b"{broken")
    assert len(gather(board_hub, tmp_path).entries) == 2
    assert page.read_bytes() == known


def test_the_hub_may_ask_for_patience(board_encoders, board_hub, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waited.append)
    Variations(board_encoders).fill(board_hub, 3)
    board_hub.fail("GET /api/models/tester/encoder-0001", 429, Retry_After="7")
    board_hub.fail("GET /tester/encoder-0002/resolve/.*/README.md", 503)
    board_hub.cut("GET /tester/encoder-0000/resolve/.*/config.json")
    board = gather(board_hub, tmp_path)
    assert len(board.entries) == 3
    assert board.rejected == []
    assert any(7 <= seconds <= 8 for seconds in waited)


def test_what_cannot_be_read_is_rejected_and_tried_again(board_encoders, board_hub, tmp_path):
    Variations(board_encoders).fill(board_hub, 3)
    board_hub.fail("GET /api/models/tester/encoder-0001", 429, times=100)
    board = gather(board_hub, tmp_path)
    assert [entry.repo_id for entry in board.entries] == ["tester/encoder-0000", "tester/encoder-0002"]
    (one,) = board.rejected
    assert (one.repo_id, one.field) == ("tester/encoder-0001", UNREAD)
    assert "429" in one.reason
    board_hub.faults.clear()
    board_hub.requests.clear()
    assert len(gather(board_hub, tmp_path).entries) == 3
    assert len(board_hub.requests) == 1 + OF_A_REPO


def test_without_a_listing_the_old_board_stays(board_encoders, board_hub, tmp_path):
    Variations(board_encoders).fill(board_hub, 3)
    board_hub.page_size = 2
    gather(board_hub, tmp_path)
    kept = (tmp_path / "cache" / "board.json").read_bytes()
    board_hub.fail("cursor=2", 500, times=100)
    with pytest.raises(OSError, match="repeatedly answered 500"):
        gather(board_hub, tmp_path)
    assert (tmp_path / "cache" / "board.json").read_bytes() == kept


@pytest.mark.parametrize("what", ["deleted", "rewritten", "deleted later", "made private"])
def test_a_repository_that_is_gone_between_listing_and_reading(board_encoders, board_hub, tmp_path, monkeypatch, what):
    Variations(board_encoders).fill(board_hub, 3)
    name, served = "tester/encoder-0001", board_hub.fault
    moment = "/resolve/" if what == "deleted later" else "/revision/"

    def act_first(line, late):
        if f"{name}{moment}" in line and not late:
            if what.startswith("deleted"):
                board_hub.store.repos.pop(("model", name), None)
            elif what == "made private":
                board_hub.repo(name).private = True
            elif board_hub.repo(name).head["main"].parent:
                files = board_hub.files(name)
                del board_hub.store.repos["model", name]
                board_hub.add_repo(name, files | {"more.txt": "x"})
        return served(line, late)

    monkeypatch.setattr(board_hub, "fault", act_first)
    board = gather(board_hub, tmp_path)
    assert [entry.repo_id for entry in board.entries] == ["tester/encoder-0000", "tester/encoder-0002"]
    (one,) = board.rejected
    assert (one.repo_id, one.field) == (name, UNREAD)
    assert re.search("rewritten meanwhile" if what == "rewritten" else "no such repository", one.reason)


def test_malformed_lines_of_the_listing(board_encoders, board_hub, tmp_path, monkeypatch):
    Variations(board_encoders).fill(board_hub, 2)
    lines = [None, 3, {}, {"id": SCRIPT_ID, "sha": "0" * 40}, {"id": "a/b", "sha": "../.."}, {"id": ["x"], "sha": {}}]
    pages = Fetcher.pages
    monkeypatch.setattr(Fetcher, "pages", lambda *args: iter([*pages(*args), lines]))
    board = gather(board_hub, tmp_path)
    assert len(board.entries) == 2
    assert len(board.rejected) == len(lines)


SCRIPT_ID = "<script>/x"


class Endless(BaseHTTPRequestHandler):
    """Sends 5 MB without saying how much."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(50):
            self.wfile.write(b"x" * 100_000)


def test_bytes_are_counted_where_no_size_is_announced(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        server.handle_error = lambda *args: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetcher = Fetcher(f"http://127.0.0.1:{server.server_port}", False)
        with pytest.raises(TooLarge, match="holds more than the 1,000,000"):
            fetcher.file("a/b", "0" * 40, "x", 1_000_000)
        assert len(fetcher.file("a/b", "0" * 40, "x", 1_000_000, start=True)) == 1_000_000
        assert len(fetcher.file("a/b", "0" * 40, "x", 5_000_000)) == 5_000_000
        server.shutdown()


def test_a_listing_goes_on_at_no_other_server(board_hub, tmp_path, monkeypatch):
    """It would be given the token."""
    board_hub.add_repo("a/b", {"README.md": "---\ntags:\n- orthossl\n---\n"})
    board_hub.add_repo("a/c", {"README.md": "---\ntags:\n- orthossl\n---\n"})
    board_hub.page_size = 1
    fetcher = Fetcher(board_hub.url, "hf_secret")
    board_hub.tokens["hf_secret"] = ("a", False)
    board_hub.url = "http://elsewhere.example"
    with pytest.raises(OSError, match=r"another server, http://elsewhere\.example"):
        list(fetcher.pages("orthossl", ("sha",)))
