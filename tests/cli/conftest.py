"""A run of the command line in this process, and a small recipe on a saved model and a local text file."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

RECIPE = """
name = "small"
hook_point = "blocks.1.hook_resid_post"

[model]
name = "{model}"

[dataset]
name = "{dataset}"

[windows]
context_size = 32

[stream]
buffer_size_tokens = 512

[dictionary]
architecture = "topk"
d_sae = 64
k = 4

[training]
num_tokens = 1280
batch_size_tokens = 128
num_warmup_steps = 2
dead_after_tokens = 1000
log_every_n_steps = 2

[evaluation]
num_tokens = 400

[analysis]
num_tokens = 1000
map = "none"
"""


@dataclass(frozen=True)
class Ran:
    """What a command left on the screen."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs ``saescope ARGUMENTS`` in this process."""
    from saescope.__main__ import main

    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["saescope", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        shown = capsys.readouterr()
        return Ran(code, shown.out, shown.err)

    return run


@pytest.fixture(scope="session")
def sources(tiny, documents, tmp_path_factory):
    """A folder with ``model`` (a saved Hugging Face model) and ``text.jsonl``."""
    folder = tmp_path_factory.mktemp("sources")
    tiny.module.save_pretrained(folder / "model")
    tiny.tokenizer.save_pretrained(folder / "model")
    with open(folder / "text.jsonl", "w") as file:
        for document in documents:
            file.write(json.dumps({"text": document.text}) + "\n")
    return folder


@pytest.fixture(scope="session")
def recipe(sources):
    """A small recipe on those sources."""
    path = sources / "small.toml"
    path.write_text(RECIPE.format(model=sources / "model", dataset=sources / "text.jsonl"))
    return path


@pytest.fixture(scope="session")
def trained(recipe, tmp_path_factory) -> Path:
    """The folder of a finished run of that recipe."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["saescope", "train", str(recipe), "--output", str(folder)])
    from saescope.__main__ import main

    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    patch.undo()
    return folder


@pytest.fixture
def stopped_train(cli, monkeypatch):
    """Runs ``saescope train ARGUMENTS`` until the optimizer is to make a certain step, the first being 1: there it fails."""
    import saescope.training.stepper as loop

    def run(at_step, *arguments):
        made, original = 0, loop.UnitNormAdam.step

        def step(self, *settings):
            nonlocal made
            made += 1
            if made == at_step:
                raise OSError("the power went off")
            return original(self, *settings)

        with monkeypatch.context() as patch:
            patch.setattr(loop.UnitNormAdam, "step", step)
            ran = cli("train", *arguments)
        assert (ran.code, made) == (2, at_step), ran.err

    return run


@pytest.fixture(scope="session")
def looked_at(tmp_path_factory) -> Path:
    """A store made from records, to look at: dictionary ``tiny`` with two analyses, and ``other``.

    Of 8 features of ``tiny`` feature 0 is dead, the others fire 100 times their index; 3 has everything a page can have.
    """
    from saescope.store import Store
    from saescope.store.records import (
        AnalysisRecord,
        Band,
        DictionaryRecord,
        EvaluationResult,
        Example,
        Explanation,
        Feature,
        FeatureDetail,
        FeatureRecord,
        Histogram,
        Label,
        Neighbour,
        Note,
        TokenLogit,
        Window,
    )

    def record(index: int) -> FeatureRecord:
        label = Label(
            text=f"the token “{index}th”", kind="tokens", precision=index / 8, recall=index / 16, lift=2.0 * index,
            num_firings=40 * index,
        )  # fmt: skip
        return FeatureRecord(
            index=index,
            num_firings=100 * index,
            density=index / 64,
            max_activation=1.5 * index,
            mean_activation=index / 100,
            std_activation=index / 10,
            mean_positive=index / 3,
            median_positive=index / 4,
            num_windows=10 * index,
            first_firing=12 if index else None,
            last_firing=12_345 if index else None,
            special_share=0.0625,
            decoder_norm=1.0,
            logit_kurtosis=3.0 + (index * 5) % 8,
            label=label if index in (1, 3, 5) else None,
        )

    detail = FeatureDetail(
        histogram=Histogram(edges=(0.5, 1.0, 2.0, 4.0, 8.0), counts=(200, 60, 39, 1)),
        bands=(
            Band(kind="quantile", number=0, low=0.5, high=2.0, num_windows=20, num_tokens=260, share=260 / 300),
            Band(kind="quantile", number=1, low=2.0, high=8.0, num_windows=10, num_tokens=40, share=40 / 300),
            Band(kind="width", number=0, low=0.0, high=8.0, num_windows=30, num_tokens=300, share=1.0),
        ),
        positions=(100, 50, 75, 75),
        top_logits=(TokenLogit(token_id=5, text=" self", logit=1.25), TokenLogit(token_id=6, text="漢", logit=0.5)),
        bottom_logits=(TokenLogit(token_id=7, text="[red]", logit=-0.75),),
        logit_histogram=Histogram(edges=(-1.0, 0.0, 2.0), counts=(300, 20)),
        neighbours={
            "decoder": (Neighbour(feature=5, value=0.875), Neighbour(feature=4, value=0.25)),
            "firing": (Neighbour(feature=1, value=0.375, num_both=77),),
        },
    )
    windows = [
        Window.of_texts(
            id=number, document="json.decoder", offset=1000 * number, token_ids=range(8),
            token_texts=["def", " first", "(", "self", ",", " n", f"{number}", "\n"],
        )
        for number in range(5)
    ]  # fmt: skip
    # a character that two tokens share
    windows.append(Window(id=5, document="漢.txt", offset=0, text="a漢b", token_ids=(1, 2, 3, 4),
                          token_ranges=((0, 1), (1, 2), (1, 2), (2, 3))))  # fmt: skip
    examples = [
        Example(feature=3, window_id=0, peak=3, activation=4.5, positions=(3, 5), values=(4.5, 0.75), num_copies=3,
                top_rank=0, quantile_band=1),
        Example(feature=3, window_id=5, peak=2, activation=2.5, positions=(1, 2), values=(0.5, 2.5), top_rank=1,
                quantile_band=1, width_band=0),
        Example(feature=3, window_id=1, peak=6, activation=0.625, positions=(6,), values=(0.625,), quantile_band=0),
        Example(feature=3, window_id=2, peak=1, activation=0.0, positions=(), values=(), negative="near_miss"),
        Example(feature=3, window_id=3, peak=4, activation=0.0, positions=(), values=(), negative="silent"),
        Example(feature=5, window_id=4, peak=0, activation=7.5, positions=(0,), values=(7.5,), top_rank=0),
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("stores") / "looked_at.db"
    described = {"model": "gpt-tiny", "hook_point": "transformer.h.1.output", "architecture": "topk", "d_in": 4}
    tiny = DictionaryRecord(name="tiny", d_sae=8, **described)
    analysis = {"dataset": "stdlib", "context_size": 8, "num_tokens": 6400, "num_windows": 800}
    features = [Feature(record=record(i), detail=detail if i == 3 else FeatureDetail()) for i in range(8)]
    with Store.open(path) as store:
        few = [Feature(record=record(i)) for i in (2, 3)]
        store.write(tiny, AnalysisRecord(name="early", **analysis), few, [], [])
        store.write(
            tiny, AnalysisRecord(**analysis), features, windows, examples,
            evaluations=[
                EvaluationResult(study="reconstruction", metric="explained_variance", value=0.8765, low=0.86, high=0.89)
            ],
        )  # fmt: skip
        store.explain(
            "tiny", 3, Explanation(text="names of receivers", method="detection", author="judge", score=0.8125)
        )
        store.tag("tiny", 3, "syntax")
        store.tag("tiny", 5, "syntax")
        store.bookmark("tiny", 5)
        store.add_note("tiny", 3, Note(text="compare with 5", author="Ann"))
        store.write(
            DictionaryRecord(name="other", d_sae=2, **described),
            AnalysisRecord(**analysis),
            [Feature(record=record(1))],
            [],
            [],
        )
    return path
