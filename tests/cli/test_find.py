"""``saescope find``: files of texts, what is shown, what is refused, and that numbers are those of Python."""

from __future__ import annotations

import json
import sys

import pytest
import typer

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "mu"]
POSITIVE = [f"def {word}(x):\n    return x + {i}\n" for i, word in enumerate(WORDS)]
NEGATIVE = [f"{word} {word} {i} {word}\n" for i, word in enumerate(WORDS)]


@pytest.fixture
def find(monkeypatch, capsys):
    """Runs ``saescope find ARGUMENTS`` as the command line does."""
    from saescope import __main__
    from saescope.cli.find import find as command

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["saescope", *map(str, arguments)])
        monkeypatch.setattr("saescope.cli.app.app", app)
        capsys.readouterr()
        try:
            __main__.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def files(tmp_path):
    for name, texts in {"positive": POSITIVE, "negative": NEGATIVE}.items():
        rows = (json.dumps({"text": text}) for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path / "positive.jsonl", tmp_path / "negative.jsonl"


@pytest.fixture(scope="module")
def analysed(trained, tmp_path_factory):
    """A store with the trained dictionary as ``small``."""
    import subprocess

    folder = tmp_path_factory.mktemp("store")
    store, settings = folder / "features.db", folder / "analysis.toml"
    settings.write_text(f'dictionary = {json.dumps(str(trained))}\n[settings]\nmap = "none"\n')
    program = [sys.executable, "-m", "saescope", "analyze", str(settings), "--store", str(store)]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return store


def test_two_sets_give_the_numbers_of_python(find, trained, files):
    from saescope.analysis.contrast import contrast
    from saescope.dictionaries import load_dictionary
    from saescope.interventions import Site
    from saescope.models import LanguageModel

    code, out, err = find(
        trained, "--positive", files[0], "--negative", files[1], "--json", "--top", 3, "--seed", 4, "--pooling", "mean"
    )
    assert (code, err) == (0, "")
    shown = json.loads(out)
    dictionary = load_dictionary(trained / "dictionary")
    model = LanguageModel.load(dictionary.metadata["model_name"])
    found = contrast(Site(dictionary, model), POSITIVE, NEGATIVE, top=3, seed=4, pooling="mean")
    assert shown == json.loads(json.dumps(found.as_dict()))
    assert len(shown["features"]) == 3
    code, out, _ = find(trained, "--positive", files[0], "--negative", files[1], "--top", 3)
    assert code == 0
    assert "features that fire separate the sets" in out
    assert "AUROC" in out


def test_labels_come_from_the_store(find, trained, files, analysed):
    from saescope.store import Store

    code, out, err = find(
        trained, "--positive", files[0], "--negative", files[1], "--store", analysed, "--json", "--top", 64
    )
    assert code == 0, err
    shown = json.loads(out)["features"]
    with Store.open(analysed) as store:
        labels = store.labels("small", range(64))
    assert all(each["label"] == labels.get(each["feature"]) for each in shown)
    assert any(each["label"] for each in shown)


def test_one_set_is_compared_with_what_was_analysed(find, trained, files, analysed):
    code, out, err = find(trained, "--positive", files[1], "--store", analysed)
    assert code == 0, err
    assert "small, analysis default" in out
    assert "background" in out
    code, out, _ = find(trained, "--positive", files[1], "--store", analysed, "--json", "--side", "both")
    assert code == 0
    assert json.loads(out)["num_test_texts"] == 6


def test_two_models_are_compared_on_one_text(find, trained, files, sources, tmp_path):
    """A checkpoint beside the model: one bias is larger along one decoder row."""
    import torch
    from transformers import AutoModelForCausalLM

    from saescope.dictionaries import load_dictionary

    dictionary = load_dictionary(trained / "dictionary")
    module = AutoModelForCausalLM.from_pretrained(sources / "model")
    with torch.no_grad():
        module.transformer.h[1].mlp.c_proj.bias.add_(20 * dictionary.W_dec[5])
    module.save_pretrained(tmp_path / "later")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "later" / name).write_bytes((sources / "model" / name).read_bytes())
    code, out, err = find(trained, "--text", files[0], "--other-model", tmp_path / "later", "--json")
    assert code == 0, err
    assert json.loads(out)["features"][0]["feature"] == 5
    code, out, _ = find(trained, "--text", files[0], "--other-model", tmp_path / "later", "--top", 2)
    assert code == 0
    assert "variance left unexplained" in out


def test_test_texts_of_their_own(find, trained, files, tmp_path):
    (tmp_path / "more.txt").write_text("beta alpha 9\nalpha beta 8\nbeta 7 beta\n")
    (tmp_path / "less.txt").write_text("mu theta 9\n\nmu\ntheta 8\n\n\neta 7\n")
    code, out, err = find(
        trained, "--positive", files[0], "--negative", files[1], "--json",
        "--test-positive", tmp_path / "more.txt", "--test-negative", tmp_path / "less.txt",
    )  # fmt: skip
    assert code == 0, err
    shown = json.loads(out)
    assert (shown["num_positive"], shown["num_test_positive"], shown["num_test_negative"]) == (11, 3, 3)


def test_files_of_texts(tmp_path):
    from saescope.cli.find import read_texts

    def texts(name, content, split="auto"):
        (tmp_path / name).write_text(content)
        return read_texts(tmp_path / name, split)

    assert texts("a.txt", "one\ntwo\n") == ["one", "two"]
    assert texts("a.txt", "one\ntwo\n\n \nthree\n\n") == ["one\ntwo", "three"]
    assert texts("a.txt", "one\ntwo\n\nthree\n", "line") == ["one", "two", "three"]
    assert texts("a.txt", "one\ntwo\n", "paragraph") == ["one\ntwo"]
    assert texts("a.jsonl", '{"text": "one\\n\\ntwo"}\n\n"three"\n') == ["one\n\ntwo", "three"]
    for name, content, said in (
        ("a.jsonl", '{"txt": "one"}', 'line 1: expected an object with "text"'),
        ("a.jsonl", '"one"\n{', "line 2 is not JSON"),
        ("a.txt", " \n", "holds no text"),
    ):
        with pytest.raises(ValueError, match=said):
            texts(name, content)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_texts(tmp_path / "b.txt")
    with pytest.raises(ValueError, match="--split is"):
        texts("a.txt", "one", "word")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "which texts? Give --positive"),
        (("--positive", "P"), "name it with --store, or give --negative"),
        (("--text", "P"), "--text and --other-model go together"),
        (("--text", "P", "--other-model", "x", "--positive", "P"), "two sets for one model"),
        (("--positive", "P", "--negative", "P"), "are both in the positive and in the negative set"),
        (("--positive", "P", "--negative", "missing.txt"), "no file"),
        (("--positive", "P", "--negative", "N", "--pooling", "sum"), "pooling is"),
        (("--positive", "P", "--negative", "N", "--order-by", "p"), "order_by is"),
        (("--positive", "P", "--negative", "N", "--test-positive", "P"), "--test-positive and --test-negative go together"),
        (("--positive", "P", "--negative", "N", "--store", "missing.db"), "missing.db"),
        (("--positive", "P", "--negative", "N", "--model", "bundled"), "check model and hook point"),
        (("--positive", "P", "--negative", "N", "--context-size", "64"), "do not fit"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_without_a_traceback(find, trained, files, arguments, said):
    named = {"P": files[0], "N": files[1]}
    code, _, err = find(trained, *(named.get(each, each) for each in arguments))
    assert code == 2
    assert said in " ".join(err.split())
    assert "Traceback" not in err


def test_a_store_of_another_dictionary_is_refused(find, trained, files, looked_at):
    code, _, err = find(trained, "--positive", files[0], "--negative", files[1], "--store", looked_at, "--name", "tiny")
    assert code == 2
    assert "features in the store" in err
