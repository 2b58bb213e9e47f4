"""``saescope find``: the features that tell sets of texts, or two models, apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from saescope.interventions.site import Site
    from saescope.models import LanguageModel


def find(
    dictionary: Annotated[Path, typer.Argument(help="A dictionary's folder, the folder of a run, or a reference.")],
    positive: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Texts that have it: one per line or paragraph, or JSONL.")
    ] = None,
    negative: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Texts that do not; without it, the background is the store's.")
    ] = None,
    test_positive: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Texts to measure on. \\[default: half of --positive]")
    ] = None,
    test_negative: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Texts to measure on. \\[default: half of --negative]")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Texts that two models read, with --other-model.")
    ] = None,
    other_model: Annotated[
        str | None, typer.Option(metavar="REF", help="Model or checkpoint to compare: features that differ on --text.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            metavar="HOW", help="Texts of a plain file: line, paragraph, or auto (paragraph if any is blank)."
        ),
    ] = "auto",
    pooling: Annotated[str, typer.Option(help="A text's activation: max, mean, or last (token).")] = "max",
    order_by: Annotated[
        str | None,
        typer.Option(help="Best first: effect_size or auroc; of two models written, effect_size or density."),
    ] = None,
    side: Annotated[str, typer.Option(help="Features higher in which set: both, positive or negative.")] = "both",
    top: Annotated[int, typer.Option(min=1, help="Features to show.")] = 20,
    rate: Annotated[float, typer.Option(help="False discovery rate.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Decides which half of the texts chooses, and of intervals.")] = 0,
    context_size: Annotated[
        int | None, typer.Option(min=2, help="Tokens in a window. \\[default: the dictionary's]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model, if not the one it was trained on.")] = None,
    hook_point: Annotated[str | None, typer.Option(help="Hook point, if not the one it was trained on.")] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Store with labels. \\[default, if --name is given: $SAESCOPE_STORE or features.db]"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the store. \\[default: the run's]")] = None,
    analysis: Annotated[str | None, typer.Option(help="Name of the analysis. \\[default: the newest]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, every number as it is.")] = False,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
) -> None:
    """Find features: those that separate two sets of texts, that one set has more of, or that two models differ in.

    Features are chosen on half of the texts, with a correction for how many were looked at; how well they do is measured on
    the other half.
    """
    from dataclasses import replace

    from rich.console import Console

    from saescope.analysis.contrast import against_store, contrast, diff_models
    from saescope.cli.opening import find_dictionary, metadata_of, open_dictionary
    from saescope.cli.plugin import load_plugins
    from saescope.cli.printing import print_json
    from saescope.cli.run import load_model
    from saescope.cli.setting import setting_of
    from saescope.cli.views.finding import contrast_view, difference_view, enrichment_view
    from saescope.interventions.site import Site
    from saescope.store import Store

    _check_files(positive, negative, test_positive, test_negative, text, other_model, store or name)
    texts = {
        key: read_texts(path, split)
        for key, path in {
            "positive": positive, "negative": negative, "test_positive": test_positive, "test_negative": test_negative,
            "text": text,
        }.items()
        if path is not None
    }  # fmt: skip
    load_plugins(plugin)
    path = find_dictionary(dictionary)
    setting = setting_of(path, metadata_of(path), model=model, hook_point=hook_point)
    known_as = name or str((setting.run or {}).get("name") or path.name)
    console = Console(stderr=as_json)  # what is no result goes beside it
    opened = open_dictionary(path)

    def site_in(network: LanguageModel) -> Site:
        return Site(
            opened.to(network.device), network, hook_point=hook_point, hook_point_out=setting.hook_point_out or None
        )

    site = site_in(load_model(setting.model))
    options: dict[str, Any] = {"top": top, "false_discovery_rate": rate, "context_size": context_size}
    labels_from = Store.open(store, must_exist=True) if store or name else None
    found: Any
    view: Any
    try:
        if labels_from is not None:
            record = labels_from.dictionary(known_as)
            if record.d_sae != opened.d_sae:
                raise ValueError(
                    f"{known_as} has {record.d_sae} features in the store, and {dictionary} {opened.d_sae}"
                )
        with _progress(console, as_json) as tell:
            options["on_progress"] = tell
            if other_model is not None:
                other = site_in(load_model(replace(setting.model, name=other_model)))
                options["order_by"] = order_by or "written"
                found = diff_models(site, other, texts["text"], **options)
                view = difference_view
            elif negative is not None:
                options |= {"pooling": pooling, "side": side, "seed": seed, "order_by": order_by or "effect_size"}
                if test_positive is not None:
                    options["test"] = texts["test_positive"], texts["test_negative"]
                found, view = contrast(site, texts["positive"], texts["negative"], **options), contrast_view
            else:
                assert labels_from is not None
                options |= {"side": {"positive": "more", "negative": "less"}.get(side, side), "seed": seed}
                found = against_store(site, texts["positive"], labels_from, known_as, analysis=analysis, **options)
                view = enrichment_view
        if labels_from is not None and hasattr(found, "labelled"):
            features = [row.feature for row in found.features]
            found = found.labelled(labels_from.labels(known_as, features, analysis=analysis))
    finally:
        if labels_from is not None:
            labels_from.close()
    if as_json:
        print_json(found.as_dict())
        return
    console.print(view(found))


def read_texts(path: Path, split: str = "auto") -> list[str]:
    """The texts of a file: JSONL (objects with ``text``, or strings), one per line, or paragraphs with blank lines between.

    Args:
        split: "line", "paragraph", or "auto": paragraphs where a blank line stands between texts. Of JSONL it says nothing.

    Raises:
        FileNotFoundError: no such file. ValueError: it holds no text, or is not what its name says.
    """
    import json
    import re

    if split not in ("auto", "line", "paragraph"):
        raise ValueError(f"--split is line, paragraph or auto, not {split!r}")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} with texts")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    if path.suffix.lower() == ".jsonl":
        texts = []
        for number, line in enumerate(content.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error.msg}") from None
            found = row.get("text") if isinstance(row, dict) else row
            if not isinstance(found, str):
                raise ValueError(f'{path}, line {number}: expected an object with "text", or a string')
            texts.append(found)
    else:
        content = content.strip("\n")
        blank = re.search(r"\n[ \t]*\n", content) is not None
        if split == "paragraph" or (split == "auto" and blank):
            texts = re.split(r"\n[ \t]*\n(?:[ \t]*\n)*", content)
        else:
            texts = content.split("\n")
        texts = [each for each in texts if each.strip()]
    if not texts:
        raise ValueError(f"{path} holds no text")
    return texts


def _check_files(
    positive: Path | None,
    negative: Path | None,
    test_positive: Path | None,
    test_negative: Path | None,
    text: Path | None,
    other_model: str | None,
    store: str | None,
) -> None:
    """Says which files are missing, before anything slow."""
    if (text is None) != (other_model is None):
        raise ValueError("--text and --other-model go together: what two models read, and the other of them")
    if other_model is not None:
        if positive or negative or test_positive or test_negative:
            raise ValueError(
                "--positive and --negative are two sets for one model; with --other-model give --text alone"
            )
        return
    if positive is None:
        raise ValueError(
            "which texts? Give --positive and --negative (files of texts), --positive and --store (against the text "
            "that was analysed), or --text and --other-model (two models)"
        )
    if (test_positive is None) != (test_negative is None):
        raise ValueError("--test-positive and --test-negative go together")
    if negative is None and test_positive is not None:
        raise ValueError("--test-positive and --test-negative need --negative")
    if negative is None and store is None:
        raise ValueError("--positive alone is compared with a store's text: name it with --store, or give --negative")


def _progress(console: Console, quiet: bool) -> Any:
    from contextlib import contextmanager

    from saescope.cli.progress import progress

    @contextmanager
    def shown() -> Any:
        if quiet:
            yield None
            return
        with progress(console, "reading texts", "windows") as update:
            yield lambda done, total: update(done, total, "")

    return shown()
