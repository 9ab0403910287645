"""The modules of `evaluate`: loaded by path, against oracles of other libraries, and complete as Spaces."""

import runpy
from pathlib import Path

import evaluate
import numpy as np
import pytest
import yaml
from sklearn.neighbors import KNeighborsClassifier

import hf_orthossl
from hf_orthossl.metrics import METRICS, load_metric

FOLDER = Path(hf_orthossl.__file__).parent / "metrics"


def by_path(name):
    return evaluate.load(str(FOLDER / name))


def rows(n=300, d=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.arange(1, d + 1) ** -0.7 + 3


def entropy_rank(values, epsilon=0.0):
    p = values / values.sum() + epsilon
    return np.exp(-(p * np.log(p)).sum())


def test_effective_rank_is_of_centred_rows_and_rankme_is_not():
    matrix = rows()
    own = np.linalg.svd(matrix, compute_uv=False)
    centred = np.linalg.svd(matrix - matrix.mean(0), compute_uv=False)
    effective, rankme = by_path("effective_rank"), by_path("rankme")
    assert effective.compute(representations=matrix)["effective_rank"] == pytest.approx(entropy_rank(centred), rel=1e-9)
    assert rankme.compute(representations=matrix)["rankme"] == pytest.approx(entropy_rank(own, 1e-7), rel=1e-6)
    assert rankme.compute(representations=matrix, epsilon=1e-3)["rankme"] == pytest.approx(
        entropy_rank(own, 1e-3), rel=1e-9
    )


def test_batches_add_up():
    matrix, metric = rows(), by_path("rankme")
    for part in np.array_split(matrix, 4):
        metric.add_batch(representations=part.tolist())
    assert metric.compute() == pytest.approx(by_path("rankme").compute(representations=matrix))


def test_alpha_is_the_slope_of_numpys_weighted_fit():
    matrix = rows(500, 60)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(matrix.T)))[::-1]
    ranks = np.arange(5, 41)
    # polyfit squares its weights.
    slope = np.polyfit(np.log(ranks), np.log(eigenvalues[4:40]), 1, w=ranks**-0.5)[0]
    found = load_metric("alpha_req").compute(representations=matrix, first=5, last=40)
    assert found["alpha"] == pytest.approx(-slope, rel=1e-8)


def test_knn_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(4, 8))
    labels, asked = np.arange(200) % 4, np.arange(80) % 4
    bank = centres[labels] + rng.normal(size=(200, 8))
    queries = centres[asked] + rng.normal(size=(80, 8))
    metric = by_path("knn_accuracy")
    found = metric.compute(
        representations=queries, references=asked, bank=bank, bank_references=labels, k=7, temperature=0.2
    )
    oracle = KNeighborsClassifier(7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.2))
    assert found["top1"] == pytest.approx(oracle.fit(bank, labels).score(queries, asked))
    assert found["top5"] == 1.0
    with pytest.raises(ValueError, match="bank_references are missing"):
        metric.compute(representations=queries, references=asked)
    with pytest.raises(ValueError, match="bank has 200 rows and bank_references 3"):
        metric.compute(representations=queries, references=asked, bank=bank, bank_references=[0, 1, 2])


@pytest.mark.parametrize(("year", "expected"), [(2012, 0.5 * 1 + 0.5 * 2 / 3), (2007, (6 * 1 + 5 * 2 / 3) / 11)])
def test_voc_ap_of_a_case_worked_by_hand(year, expected):
    """Two boxes to find and a difficult one; by score: right, ignored (on the difficult box), wrong, right."""
    truth = [
        {"boxes": [[0, 0, 10, 10], [20, 20, 30, 30]], "labels": [0, 0], "difficult": [False, True]},
        {"boxes": [[0, 0, 10, 10]], "labels": [0], "difficult": [False]},
        {"boxes": [], "labels": [], "difficult": []},
    ]
    found = [
        {"boxes": [[0, 0, 10, 9], [20, 20, 30, 31]], "scores": [0.9, 0.8], "labels": [0, 0]},
        {"boxes": [[1, 0, 10, 10]], "scores": [0.3], "labels": [0]},
        {"boxes": [[0, 0, 5, 5]], "scores": [0.5], "labels": [0]},
    ]
    answer = by_path("voc_ap").compute(predictions=found, references=truth, year=year)
    assert answer["ap"] == pytest.approx(expected)
    assert answer["per_class"] == {0: pytest.approx(expected)}


@pytest.mark.parametrize("name", METRICS)
def test_every_folder_is_a_space_with_a_card(name):
    folder = FOLDER / name
    metric = load_metric(name)
    assert metric.name == name
    assert metric.description
    assert "@" in metric.citation
    assert metric.inputs_description.count("Examples:") == 1
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert {"title", "emoji", "colorFrom", "colorTo", "sdk", "app_file"} <= set(front)
    assert {"evaluate", "metric"} <= set(front["tags"])
    assert (folder / front["app_file"]).is_file()
    assert (folder / "requirements.txt").read_text().split() == ["hf-orthossl"]
    for name_of_input in metric.features:
        assert f"**{name_of_input}**" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", METRICS)
def test_a_space_shows_the_card(name, monkeypatch):
    """The Space runs the module as its application; here the page is caught instead of served."""
    gradio = pytest.importorskip("gradio")
    pages = []
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page: pages.append(page))
    runpy.run_path(str(FOLDER / name / f"{name}.py"), run_name="__main__")
    ((markdown,),) = ([block.value for block in page.blocks.values() if hasattr(block, "value")] for page in pages)
    assert markdown.startswith("# ")
    assert "## How to use" in markdown


@pytest.mark.parametrize("name", METRICS)
def test_examples_give_what_they_show(name, monkeypatch):
    import doctest

    monkeypatch.chdir(FOLDER.parents[1])
    source = runpy.run_path(str(FOLDER / name / f"{name}.py"))
    test = doctest.DocTestParser().get_doctest(source["_KWARGS_DESCRIPTION"], {"evaluate": evaluate}, name, None, 0)
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.summarize().attempted >= 2
    assert runner.failures == 0


def test_a_misspelt_metric():
    with pytest.raises(ValueError, match="did you mean 'rankme'"):
        load_metric("rank_me")
