"""The Hub of the tests behaves as the real one where the real client looks: revisions, refusals, listings, faults."""

import http.client
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

CARD = "---\ntags: [orthossl, byol]\nlibrary_name: timm\nlicense: mit\n---\n# Card\n"


@pytest.fixture
def api(hub_here):
    return HfApi(token=hub_here.token)


def ask(hub, path, method="GET", body=None, **headers):
    connection = http.client.HTTPConnection(hub.removeprefix("http://"))
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer, answer.read()


def status(call):
    with pytest.raises(HfHubHTTPError) as error:
        call()
    return error.value.response.status_code


def test_commits_have_parents_and_keep_history(api, hub_here, tmp_path):
    api.create_repo("tester/a")
    first = api.upload_file(path_or_fileobj=b"one", path_in_repo="x/notes.txt", repo_id="tester/a").oid
    weights = os.urandom(200_000)
    operations = [CommitOperationAdd("model.safetensors", weights), CommitOperationDelete("x/notes.txt")]
    second = api.create_commit("tester/a", operations, commit_message="two", parent_commit=first).oid
    assert api.list_repo_files("tester/a") == [".gitattributes", "model.safetensors"]
    assert "x/notes.txt" in api.list_repo_files("tester/a", revision=first)
    assert [commit.commit_id for commit in api.list_repo_commits("tester/a")][:2] == [second, first]
    stale = [CommitOperationAdd("y.txt", b"y")]
    assert status(lambda: api.create_commit("tester/a", stale, commit_message="3", parent_commit=first)) == 412
    file = api.hf_hub_download("tester/a", "model.safetensors", cache_dir=tmp_path)
    assert Path(file).read_bytes() == weights
    (sibling,) = [s for s in api.model_info("tester/a", files_metadata=True).siblings if s.lfs]
    assert (sibling.rfilename, sibling.lfs.size) == ("model.safetensors", 200_000)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("tester/a", revision="elsewhere")


def test_who_may_do_what(api, hub_here):
    hub_here.tokens["hf_reader"] = ("tester", False)
    hub_here.tokens["hf_other"] = ("other", True)
    api.create_repo("tester/secret", private=True)
    assert status(lambda: api.create_repo("tester/secret")) == 409
    assert status(lambda: api.create_repo("other/mine")) == 403
    assert status(lambda: HfApi(token="hf_reader").create_repo("tester/b")) == 403
    assert status(lambda: HfApi(token="hf_wrong").whoami()) == 401
    assert status(lambda: HfApi(token="hf_other").model_info("tester/secret")) == 404
    assert status(lambda: HfApi(token=False).model_info("tester/secret")) == 401
    assert api.model_info("tester/secret").private
    assert [info.id for info in HfApi(token=False).list_models()] == []
    api.delete_repo("tester/secret")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("tester/secret")


def test_listing_pages_filters_and_expands(api, hub_here):
    for number in range(1005):
        hub_here.add_repo(f"team/m{number}", {"README.md": CARD})
    results = "- {dataset: {id: team/board, task_id: knn}, value: 0.5}\n"
    hub_here.change(hub_here.repo("team/m3"), {".eval_results/knn.yaml": results})
    hub_here.add_repo("team/unrelated", {"README.md": "no front matter"})
    found = list(api.list_models(filter="orthossl", expand=["evalResults", "cardData"]))
    assert len(found) == 1005
    assert len(list(api.list_models(filter=["orthossl", "license:mit"], limit=7))) == 7
    assert list(api.list_models(filter="simclr")) == []
    (entry,) = [entry for info in found for entry in info.eval_results or []]
    assert (entry.dataset_id, entry.task_id, entry.value) == ("team/board", "knn", 0.5)
    assert found[0].card_data.license == "mit"


def test_unchanged_files_are_not_sent_again(local_hub):
    local_hub.add_repo("team/a", {"config.json": "{}"})
    path = "/team/a/resolve/main/config.json"
    first, content = ask(local_hub.url, path)
    assert (first.status, content) == (200, b"{}")
    again, content = ask(local_hub.url, path, If_None_Match=first.headers["ETag"])
    assert (again.status, content) == (304, b"")
    missing, _ = ask(local_hub.url, "/team/a/resolve/main/missing.json", "HEAD")
    assert (missing.status, missing.headers["X-Error-Code"]) == (404, "EntryNotFound")


def test_faults_happen_as_often_as_asked(local_hub):
    local_hub.fail("whoami", status=503, times=2)
    login = {"Authorization": f"Bearer {local_hub.token}"}
    assert [ask(local_hub.url, "/api/whoami-v2", **login)[0].status for _ in range(3)] == [503, 503, 200]
    local_hub.cut("POST /api/repos/create", late=True)
    with pytest.raises(ConnectionError):
        ask(local_hub.url, "/api/repos/create", "POST", json.dumps({"name": "late"}), **login)
    assert local_hub.repo("tester/late") is not None


def test_runs_by_itself(tmp_path):
    script = Path(__file__).parents[1] / "support" / "local_hub.py"
    command = [sys.executable, str(script), "--store", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        endpoint, token = (word.split("=")[1] for word in process.stdout.readline().split())
        _, body = ask(endpoint, "/api/whoami-v2", Authorization=f"Bearer {token}")
        process.terminate()
    assert json.loads(body)["name"] == "tester"
