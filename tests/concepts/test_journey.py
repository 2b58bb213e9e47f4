"""Scripts written for interpreto run here, and the page about concepts is true.

The page holds the script and the list of lines that change. The same changes, with other ids, make it run on the bundled
language model.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

import datasets
import pytest
import torch

from saescope.concepts import differences

PAGE = (Path(__file__).parents[2] / "docs" / "concepts.md").read_text()
EXAMPLE, SCRIPT, LABELS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(LISTED,) = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)

IDS = {"nateraw/bert-base-uncased-emotion", "dair-ai/emotion"}


def changed_lines(old, new):
    lines = difflib.ndiff(old.splitlines(), new.splitlines())
    return [line[0] + line[2:] for line in lines if line[0] in "+-"]


def with_changes(script, listed):
    """The script with the lines of a list changed."""
    old = [line[1:] for line in listed.splitlines() if line.startswith("-")]
    new = [line[1:] for line in listed.splitlines() if line.startswith("+")]
    lines = script.splitlines()
    for before, after in zip(old, new, strict=True):
        assert lines.count(before) == 1, before
        lines[lines.index(before)] = after
    return "\n".join(lines)


@pytest.fixture
def folder(tmp_path, monkeypatch, reviews):
    """Where the script runs: with texts in a folder, and nothing kept elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "kept")
    (tmp_path / "my-texts").mkdir()
    lines = (json.dumps({"text": text}) for text in reviews)
    (tmp_path / "my-texts" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def check(names, num_targets):
    """What the script made is what the reference says."""
    texts, rows, codes, dictionary = (names[name] for name in ("texts", "rows", "concepts", "dictionary"))
    model, explainer = names["model_with_split_points"], names["explainer"]
    special = set(model.tokenizer.all_special_ids)
    lengths = [sum(each not in special for each in model.tokenizer(text)["input_ids"]) for text in texts]
    width = model.get_latent_shape()[names["split_point"]][-1]
    assert rows.shape == (sum(lengths), width)
    assert codes.shape == (sum(lengths), 20)
    assert int((codes > 0).sum(1).max()) <= 5
    assert names["reconstructions"].shape == rows.shape
    assert torch.allclose(names["reconstructions"], codes @ dictionary, atol=1e-4)
    assert all(len(values) == 5 for name, values in names["history"].items() if name in ("avg_loss", "r2"))
    assert names["history"]["avg_loss"][-1] < names["history"]["avg_loss"][0]

    assert list(names["interpretations"]) == list(range(20))
    pieces = [text for each in model.selection(texts, "token").unit_texts for text in each]
    for concept, found in names["interpretations"].items():
        column = codes[:, concept]
        if found is None:
            assert not bool((column > 0).any())
            continue
        best = {}
        for piece, value in zip(pieces, column.tolist(), strict=True):
            best[piece] = max(value, best.get(piece, 0.0))
        largest = sorted((value for value in best.values() if value > 0), reverse=True)[:5]
        assert list(found.values()) == pytest.approx(largest)
        assert all(best[piece] == pytest.approx(value) for piece, value in found.items())

    assert explainer.is_fitted
    for text, length, gradient in zip(texts, lengths, names["gradients"], strict=False):
        targets = num_targets or len(model.tokenizer(text)["input_ids"])
        assert gradient.shape == (targets, length, 20)
        sums = gradient.abs().sum((1, 2))
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
    assert len(names["gradients"]) == 10


def test_the_listed_changes_are_imports_ids_and_device():
    ours = with_changes(SCRIPT, LISTED)
    assert sorted(changed_lines(SCRIPT.rstrip("\n"), ours)) == sorted(LISTED.splitlines())
    for line in LISTED.splitlines():
        kind = line[1:].lstrip()
        is_import = kind.startswith(("from interpreto", "from saescope"))
        is_id = any(name in kind for name in (*IDS, '"my-classifier"', '"my-texts"'))
        assert is_import or is_id or kind.startswith("device = "), line
    # nothing but the names differs in those lines
    plain = ours.replace("saescope.concepts", "interpreto").replace(
        "my-classifier", "nateraw/bert-base-uncased-emotion"
    )
    plain = plain.replace("my-texts", "dair-ai/emotion").replace('device = "cpu"', 'device = "cuda"')
    assert plain == SCRIPT.replace("interpreto.concepts", "interpreto").rstrip("\n")


def test_a_script_for_interpreto_runs_on_a_classifier(folder, classifier, capsys):
    (folder / "my-classifier").symlink_to(classifier.folder)
    print("lines changed:\n" + LISTED)
    names = {}
    exec(compile(with_changes(SCRIPT, LISTED), "script", "exec"), names)
    check(names, num_targets=3)
    assert names["importances"].shape == (10, 20)
    assert "-from interpreto import ModelWithSplitPoints" in capsys.readouterr().out


def test_a_script_for_interpreto_runs_on_the_bundled_model(folder, documents, capsys):
    """The script as it is written for a language model; its targets are each text's own positions."""
    (folder / "my-texts" / "train.jsonl").write_text(
        "\n".join(
            json.dumps({"text": document.text[: 40 + 3 * number]}) for number, document in enumerate(documents[:24])
        )
    )
    script = SCRIPT.replace("AutoModelForSequenceClassification", "AutoModelForCausalLM")
    listed = LISTED.replace("my-classifier", "bundled")
    print("lines changed:\n" + listed)
    names = {}
    exec(compile(with_changes(script, listed), "script", "exec"), names)
    check(names, num_targets=None)
    assert names["importances"].shape == (10, 20)
    assert '+    "bundled",' in capsys.readouterr().out


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(EXAMPLE, "example", "exec"), names)
    first, found, *hits, shapes = capsys.readouterr().out.splitlines()
    r2, l0 = map(float, re.fullmatch(r"r2 (\S+), concepts per token (\S+)", first).groups())
    assert 0.5 < r2 <= 1
    assert l0 <= 4
    assert 1 <= len(hits) <= 3
    concept = names["concept"]
    assert found == str(names["method"].interpret(concept, inputs=names["texts"])[concept])
    assert re.fullmatch(r"\S+ in text \d at \d+: '.*' \['.*'\] '.*'", hits[0])
    counts = [len(names["model"].tokenizer(text)["input_ids"]) for text in names["texts"]]
    assert shapes == str([(1, count, 64) for count in counts])

    class Client:
        """In the service's place."""

        def __init__(self, **settings):
            assert set(settings) == {"api_key", "model", "base_url"}

        def generate(self, prompt):
            return "attribute after self" if prompt[0][1].startswith("You name") else "1"

    monkeypatch.setattr("saescope.concepts.interpretations.clients.OpenAILLM", Client)
    monkeypatch.setattr("saescope.concepts.OpenAILLM", Client, raising=False)
    exec(compile(LABELS, "labels", "exec"), names)
    assert names["found"] == {concept: "attribute after self"}
    assert list(names["scores"]) == [concept]
    assert len(list((tmp_path / "answers").iterdir())) >= 1


def test_the_table_of_the_page_is_that_of_the_code():
    assert PAGE.split("## Differences")[1].endswith("\n" + differences.table() + "\n"), (
        "put the output of `python -m saescope.concepts.differences` at the end of docs/concepts.md"
    )
    assert len(differences.rows()) == len({row.subject for row in differences.rows()}) > 40


def test_links_of_the_page_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / link).exists(), link


def test_the_table_of_targets_is_true(classifier, bundled):
    """Each row of the page's table of targets, on both kinds of model."""
    from saescope.concepts import ModelWithSplitPoints, TopKSAE

    given = re.findall(r"^\|.*?\| (`.*?`) \| .*? \|$", PAGE.split("## What a concept does")[1], re.MULTILINE)
    assert given == ["`targets`", "`None`", "`[0, 3]`", "`None`", "`[(-1, 262)]`", "`lambda logits: ...`"]
    for model, texts, forms in (
        (
            ModelWithSplitPoints(classifier.model, 1, tokenizer=classifier.tokenizer, batch_size=2),
            ["The film was good", "A quiet song is bad!"],
            {"`None`": 3, "`[0, 3]`": None, "`lambda logits: ...`": 1},
        ),
        (
            ModelWithSplitPoints(bundled, 1, batch_size=2),
            ["return x + 1", "def f(x):"],
            {"`None`": 0, "`[(-1, 262)]`": 1, "`lambda logits: ...`": 1},
        ),
    ):
        explainer = TopKSAE(model, nb_concepts=8, top_k=2)
        explainer.fit(model.get_activations(texts), nb_epochs=1, batch_size=8)
        for text, count in forms.items():
            assert text in given
            if count is None:  # class 3 of 3 classes
                with pytest.raises(ValueError, match="classes from 0 to 2"):
                    explainer.concept_output_gradient(texts, eval(text.strip("`")))
                continue
            targets = (
                (lambda logits: logits.logsumexp(-1).reshape(-1)[-1:]) if "lambda" in text else eval(text.strip("`"))
            )
            found = explainer.concept_output_gradient(texts, targets)
            for own, each in zip(texts, found, strict=True):
                assert len(each) == (count or len(model.tokenizer(own)["input_ids"]))
