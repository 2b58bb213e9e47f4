"""``saescope attribute``: its numbers are those of the functions, labels come from the store, mistakes are told."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import typer

from saescope.cli.attribute import attribute
from saescope.formats.loading import load
from saescope.interventions import Site
from saescope.interventions.attribution import (
    compare_with_ablation,
    direct_attribution,
    gradient_attribution,
    integrated_attribution,
)
from saescope.interventions.metrics import logit, logit_difference
from saescope.models import LanguageModel
from saescope.store import Store
from saescope.store.records import AnalysisRecord, DictionaryRecord, Feature, FeatureRecord, Label

PROMPT = "def alpha(x, beta):\n    return"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command as ``saescope attribute ARGUMENTS`` would, in an empty folder; gives output or raises the error."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(attribute)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.delenv("SAESCOPE_STORE", raising=False)
    monkeypatch.chdir(tmp_path)

    def running(*arguments):
        capsys.readouterr()
        app([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return running


@pytest.fixture(scope="module")
def site(trained, sources):
    model = LanguageModel.load(str(sources / "model"))
    return Site(load(str(trained / "dictionary")), model, hook_point="blocks.1.hook_resid_post")


@pytest.fixture(scope="module")
def ids(site):
    found = site.model.tokenizer.encode(PROMPT, add_special_tokens=False)
    return torch.tensor([[0, *found]])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Labels of the 64 features of the run, but for the odd ones."""
    path = tmp_path_factory.mktemp("stores") / "labels.db"

    def record(index):
        label = Label(text=f"meaning of {index}", kind="tokens", precision=0.5, recall=0.5, lift=2.0, num_firings=9)
        return FeatureRecord(
            index=index, num_firings=9, density=0.1, max_activation=1.0, mean_activation=0.1,
            label=None if index % 2 else label,
        )  # fmt: skip

    with Store.open(path) as opened:
        opened.write(
            DictionaryRecord(
                name="small",
                model="tiny",
                hook_point="blocks.1.hook_resid_post",
                architecture="topk",
                d_in=16,
                d_sae=64,
            ),
            AnalysisRecord(dataset="text", context_size=32, num_tokens=100, num_windows=4),
            [Feature(record=record(i)) for i in range(64)],
            [],
            [],
        )
    return path


def same_entries(rows, contributions):
    wanted = contributions.strongest(10_000)
    assert [row["feature"] for row in rows] == wanted.feature.tolist()
    assert [row["position"] for row in rows] == wanted.position.tolist()
    assert [row["activation"] for row in rows] == pytest.approx(wanted.activation.tolist(), rel=1e-5)
    assert [row["contribution"] for row in rows] == pytest.approx(wanted.contribution.tolist(), rel=1e-3, abs=1e-6)


def test_the_json_holds_what_the_functions_give(run, trained, site, ids):
    document = json.loads(run(trained, "--prompt", PROMPT, "--json"))
    said = int(site.model.logits(ids)[0, -1].argmax())
    found = gradient_attribution(site, ids, logit(said))
    assert document["target"]["id"] == said
    assert document["target"]["chosen_by_model"]
    assert document["value"] == pytest.approx(float(found.value[0]), rel=1e-5)
    assert len(document["tokens"]) == ids.shape[1]
    assert document["num_contributions"] == len(document["features"])
    same_entries(document["features"], found.contributions[0])
    assert all(row["token"] == document["tokens"][row["position"]] for row in document["features"])


@pytest.mark.parametrize("method", ["direct", "integrated"])
def test_other_methods_targets_and_positions(run, trained, site, ids, method):
    document = json.loads(
        run(
            trained,
            "--prompt",
            PROMPT,
            "--json",
            "--method",
            method,
            "--target",
            "#40",
            "--against",
            "x",
            "--position",
            -2,
        )
    )
    (other,) = site.model.tokenizer.encode("x", add_special_tokens=False)
    metric = logit_difference(40, other, position=-2)
    assert document["against"] == {"id": other, "text": "x"}
    assert document["target"]["chosen_by_model"] is False
    if method == "direct":
        found = direct_attribution(site, ids, metric)
        same_entries(document["features"], found.contributions)
        assert document["terms"].keys() == found.terms().keys()
        assert sum(document["terms"].values()) == pytest.approx(document["value"], abs=1e-4)
    else:
        path = integrated_attribution(site, ids, metric)
        same_entries(document["features"], path.contributions[0])
        assert document["completeness"]["is_complete"] is path.is_complete
        assert document["completeness"]["total"] == pytest.approx(
            sum(row["contribution"] for row in document["features"])
        )
    assert document["value"] == pytest.approx(
        float(metric(site.model.logits(ids), torch.ones_like(ids).bool())), rel=1e-4
    )


def test_the_screen_shows_features_with_their_labels(run, trained, store, site, ids):
    shown = run(trained, "--prompt", PROMPT, "--store", store, "--limit", 5)
    document = json.loads(run(trained, "--prompt", PROMPT, "--store", store, "--json"))
    lines = shown.splitlines()
    for row in document["features"][:5]:
        (line,) = [
            line
            for line in lines
            if line.split()[:1] == [str(row["feature"])] and f"{row['contribution']:+.3f}".replace("-", "−") in line
        ]
        assert row["label"] == (None if row["feature"] % 2 else f"meaning of {row['feature']}")
        assert (f"meaning of {row['feature']}" in line) == (row["feature"] % 2 == 0)
    assert f"5 of {len(document['features'])} contributions, gradient" in shown
    assert "without labels" not in shown


def test_the_screen_of_direct_attribution_is_a_sum_and_that_of_the_path_says_how_complete(run, trained):
    shown = run(trained, "--prompt", PROMPT, "--method", "direct")
    document = json.loads(run(trained, "--prompt", PROMPT, "--method", "direct", "--json"))
    assert f"{document['terms']['rest']:+.3f}".replace("-", "−") + "  written elsewhere" in shown
    assert f"{document['value']:+.3f}".replace("-", "−") + "  the logit" in shown
    assert "without labels: no store with small was found" in shown
    shown = run(trained, "--prompt", PROMPT, "--method", "integrated")
    assert "contributions add up to" in shown
    assert "steps" in shown


def test_labels_are_found_where_the_environment_says(run, trained, store, monkeypatch):
    monkeypatch.setenv("SAESCOPE_STORE", str(store))
    document = json.loads(run(trained, "--prompt", PROMPT, "--json"))
    assert {row["label"] for row in document["features"] if row["feature"] % 2 == 0} >= {
        f"meaning of {row['feature']}" for row in document["features"][:1] if row["feature"] % 2 == 0
    }
    assert any(row["label"] for row in document["features"])


def test_a_picture_is_drawn_whole_or_not_at_all(run, trained, store, tmp_path):
    from PIL import Image

    target = tmp_path / "pictures" / "why.png"
    shown = run(trained, "--prompt", PROMPT, "--store", store, "--plot", target, "--limit", 7)
    assert f"picture: {target}" in shown
    assert [each.name for each in target.parent.iterdir()] == ["why.png"]
    with Image.open(target) as picture:
        seven = picture.size
    assert seven[0] > 800
    run(trained, "--prompt", PROMPT, "--store", store, "--plot", target, "--limit", 14)
    with Image.open(target) as picture:
        assert picture.size[1] > seven[1]


def test_the_picture_says_what_the_table_says(site, ids, tmp_path, monkeypatch):
    """What is handed to the figure, read back from its axes."""
    from matplotlib.figure import Figure

    from saescope.interventions.attribution.plot import plot_contributions

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.write_bytes(b"")))
    (found,) = gradient_attribution(site, ids, logit(40)).contributions
    top = found.strongest(4)
    labels = {int(top.feature[0]): "costs $5 and $6 " + 60 * "x"}
    texts = [f"t{i}" for i in range(ids.shape[1])]
    plot_contributions(found, tmp_path / "a.png", tokens=texts, labels=labels, count=4, title="a $ sign")
    axes = drawn[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(top.contribution.tolist())
    assert axes.yaxis_inverted()
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    for name, feature, position in zip(names, top.feature.tolist(), top.position.tolist(), strict=True):
        assert f"{feature}" in name.split()
        assert f"'t{position}'" in name
    assert names[0].startswith(r"costs \$5 and \$6 xxx")
    assert "…" in names[0]
    with pytest.raises(ValueError, match="several prompts"):
        plot_contributions(gradient_attribution(site, ids.repeat(2, 1), logit(40)).contributions[0], tmp_path / "b.png")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_contributions(found.strongest(1)._take(torch.zeros(0, dtype=torch.long)), tmp_path / "b.png")


def test_the_check_is_the_comparison_over_held_out_text(run, trained, site):
    arguments = [trained, "--check", "--num-prompts", 3, "--prompt-tokens", 8, "--num-top", 2]
    document = json.loads(run(*arguments, "--json"))
    assert len(document["prompts"]) == 3
    assert document["metric"] == "logit of the model's first choice less that of its second"
    shown = run(*arguments)
    assert "rank correlation with exact ablation" in shown
    assert "share of the whole effect: the top 2" in shown
    assert "3 prompts" in shown


def test_the_check_takes_prompts_from_a_file(run, trained, site, tmp_path):
    from dataclasses import asdict

    texts = ["def alpha(x", "return x + 7", "beta gamma delta"]
    (tmp_path / "prompts.txt").write_text("\n\n".join(texts) + "\n")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = []
    for name in ("prompts.txt", "prompts.jsonl"):
        found.append(
            json.loads(run(trained, "--check", "--prompts", name, "--target", "#40", "--against", "#41", "--json"))
        )
    assert found[0] == found[1]
    encode = site.model.tokenizer.encode
    wanted = compare_with_ablation(
        site, [[0, *encode(text, add_special_tokens=False)] for text in texts], logit_difference(40, 41)
    )
    assert found[0]["rank_correlation"]["value"] == pytest.approx(wanted.rank_correlation.value, abs=1e-3)
    assert found[0]["share_removed"]["value"] == pytest.approx(wanted.share_removed.value, rel=1e-3)
    assert found[0].keys() >= asdict(wanted).keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a --prompt, or --check"),
        (["--prompt", "x", "--check"], "give a --prompt, or --check"),
        (["--prompt", "x", "--prompts", "p.txt"], "--prompts is a file for --check"),
        (["--check", "--against", "x"], "--against needs a --target"),
        (["--check", "--plot", "a.png"], "--plot draws"),
        (["--prompt", "x", "--plot", "a.pdf"], "PNG"),
        (["--prompt", "x", "--target", "def alpha"], r"'def alpha' is \d tokens here: "),
        (["--prompt", "x", "--target", "#320"], "not in the vocabulary"),
        (["--prompt", "x", "--target", ""], "is no token"),
        (["--prompt", "x = 1\n" * 40], "longer than the 32"),
        (["--prompt", "x", "--position", "-3"], "no position -3"),
        (["--prompt", "", "--method", "direct"], "special token 0"),
        (["--prompt", "x", "--hook-point", "blocks.9.hook_resid_post"], "3 blocks"),
        (["--prompt", "x", "--hook-point", "blocks.1.mlp"], "no hook point"),
        (["--prompt", "x", "--hook-point", "transformer.h.1.mlp.act"], "width"),
        (["--prompt", "x", "--method", "direct", "--hook-point", "blocks.1.hook_mlp_in"], "does not go straight"),
        (["--prompt", "x", "--store", "nowhere.db"], "nowhere.db"),
        (["--check", "--prompts", "missing.txt"], "missing.txt"),
    ],
)
def test_mistakes_are_told_in_words(run, trained, arguments, words):
    with pytest.raises((ValueError, OSError), match=words):
        run(trained, *arguments)


def test_names_and_stores_that_do_not_fit_are_told(run, trained, store, tmp_path):
    with pytest.raises(ValueError, match="no dictionary named 'large'"):
        run(trained, "--prompt", "x", "--store", store, "--name", "large")
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "nothing", "--prompt", "x")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        run(trained, "--check", "--prompts", "empty.txt")
    shutil.copy(store, tmp_path / "features.db")  # a store that nobody named is used where it fits
    assert "meaning of" in run(trained, "--prompt", PROMPT)
    assert "without labels" not in run(trained, "--prompt", PROMPT)
