"""``saescope attribute``: which features made the model say that?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from saescope.cli.setting import Setting
    from saescope.interventions import Site
    from saescope.interventions.attribution import Contributions
    from saescope.interventions.attribution.agreement import Method as Attribute
    from saescope.interventions.metrics import Metric
    from saescope.models import LanguageModel


class Method(StrEnum):
    """How contributions are had."""

    direct = "direct"
    gradient = "gradient"
    integrated = "integrated"


def attribute(
    dictionary: Annotated[str, typer.Argument(help="A dictionary's folder, the folder of a run, or a reference.")],
    prompt: Annotated[str | None, typer.Option(help="Text after which the model speaks.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Token whose logit is explained: text, or #id. \\[default: what the model says]")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Explain by how much the target's logit is above this token's.")
    ] = None,
    method: Annotated[
        Method, typer.Option(help="gradient and integrated: through all later layers; direct: straight to the logit.")
    ] = Method.gradient,
    position: Annotated[
        int, typer.Option(max=-1, help="After which token, counted from the end: -1 is the last.")
    ] = -1,
    limit: Annotated[int, typer.Option(min=1, help="Features to show.")] = 20,
    store: Annotated[
        str | None, typer.Option(help="Where labels are. \\[default: $SAESCOPE_STORE or features.db, if there]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the store. \\[default: the run's]")] = None,
    analysis: Annotated[str | None, typer.Option(help="Name of the analysis. \\[default: the newest]")] = None,
    model: Annotated[str | None, typer.Option(help="Model, if not the one it was trained on.")] = None,
    hook_point: Annotated[str | None, typer.Option(help="Hook point, if not the one it was trained on.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Also draw them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document with all contributions.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with exact ablation of every feature, over several prompts.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts of --check: one a line, or a table. \\[default: held-out text]"),
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts of --check.")] = 20,
    prompt_tokens: Annotated[int, typer.Option(min=3, help="Length of prompts from held-out text.")] = 32,
    num_top: Annotated[int, typer.Option(min=1, help="Features that --check ablates together.")] = 10,
    seed: Annotated[int, typer.Option(help="Of --check's random features and intervals.")] = 0,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
) -> None:
    """Which features of a prompt made the model say what it says, with what they mean.

    A contribution is what the target's logit would lose without the feature: at first order (gradient), averaged along
    the way to where no feature fires (integrated), or by the direct path alone (direct). With --check it is said how
    well they rank features, over prompts: there, without --target, the model's first choice is set against its second.
    """
    from rich.console import Console

    from saescope.cli.opening import find_dictionary, metadata_of, open_dictionary
    from saescope.cli.plugin import load_plugins
    from saescope.cli.printing import print_json
    from saescope.cli.run import load_model
    from saescope.cli.setting import setting_of
    from saescope.interventions import Site

    if check == (prompt is not None):
        raise ValueError("give a --prompt, or --check to compare with ablation over many prompts")
    if prompts is not None and not check:
        raise ValueError("--prompts is a file for --check; one prompt is given with --prompt")
    if against is not None and target is None and check:
        raise ValueError("--against needs a --target with --check: each prompt has its own first choice")
    if check and plot:
        raise ValueError("--plot draws the features of one prompt, not a comparison")
    if plot and plot.suffix.lower() != ".png":
        raise ValueError(f"--plot writes a PNG file; name it {plot.with_suffix('.png')}")
    load_plugins(plugin)
    path = find_dictionary(dictionary)
    setting = setting_of(path, metadata_of(path), model=model, hook_point=hook_point)
    network = load_model(setting.model)
    site = Site(
        open_dictionary(path).to(network.device),
        network,
        hook_point=setting.reads,
        hook_point_out=setting.hook_point_out or None,
    )
    console = Console(stderr=as_json)  # progress beside the document
    if check:
        texts = _prompts(prompts, network, setting, num_prompts, prompt_tokens, console)
        _check(site, texts, method, target, against, position, num_top, seed, console, as_json)
        return
    assert prompt is not None
    ids = _ids(network, prompt, setting)
    metric, asked = _metric(network, ids, target, against, position)
    contributions, numbers = _attributed(site, ids, metric, method)
    called = name or str((setting.run or {}).get("name") or path.name)
    shown = contributions.strongest(limit) if len(contributions) else contributions
    labels, without = _labels(store, called, analysis, contributions if as_json else shown, asked_for=name is not None)
    tokens = _token_texts(network, ids[0].tolist())
    document = {
        "dictionary": called,
        "model": setting.model.name,
        "hook_point": ", ".join(setting.reads),
        "prompt": prompt,
        "tokens": tokens,
        "method": method.value,
        **asked,
        "position": position,
        **numbers,
        "num_contributions": len(contributions),
        "features": _rows(contributions.strongest(max(1, len(contributions))) if as_json else shown, tokens, labels),
    }
    if plot:
        from saescope.interventions.attribution.plot import plot_contributions

        title = f"{_title(document)}\nafter {prompt[-60:]!r}; {method.value}, {document['hook_point']}"
        plot_contributions(contributions, plot, title=title, tokens=tokens, labels=labels, count=limit)
    if as_json:
        print_json(document)
        return
    from saescope.cli.views.attribution import attribution_view

    console.print(attribution_view(document, _title(document)))
    if without:
        console.print(without, style="dim", markup=False, highlight=False, soft_wrap=True)
    if plot:
        console.print(f"picture: {plot}", markup=False, highlight=False, soft_wrap=True)


def _ids(model: LanguageModel, prompt: str, setting: Setting) -> Tensor:
    import torch

    from saescope.interventions.generation_text import prompt_ids_of

    (ids,) = prompt_ids_of(model, prompt, prepend_bos=setting.windows.prepend_bos)
    return torch.tensor([ids])


def _token(model: LanguageModel, written: str) -> int:
    """``#123`` is an id, all else a text."""
    from saescope.interventions.metrics import token_id

    digits = written.removeprefix("#")
    return token_id(model, int(digits) if written.startswith("#") and digits.isdecimal() else written)


def _metric(
    model: LanguageModel, ids: Tensor, target: str | None, against: str | None, position: int
) -> tuple[Metric, dict[str, Any]]:
    """What is explained, and how it is written down."""
    from saescope.interventions.metrics import logit, logit_difference

    if position < -ids.shape[1]:
        raise ValueError(f"the prompt has {ids.shape[1]} tokens, so that there is no position {position} in it")
    chosen = int(model.logits(ids)[0, position].argmax()) if target is None else _token(model, target)
    other = None if against is None else _token(model, against)
    texts = _token_texts(model, [chosen, *([] if other is None else [other])])
    asked = {
        "target": {"id": chosen, "text": texts[0], "chosen_by_model": target is None},
        "against": None if other is None else {"id": other, "text": texts[1]},
    }
    if other is None:
        return logit(chosen, position=position), asked
    return logit_difference(chosen, other, position=position), asked


def _attributed(site: Site, ids: Tensor, metric: Metric, method: Method) -> tuple[Contributions, dict[str, Any]]:
    """Contributions, and the numbers that stand beside them."""
    from saescope.interventions.attribution import direct_attribution, gradient_attribution, integrated_attribution

    if method is Method.direct:
        direct = direct_attribution(site, ids, metric)
        terms = {key: float(value[0]) for key, value in direct.terms().items()}
        return direct.contributions, {"value": float(direct.value[0]), "terms": terms, "completeness": None}
    if method is Method.gradient:
        gradient = gradient_attribution(site, ids, metric)
        return gradient.contributions[0], {"value": float(gradient.value[0]), "terms": None, "completeness": None}
    integrated = integrated_attribution(site, ids, metric)
    (path,) = integrated.completeness
    completeness = {
        "without_features": float(path.removed[0]),
        "difference": float(path.difference[0]),
        "total": float(path.total[0]),
        "gap": float(path.gap[0]) if path.difference[0] != 0 else None,
        "is_complete": path.is_complete,
        "num_steps": path.num_steps,
    }
    return integrated.contributions[0], {
        "value": float(integrated.value[0]), "terms": None, "completeness": completeness
    }  # fmt: skip


def _labels(
    store: str | None, name: str, analysis: str | None, contributions: Contributions, *, asked_for: bool
) -> tuple[dict[int, str], str]:
    """Labels by feature, and a remark on where there are none. A store that nobody named may be missing."""
    from saescope.store import Store

    features = set(contributions.feature.tolist())
    if store is not None or asked_for or analysis is not None:
        with Store.open(store, must_exist=True) as opened:
            return opened.labels(name, features, analysis=analysis), ""
    try:
        with Store.open(None, must_exist=True) as opened:
            return opened.labels(name, features), ""
    except (FileNotFoundError, ValueError):
        return {}, f"without labels: no store with {name} was found; name them with --store and --name"


def _token_texts(model: LanguageModel, ids: list[int]) -> list[str]:
    from saescope.models.token_text import TokenReader

    if model.tokenizer is None:
        return [f"<{number}>" for number in ids]
    reader = TokenReader(model.tokenizer)
    return [reader.read([number])[0] for number in ids]


def _rows(contributions: Contributions, tokens: list[str], labels: dict[int, str]) -> list[dict[str, Any]]:
    return [
        {
            "feature": feature,
            "label": labels.get(feature),
            "position": place,
            "token": tokens[place],
            "activation": activation,
            "contribution": contribution,
        }
        for feature, place, activation, contribution in zip(
            contributions.feature.tolist(),
            contributions.position.tolist(),
            contributions.activation.tolist(),
            contributions.contribution.tolist(),
            strict=True,
        )
    ]


def _title(document: dict[str, Any]) -> str:
    target, against = document["target"], document["against"]
    less = f" less that of {against['text']!r}" if against else ""
    chosen = " (what the model says)" if target["chosen_by_model"] and not against else ""
    return f"logit of {target['text']!r}{less}{chosen}: {document['value']:.3f}"


def _prompts(
    file: Path | None, model: LanguageModel, setting: Setting, number: int, length: int, console: Console
) -> list[Tensor]:
    """Token ids of each prompt, evenly spread over held-out text where no file is given."""
    from dataclasses import replace

    import numpy as np

    from saescope.activations.documents import TABLES, DatasetConfig, read_documents
    from saescope.cli.run import load_windows

    if file is None:
        if setting.held_out is None:
            raise ValueError(
                f"which text of {setting.dataset.name} is held out is not known; name prompts with --prompts"
            )
        length = min(length, model.context_size or length)
        windows = load_windows(model, setting.held_out, replace(setting.windows, context_size=length), console)
        rows = np.unique(np.linspace(0, len(windows) - 1, number).round().astype(int))
        batch = windows.batch(rows)
        return [ids[attended] for ids, attended in zip(batch.ids, batch.attention, strict=True)]
    if file.suffix.lower() in TABLES:
        texts = [document.text for document in read_documents(DatasetConfig(name=str(file), split="all"))]
    else:
        texts = [line for line in file.read_text().splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"{file} holds no prompt")
    return [_ids(model, text, setting)[0] for text in texts[:number]]


def _check(
    site: Site,
    texts: list[Tensor],
    method: Method,
    target: str | None,
    against: str | None,
    position: int,
    num_top: int,
    seed: int,
    console: Console,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from saescope.cli.printing import print_json
    from saescope.cli.progress import progress
    from saescope.cli.views.attribution import agreement_view
    from saescope.interventions.attribution import compare_with_ablation
    from saescope.interventions.metrics import logit_difference

    def metric_of(ids: Tensor) -> Metric:
        if target is not None:
            return _metric(site.model, ids, target, against, position)[0]
        first, second = site.model.logits(ids)[0, position].topk(2).indices.tolist()
        return logit_difference(first, second, position=position)

    with progress(console, "ablating", "prompts") as update:
        found = compare_with_ablation(
            site,
            texts,
            metric_of,
            method=_as_method(method),
            num_top=num_top,
            seed=seed,
            on_progress=lambda done, total: update(done, total, ""),
        )
    if target is None:
        what = "logit of the model's first choice less that of its second"
    else:
        what = f"logit of {target!r}" + (f" less that of {against!r}" if against else "")
    document = {"method": method.value, "metric": what, "hook_point": str(site), **asdict(found)}
    if as_json:
        print_json(document)
    else:
        console.print(agreement_view(document))


def _as_method(method: Method) -> Attribute:
    def attributed(sites: Any, ids: Tensor, metric: Metric) -> list[Contributions]:
        return [_attributed(site, ids, metric, method)[0] for site in sites]

    return attributed
