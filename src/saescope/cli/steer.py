"""``saescope steer``: what a model writes while features are changed, beside what it writes otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

if TYPE_CHECKING:
    from saescope.cli.setting import Setting
    from saescope.dictionaries import Dictionary
    from saescope.interventions import Change, Site
    from saescope.interventions.side_by_side import SideBySide
    from saescope.interventions.site import Unit
    from saescope.interventions.strength import FoundStrength
    from saescope.models import LanguageModel
    from saescope.store import Store

_Kind = Literal["add", "clamp", "ablate"]
_Positions = Literal["all", "prompt", "generated"]


def steer(
    dictionary: Annotated[Path, typer.Argument(help="A dictionary's folder, or the folder of a run.")],
    feature: Annotated[
        list[int], typer.Option("--feature", "-f", min=0, help="Number of a feature; repeat it for several.")
    ],
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="Text to continue; repeat it for several.")],
    strength: Annotated[
        list[float] | None,
        typer.Option("--strength", "-s", help="In maximum activations: one for all features, or one for each."),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option("--kl", metavar="NATS", help="Find the strength that moves the model this far, per token."),
    ] = None,
    clamp: Annotated[bool, typer.Option("--clamp", help="Bring the features to the strength, not add it.")] = False,
    ablate: Annotated[bool, typer.Option("--ablate", help="Remove the features; there is no strength.")] = False,
    unit: Annotated[str, typer.Option(help="What strengths count: max_activation or activation.")] = "max_activation",
    positions: Annotated[str, typer.Option(help="Where in the text: all, prompt or generated.")] = "all",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write after each prompt.")] = 32,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only so many of the most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the most likely tokens of this probability.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers, the same on both sides.")] = 0,
    store: Annotated[
        str | None,
        typer.Option(
            help="File or database, for maximum activations and labels. \\[default: $SAESCOPE_STORE or features.db]"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the store. \\[default: the run's]")] = None,
    analysis: Annotated[str | None, typer.Option(help="Name of the analysis. \\[default: the newest]")] = None,
    model: Annotated[str | None, typer.Option(help="Model, if not the one it was trained on.")] = None,
    hook_point: Annotated[str | None, typer.Option(help="Hook point, if not the one it was trained on.")] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document, with the numbers of every token.")
    ] = False,
) -> None:
    """Continue prompts with features changed, beside the plain model with the same random numbers.

    Shows how far the change moves the model (KL per token) and how natural the plain model finds both texts (perplexity).
    """
    from contextlib import ExitStack

    from rich.console import Console

    from saescope.cli.opening import find_dictionary, metadata_of, open_dictionary
    from saescope.cli.plugin import load_plugins
    from saescope.cli.printing import print_json
    from saescope.cli.run import load_model
    from saescope.cli.setting import setting_of
    from saescope.cli.views.steering import steering_view
    from saescope.interventions.generation import HowToWrite
    from saescope.interventions.side_by_side import side_by_side
    from saescope.interventions.strength import strength_for_kl

    kind = _kind(clamp, ablate)
    strengths = _strengths(feature, strength, kind, kl)
    _check_words(unit, positions)
    load_plugins(plugin)
    path = find_dictionary(dictionary)
    setting = setting_of(path, metadata_of(path), model=model, hook_point=hook_point)
    name = name or str((setting.run or {}).get("name") or path.name)
    with ExitStack() as stack:
        opened_store = _open_store(store, name, path, needed=kind != "ablate" and unit == "max_activation")
        if opened_store is not None:
            stack.enter_context(opened_store)
        opened, network = open_dictionary(path), load_model(setting.model)
        site = _site(opened, network, setting, opened_store, name, analysis, elsewhere=bool(hook_point))
        status = stack.enter_context(Console(stderr=True).status("writing"))

        def changes_of(factor: float) -> list[Change]:
            return _changes(site, feature, [factor * each for each in strengths], kind, unit, positions)  # type: ignore[arg-type]

        how: HowToWrite = {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
            "prepend_bos": setting.windows.prepend_bos or None,
        }  # fmt: skip
        found = None
        if kl is not None:
            status.update(f"looking for the strength with a KL of {kl:g}")
            found = strength_for_kl(network, prompt, changes_of, kl, **how)
        factor = 1.0 if found is None else found.strength
        status.update("writing")
        written = side_by_side(network, prompt, changes_of(factor), **how)
        labels = opened_store.labels(name, feature, analysis=analysis) if opened_store is not None else {}
        changed = [
            _described(site, each, factor * strength, kind, unit, labels)
            for each, strength in zip(feature, strengths or [0.0] * len(feature), strict=True)
        ]
    document = {
        "model": setting.model.name,
        "dictionary": str(path),
        "name": name,
        "hook_point": str(site),
        "positions": positions,
        "changes": changed,
        "settings": dict(how),
        "search": None if found is None else _search_as_json(found),
        **_numbers(written),
        "texts": _texts(prompt, written),
    }
    if as_json:
        print_json(document)
    else:
        Console().print(steering_view(document))


def _kind(clamp: bool, ablate: bool) -> _Kind:
    if clamp and ablate:
        raise ValueError("--clamp and --ablate are two changes of the same features; give one of them")
    return "clamp" if clamp else "ablate" if ablate else "add"


def _strengths(features: Sequence[int], given: Sequence[float] | None, kind: _Kind, kl: float | None) -> list[float]:
    """One for each feature; for ``ablate`` none."""
    if len(set(features)) < len(features):
        raise ValueError(f"a feature is named twice: {', '.join(map(str, features))}")
    if kind == "ablate":
        if given or kl is not None:
            raise ValueError("--ablate removes features, so that there is no strength; leave --strength and --kl out")
        return []
    if not given:
        if kl is None:
            raise ValueError("how strong? Give --strength, or --kl to have it found")
        given = [1.0]
    if len(given) not in (1, len(features)):
        raise ValueError(
            f"{len(features)} features and {len(given)} strengths: give one strength, or one for each feature"
        )
    return [given[0]] * len(features) if len(given) == 1 else list(given)


def _check_words(unit: str, positions: str) -> None:
    if unit not in ("max_activation", "activation"):
        raise ValueError(f"--unit is max_activation or activation, not {unit!r}")
    if positions not in get_args(_Positions):
        raise ValueError(f"--positions is {', '.join(get_args(_Positions))}, not {positions!r}")


def _open_store(address: str | None, name: str, path: Path, *, needed: bool) -> Store | None:
    """The store, if it is named or lies where stores lie by default and knows the dictionary.

    Raises:
        ValueError: there is none, and strengths can not be understood without it.
    """
    from saescope.store import Store
    from saescope.store.address import resolve_address

    if address is not None:
        return Store.open(address, must_exist=True)
    place = resolve_address(None)
    remedy = (
        f"Analyse it (saescope analyze {path}), name the store that has it with --store and --name, or give strengths as "
        "activations with --unit activation"
    )
    if isinstance(place, Path) and not place.exists():
        if needed:
            raise ValueError(
                f"strengths count in maximum activations, which a store knows, and there is no {place}. {remedy}"
            )
        return None
    found = Store.open(place, must_exist=True)
    if any(record.name == name for record in found.dictionaries()):
        return found
    found.close()
    if needed:
        raise ValueError(f"strengths count in maximum activations, and {place} has no dictionary {name}. {remedy}")
    return None


def _site(
    dictionary: Dictionary,
    network: LanguageModel,
    setting: Setting,
    store: Store | None,
    name: str,
    analysis: str | None,
    *,
    elsewhere: bool,
) -> Site:
    """The dictionary in the model: where the option says, the store, or the dictionary itself."""
    from saescope.interventions import Site

    if store is not None and not elsewhere:
        return Site.in_store(store, name, dictionary, network, analysis=analysis)

    def max_activation(feature: int) -> float:
        assert store is not None
        return store.page(name, feature, analysis=analysis).feature.max_activation

    return Site(
        dictionary,
        network,
        hook_point=setting.reads if elsewhere else None,
        max_activations=None if store is None else max_activation,
        name=name,
    )


def _changes(
    site: Site, features: Sequence[int], strengths: Sequence[float], kind: _Kind, unit: Unit, positions: _Positions
) -> list[Change]:
    from saescope.interventions import Ablate, Add, Clamp

    if kind == "ablate":
        return [Ablate(site, list(features), positions=positions)]
    change = Add if kind == "add" else Clamp
    return [
        change(site, feature, strength, unit, positions=positions)
        for feature, strength in zip(features, strengths, strict=True)
    ]


def _described(
    site: Site, feature: int, strength: float, kind: _Kind, unit: str, labels: dict[int, str]
) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": kind, "feature": feature, "label": labels.get(feature)}
    if kind == "ablate":
        return described
    largest = site.max_activation(feature) if unit == "max_activation" else None
    activation = strength if largest is None else strength * largest
    return {**described, "strength": strength, "unit": unit, "max_activation": largest, "activation": activation}


def _search_as_json(found: FoundStrength) -> dict[str, Any]:
    return {
        "wanted_kl": found.wanted_kl,
        "tolerance": found.tolerance,
        "met": found.met,
        "reason": found.reason,
        "factor": found.strength,
        "tried": [
            {"factor": each.strength, "kl": None if each.refused else each.kl, "refused": each.refused}
            for each in found.tried
        ],
    }


def _numbers(written: SideBySide) -> dict[str, Any]:
    return {
        "kl_per_token": written.kl_per_token,
        "kl_reverse_per_token": written.kl_reverse_per_token,
        "perplexity_plain": _finite(written.perplexity_plain),
        "perplexity_steered": _finite(written.perplexity_steered),
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity; a perplexity beyond all numbers is null."""
    return value if math.isfinite(value) else None


def _texts(prompts: Sequence[str], written: SideBySide) -> list[dict[str, Any]]:
    scores = written.scores
    return [
        {
            "prompt": prompt,
            "prompt_ids": written.plain.prompt_ids[row],
            "kl_per_token": written.kl_of_prompts[row],
            "perplexity_plain": _finite(written.perplexities_plain[row]),
            "perplexity_steered": _finite(written.perplexities_steered[row]),
            "plain": {
                "text": written.plain.texts[row],
                "token_ids": written.plain.new_ids[row],
                "log_probabilities": written.plain.log_probabilities[row],
                "ended": written.plain.ended[row],
            },
            "steered": {
                "text": written.steered.texts[row],
                "token_ids": written.steered.new_ids[row],
                "log_probabilities": written.steered.log_probabilities[row],
                "log_probabilities_plain": scores.log_probabilities_plain[row],
                "kl": scores.kl[row],
                "kl_reverse": scores.kl_reverse[row],
                "ended": written.steered.ended[row],
            },
        }
        for row, prompt in enumerate(prompts)
    ]
