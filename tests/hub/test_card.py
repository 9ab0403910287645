"""A card is rendered from a folder alone, says what its numbers say, and lets no field become structure."""

import re
from html import unescape

import numpy as np
import pytest
import torch
import yaml
from card_folders import RESULTS, covariance_of, encoder_folder, record_of, report_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_orthossl.evaluation import Result
from hf_orthossl.hub import render_card
from hf_orthossl.hub.card.sections import find_sections, split_front_matter
from hf_orthossl.hub.card.spectra_text import directions_for, plain_reading
from hf_orthossl.spectra import SpectralReport, WeightSpectrum

KEYS = ["library_name", "pipeline_tag", "tags", "datasets", "model-index"]


def parts(card: str) -> tuple[dict, str]:
    head, body = split_front_matter(card)
    return yaml.safe_load(head), body


def html(card: str) -> str:
    renderer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return renderer.render(split_front_matter(card)[1])


def bare_links(card: str) -> list[str]:
    """What GitHub's and the Hub's renderers make links of without being told to: addresses in a run of text."""
    without_code = re.sub(r"<(pre|code)[ >].*?</\1>", "", html(card), flags=re.DOTALL)
    runs = re.split(r"<[^>]*>", without_code)
    return [
        run for run in map(unescape, runs) if re.search(r"https?://|ftp://|www\.|mailto:|\S@\S", run, re.IGNORECASE)
    ]


@pytest.fixture
def folder(tmp_path):
    return encoder_folder(tmp_path / "encoder")


def test_the_same_folder_gives_the_same_card(folder):
    card = render_card(folder, repo_id="user/name")
    assert render_card(folder, repo_id="user/name", previous=card) == card


def test_what_a_reader_finds(folder):
    metadata, body = parts(render_card(folder, repo_id="user/name", license="mit"))
    assert metadata["license"] == "mit"
    assert metadata["datasets"] == ["uoft-cs/cifar10"]
    assert 'timm.create_model("hf-hub:user/name"' in body
    assert 'AutoModel.from_pretrained("user/name")' in body
    for text in (
        "Chosen by the owner: mit.",
        "50,000 images of uoft-cs/cifar10",
        "| kNN classification | uoft-cs/cifar10 | test | top-1 accuracy | 0.250 | 0.750 | k = 20 |",
        "| γ | 1e-06 |",
        "he2024preventing",
        "ziyin2023what",
    ):
        assert text in body
    assert "{{" not in body
    assert "None" not in body.replace("None of", "")


def test_without_results_spectra_or_licence_it_says_so(folder):
    for name in ("results.json", "spectra.json", "spectra.safetensors"):
        (folder / name).unlink()
    metadata, body = parts(render_card(folder))
    assert set(metadata) == {"library_name", "pipeline_tag", "tags", "datasets"}
    for text in (
        "No results have been measured yet.",
        "The spectra have not been measured.",
        "The owner has not stated a licence.",
    ):
        assert text in body
    assert "spectra.png" not in body
    assert f'"local-dir:{folder}"' in body


def test_the_reports_notes_are_shown(tmp_path):
    report = report_of()
    report.notes = ["a note <b> of | the report"]
    assert "Note: a note &lt;b&gt; of &#124; the report" in render_card(encoder_folder(tmp_path, report=report))


def test_seeds_are_averaged_and_protocols_told_apart(tmp_path):
    results = [
        Result("linear", "digits", "test", "top1", v, {"protocol": "sgd", "seed": s}) for s, v in enumerate((0.8, 0.9))
    ]
    results.append(Result("linear", "digits", "test", "top1", 0.7, {"protocol": "lbfgs", "interval": [0.65, 0.75]}))
    body = render_card(encoder_folder(tmp_path, results=results))
    assert "| – | 0.850 ± 0.071 (2 seeds) | sgd |" in body
    assert "| – | 0.700 (0.650 to 0.750) | lbfgs |" in body


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({}, ""),
        ({"pretrained": False}, " Before training it had random weights."),
        ({"pretrained": True, "started_from": "runs/a"}, " Before training it had the weights of runs/a."),
    ],
)
def test_what_was_before_training_is_said_where_it_is_known(training, said, tmp_path):
    body = render_card(encoder_folder(tmp_path, record_of().to_dict() | {"training": training, "base_model": None}))
    assert f"are between 0 and 1.{said}\nThe same numbers" in body


def test_a_card_says_how_the_penalty_acted(tmp_path):
    decoupled = {"regularizer": "so", "gamma": None, "penalty_mode": "decoupled", "strength": 0.1}
    body = render_card(encoder_folder(tmp_path, record_of().to_dict() | decoupled))
    assert "(soft orthogonality, SO; decoupled, λ = 0.1)" in body
    assert "| penalty mode | decoupled: a step of λ · learning rate / peak after each optimizer step |" in body
    assert "| λ | 0.1 |" in body
    assert "γ" not in body.partition("orthossl:about")[2].partition("/orthossl:about")[0]


def test_a_card_needs_a_record_of_this_package(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        render_card(tmp_path)
    encoder_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(ValueError, match="no orthossl block"):
        render_card(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", 3),
        ("gamma", "1e-6"),
        ("num_features", 2.5),
        ("num_images", -1),
        ("mean", [0.5, 0.5]),
        ("std", [True, 1, 1]),
        ("training", ["lr"]),
        ("pooling", "max"),
        ("method", None),
    ],
)
def test_an_entry_of_the_wrong_kind_is_named(tmp_path, name, value):
    folder = encoder_folder(tmp_path, record_of().to_dict() | {name: value})
    with pytest.raises(ValueError, match=f"orthossl.{name} must be"):
        render_card(folder)


@pytest.mark.parametrize(("name", "value"), [("gamma", float("nan")), ("std", [1e999, 1, 1])])
def test_numbers_that_json_does_not_have_are_refused(tmp_path, name, value):
    folder = encoder_folder(tmp_path, record_of().to_dict() | {name: value})
    with pytest.raises(ValueError, match="is not JSON"):
        render_card(folder)


@pytest.mark.parametrize("repo_id", ["a/b/c", "user/na me", "user/<b>", "user--name/x", ""])
def test_a_malformed_repository_is_refused(folder, repo_id):
    with pytest.raises(ValueError, match="repo_id is"):
        render_card(folder, repo_id=repo_id)


# --- what its owner wrote ---


def test_the_owners_metadata_and_words_stay(folder):
    card = render_card(folder, license="mit")
    edited = card.replace("tags:\n", "language: en\ntags:\n- pets\n- byol\n").replace(
        "\n## Citation", "\nMy words.\n\n## Citation"
    )
    edited = edited.replace("<!-- orthossl:limits -->", "More words.\n<!-- orthossl:limits -->")
    metadata, body = parts(render_card(folder, repo_id="user/name", previous=edited))
    assert metadata["language"] == "en"
    assert metadata["license"] == "mit", "the owner chose it before"
    assert "pets" in metadata["tags"]
    assert "byol" not in metadata["tags"], "the method of an earlier run"
    assert "More words.\n<!-- orthossl:limits -->" in body
    assert "My words." not in body, "inside a section"
    assert "Chosen by the owner: mit." in body


def test_other_entries_of_the_model_index_stay_and_ours_are_replaced(folder):
    card = render_card(folder)
    theirs = {"name": "other", "results": []}
    metadata, body = parts(card)
    metadata["model-index"].append(theirs)
    before = f"---\n{yaml.safe_dump(metadata)}---\n{body}"
    again = parts(render_card(encoder_folder(folder, results=RESULTS[:1]), previous=before))[0]
    assert again["model-index"] == [theirs], "only a number from before training is left"
    other = encoder_folder(folder, record_of(method="byol", training={"pretrained": False}))
    again = parts(render_card(other, previous=before.replace("---\n", "---\nbase_model: a/b\n", 1)))[0]
    assert [entry["name"] for entry in again["model-index"]] == ["resnet18-byol-so (orthossl)", "other"]
    assert "base_model" not in again


@pytest.mark.parametrize("head", ["a: [", "- a list", "just text"])
def test_metadata_that_cannot_be_read_is_refused(folder, head):
    with pytest.raises(ValueError, match="front matter of the earlier card"):
        render_card(folder, previous=f"---\n{head}\n---\ntext")


# --- what users and files say ---

HOSTILE = [
    "<script>alert(1)</script>",
    "[click](https://evil.example)",
    "![x](javascript:alert(1))",
    "https://evil.example www.evil.example me@evil.example mailto:me@evil.example",
    "x | y\n| z |\n\n# heading",
    "```\n</code>",
    "---\nlicense: mit\n---",
    "<!-- /orthossl:about -->",
    "x\n<!-- orthossl:spectra -->\ny",
    "<!-- orthossl-sections: -->",
    "{{ record }} {% raw %}",
    "&lt;script&gt; \\<b> \\\\[a](b)",
    "`<b>` ``<i>``",
    "\u202e\x00\x1b[31m\ud800\u2028",
    "# a", "1. a", "- a", "> a", "=== a", "*a* _b_ **c** __d__ ~~e~~ $f$",
]  # fmt: skip
anything = st.text(st.sampled_from("<>/![]()|`*_~$&;:\\\n\r\t {}%#-=+.'\"@aw1é\u202e"), max_size=40)
# A field that is empty is left out, which is another matter.
anything = anything.filter(str.strip)


def hostile_folder(path, text):
    """A folder in which every field that takes text has this one."""
    record = record_of(
        backbone=text,
        method=text,
        method_config={text: text},
        regularizer=text,
        regularizer_config={text: [text]},
        embedding_regularizer=text,
        embedding_layer=text,
        embedding_weight=0.1,
        embedding_config={text: [text]},
        dataset=text,
        split=text,
        base_model=text,
        training={text: text, "optim": {text: text}},
        version=text,
        commit=text,
    )
    results = [Result(text, text, text, text, 0.5, {text: text, "protocol": text, "step": s}) for s in (text, "end")]
    generator = torch.Generator().manual_seed(0)
    weights = {text: torch.randn(8, 6, generator=generator)}
    report = SpectralReport(
        {name: WeightSpectrum.from_matrix(matrix) for name, matrix in weights.items()},
        {text: covariance_of(torch.randn(9, 4, generator=generator))},
        {"model": text, "split": text},
        [text],
    )
    return encoder_folder(path, record, results, report)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return render_card(hostile_folder(tmp_path_factory.mktemp("plain"), "harmless"), license="harmless")


@settings(deadline=None, max_examples=30)
@given(text=anything)
def test_no_field_becomes_structure(plain, tmp_path_factory, text):
    folder = hostile_folder(tmp_path_factory.mktemp("hostile"), text.encode("utf-8", "replace").decode())
    card = render_card(folder, license=text)
    metadata, body = parts(card)
    assert set(metadata) <= {*KEYS, "license", "base_model"}
    assert metadata["library_name"] == "timm"
    assert [*find_sections(body)] == [*find_sections(split_front_matter(plain)[1])]
    assert not re.search(r"<(?!!--)", body), "no raw HTML"
    # And as rendered: the same elements in the same order, links included, as those of a harmless card.
    tags = [re.findall(r"<(/?[a-z][a-z0-9]*)", html(text)) for text in (plain, card)]
    assert tags[1] == tags[0]
    assert not bare_links(card)
    # Renderers drop cells beyond the header's without a trace.
    cells = [[line.count("|") for line in text.splitlines() if line.startswith("|")] for text in (plain, card)]
    assert cells[1] == cells[0]


for _text in HOSTILE:
    test_no_field_becomes_structure = example(text=_text)(test_no_field_becomes_structure)


# --- the reading, against numbers taken another way ---


def test_half_of_the_variance_is_counted_right():
    features = torch.randn(200, 12, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 13)
    eigenvalues = np.linalg.eigvalsh(np.cov(features.numpy(), rowvar=False))[::-1]
    for share in (0.1, 0.5, 0.9, 1.0):
        wanted = next(k for k in range(1, 13) if eigenvalues[:k].sum() >= share * eigenvalues.sum() * (1 - 1e-9))
        assert directions_for(covariance_of(features), share) == wanted


def test_a_collapse_is_called_one():
    generator = torch.Generator().manual_seed(2)
    flat = torch.randn(50, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
    reading = plain_reading(report_of(flat, {"a.weight": torch.randn(9, 1) @ torch.randn(1, 5)}))
    assert "4 of the 6 have no variance" in reading
    assert "1 of the 1 weight matrices has lost directions, a.weight the most: 4 of 5." in reading
    same = plain_reading(report_of(torch.ones(10, 6)))
    assert "no direction has any variance, and the effective rank is 0" in same


def test_few_images_or_inputs_are_no_collapse():
    generator = torch.Generator().manual_seed(3)
    wide = {"wide.weight": torch.randn(4, 9, generator=generator)}
    report = report_of(torch.randn(5, 6, generator=generator), wide)
    reading = plain_reading(report)
    assert "5 images can show at most 4 directions" in reading
    assert "have no variance" not in reading
    assert "None of the 1 weight matrices has lost a direction" in reading
    assert report.weights["wide.weight"].most_positive == 3
