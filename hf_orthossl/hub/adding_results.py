"""Add results to a published encoder's repository: `results.json`, card and `.eval_results/` in one commit."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..evaluation import Result, read_results, write_results
from .card.render import render_card
from .client import HubRepo, RepoState, hub_id, require_token
from .measurements import RESULTS, eval_result_files, merge_results, public_result
from .publish import FIGURES, FILES, refuse_tokens


@dataclass(frozen=True)
class PublishedResults:
    """The outcome of [`publish_results`].

    Args:
        url (`str`): The repository.
        commit (`str`): Id of the commit.
        results (`list[Result]`): All results in the repository, read back from it.
    """

    url: str
    commit: str
    results: list[Result]


def publish_results(model: str, results: list[Result], *, token: str | None = None) -> PublishedResults:
    """Add results to an encoder's Hub repository, and read them back.

    `results.json`, the card with its `model-index` and tables, and `.eval_results/` are replaced in one commit. Earlier
    results are kept unless they were measured again, and so is the owner's text in the card. Of the paths of local
    folders, only the last part is published.

    Args:
        model (`str`): Hub id "user/name", optionally with `@branch`.
        results (`list[Result]`): The results to add.
        token (`str`, *optional*): Access token with write permission; defaults to the one of `hf auth login` or
            `HF_TOKEN`.

    Raises:
        ValueError: `model` is not a Hub id, or the repository contains files that orthossl did not publish.
        OSError: There is no token or no such repository, or the Hub does not answer or rejects the results.
    """
    repo, found = results_repo(model, token)
    added = [public_result(result) for result in results]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        repo.download({*FILES, *FIGURES} & found.files - {"model.safetensors"}, found.sha, folder)
        earlier = read_results(folder / RESULTS) if (folder / RESULTS).is_file() else []
        merged = merge_results(earlier, added)
        write_results(folder / RESULTS, merged)
        contents: dict[str, bytes | Path] = {RESULTS: (folder / RESULTS).read_bytes()}
        contents["README.md"] = render_card(
            folder, repo_id=repo.repo_id, revision=repo.revision, previous=found.card
        ).encode()
        contents |= {path: text.encode() for path, text in eval_result_files(folder, repo_id=repo.repo_id).items()}
        refuse_tokens(contents, repo.token)
        commit = repo.commit(contents, set(), found.sha, f"{len(added)} evaluation results")
        repo.download({RESULTS}, commit, folder)
        there = read_results(folder / RESULTS)
    if there != merged:
        raise OSError(f"{repo.url} does not contain the results that were published to it: check its commits")
    return PublishedResults(repo.url, commit, there)


def results_repo(model: str, token: str | None = None) -> tuple[HubRepo, RepoState]:
    """Return the repository of a published encoder, checked before anything is measured.

    Raises:
        ValueError: See [`publish_results`].
        OSError: See [`publish_results`].
    """
    repo_id = hub_id(model)
    if repo_id is None:
        raise ValueError(
            f"results of {model!r} cannot be pushed, because it is not a Hub id user/name: publish it with orthossl "
            "publish first"
        )
    repo = HubRepo(repo_id, require_token(token), model.partition("@")[2] or None)
    repo.check_token()
    found = repo.read_state()
    if found is None or not found.has_revision:
        raise OSError(f"{repo.url} does not exist: publish the encoder with orthossl publish first")
    return repo, found
