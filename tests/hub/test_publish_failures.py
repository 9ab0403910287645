"""Publishing to a Hub that stumbles, stays away, or changes meanwhile."""

import pytest
from published_encoders import REPO

from hf_orthossl.hub import publish_encoder
from hf_orthossl.hub.client import HubRepo


@pytest.mark.parametrize("status", [500, 502, 429])
@pytest.mark.parametrize("request_line", ["GET /api/models", "POST .*create", "POST .*commit/", "validate-yaml"])
def test_a_stumbling_hub_is_asked_again(status, request_line, folder, hub_here):
    hub_here.fail(request_line, status, times=2)
    publish_encoder(folder, REPO)
    assert [fault.times for fault in hub_here.faults] == [0]
    assert len(hub_here.commits(REPO)) == 2


@pytest.mark.parametrize("request_line", ["PUT /lfs", "POST .*commit/", "POST .*preupload"])
def test_a_connection_cut_mid_upload_is_taken_up_again(request_line, folder, hub_here):
    hub_here.cut(request_line)
    publish_encoder(folder, REPO)
    assert [fault.times for fault in hub_here.faults] == [0]
    assert hub_here.files(REPO)["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(hub_here.commits(REPO)) == 2


@pytest.mark.parametrize("request_line", ["PUT /lfs", "POST .*commit/", "POST .*preupload", "validate-yaml"])
@pytest.mark.parametrize("how", ["status", "cut"])
def test_a_hub_that_stays_away_leaves_nothing_half_published(request_line, how, folder, hub_here):
    if how == "cut":
        hub_here.cut(request_line, times=1000)
    else:
        hub_here.fail(request_line, 503, times=1000)
    words = "connection to .* failed" if how == "cut" else "repeatedly answered 503"
    with pytest.raises(OSError, match=f"{words}.*nothing was published"):
        publish_encoder(folder, REPO)
    assert set(hub_here.files(REPO)) == {".gitattributes"}


@pytest.mark.parametrize("status", [None, 500, 504])
def test_a_commit_whose_answer_is_lost_is_recognized(status, folder, hub_here):
    if status is None:
        hub_here.cut("POST .*commit/", late=True)
    else:
        hub_here.fail("POST .*commit/", status, late=True)
    publication = publish_encoder(folder, REPO)
    assert publication.commit == hub_here.commits(REPO)[0].oid
    assert len(hub_here.commits(REPO)) == 2


def test_an_answer_lost_for_good_is_said_to_be_unknown(folder, hub_here):
    hub_here.cut("POST .*commit/", late=True)
    hub_here.fail("GET .*blobs", 500, times=1000)
    with pytest.raises(OSError, match=r"unknown whether .* published: publish again later"):
        publish_encoder(folder, REPO)


def test_somebody_elses_commit_in_between(folder, hub_here, monkeypatch):
    publish_encoder(folder, REPO)
    (folder / "results.json").write_text("[]")
    commit = HubRepo.commit

    def late(self, *arguments):
        hub_here.change(hub_here.repo(REPO), {"README.md": "theirs"})
        return commit(self, *arguments)

    monkeypatch.setattr(HubRepo, "commit", late)
    with pytest.raises(OSError, match=r"changed while publishing \(412\): nothing was published"):
        publish_encoder(folder, REPO)
    assert hub_here.files(REPO)["README.md"] == b"theirs"
    assert hub_here.files(REPO)["results.json"] != b"[]"


def test_offline_is_said_so(folder, hub_here, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        publish_encoder(folder, REPO)
