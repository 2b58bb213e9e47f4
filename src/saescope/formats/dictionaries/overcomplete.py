"""overcomplete, and interpreto, which carries a copy of it: one state dict, which leaves much of the function unsaid.

    D = normalise(_weights) * exp(multiplier)        pre = x @ W_enc + b_enc
    f = act(ReLU(pre))                               x_hat = f @ D

Nothing is centred and there is no decoder bias. The stored rows are what the last step of the optimizer left, and are
brought to their norm whenever they are used. A relaxed archetypal dictionary has D = (mix(W) @ C + clip(Relax)) * exp(m)
instead, with rows of ``mix(W)`` on the simplex, and no row of ``clip(Relax)`` longer than ``delta``.

The file does not hold the class (but for JumpReLU), k, the threshold of BatchTopK, the way of normalising, or ``delta``:
what stands nowhere is asked for, and what has a default there is said.

Source: the code of overcomplete 0.3.0 (github.com/KempnerInstitute/overcomplete) and interpreto 0.5.2.

d  width of the input, d_sae  features, P  points of an archetypal dictionary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from saescope.formats.dictionaries.single_files import entries
from saescope.formats.foreign import Foreign, row_norms, scaled
from saescope.formats.format import Format
from saescope.formats.source import Source
from saescope.formats.tensor_files import TensorSource

_FILES = r"[^/]+\.(?:pt|pth|bin|safetensors)"
_ARCHETYPAL = ("C", "W", "Relax")

# names of classes, of interpreto's too -> the class, and what has to be said of it
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "SAE": (),
    "TopKSAE": ("k",),
    "BatchTopKSAE": ("threshold",),
    "JumpSAE": (),
    "MpSAE": ("k",),
}
_SAME: Mapping[str, str] = {
    "RATopKSAE": "TopKSAE",
    "RAJumpSAE": "JumpSAE",
    "VanillaSAEConcepts": "SAE",
    "TopKSAEConcepts": "TopKSAE",
    "BatchTopKSAEConcepts": "BatchTopKSAE",
    "JumpReLUSAEConcepts": "JumpSAE",
    "MpSAEConcepts": "MpSAE",
}
_REFUSED: Mapping[str, str] = {
    "QSAE": "its activations are levels that are chosen per feature, which no dictionary here does",
    "OMPSAE": "each step solves for all codes anew by a number of iterations that the file does not hold",
}


def _recognise(source: Source) -> bool:
    held = set(entries(source, _FILES))
    return "dictionary._weights" in held or {f"dictionary.{name}" for name in _ARCHETYPAL} <= held


def _read(source: Source) -> Foreign:
    tensors = source.tensors(source.the_tensor_file(_FILES, "state dict (.pt, .safetensors)"))
    of_class = _class(source, tensors)
    said: list[str] = []
    atoms = _atoms(source, tensors, said)
    d_sae, d = atoms.shape
    foreign = Foreign(
        format="overcomplete",
        architecture="relu",
        settings={"apply_b_dec_to_input": False},
        tensors={"W_dec": atoms, "b_dec": atoms.new_zeros(d)},
        said=[f"a {of_class} of overcomplete", *said],
    )
    if of_class == "MpSAE":
        tensors.ignore(r"encoder\..*")  # interpreto makes one that is never used
        _make_pursuit(foreign, source)
    else:
        foreign.tensors["W_enc"], foreign.tensors["b_enc"] = _encoder(tensors, atoms)
    if of_class == "TopKSAE":
        foreign.architecture, foreign.settings["k"] = "topk", source.whole("k")
        foreign.said.append(f"k = {foreign.settings['k']} from what was said")
    if of_class == "BatchTopKSAE":
        threshold = _number(source, "threshold", least=0)
        _make_jump(foreign, atoms.new_full((d_sae,), threshold))
        foreign.said.append(f"one threshold of {threshold:.6g} from what was said")
    if of_class == "JumpSAE":
        _make_jump(foreign, tensors.take("thresholds", (d_sae,)).exp())
        foreign.said.append("thresholds are stored as logarithms")
    tensors.require_all_used()
    return foreign


# Which class it was


def _class(source: Source, tensors: TensorSource) -> str:
    """The class, from the tensors and what is said; ValueError where both leave it open, or contradict each other."""
    asked = source.override("sae_class")
    named = _SAME.get(asked, asked)
    if "Q" in tensors:
        named = _agree(tensors, asked, named, "QSAE", "levels (Q)")
    elif "thresholds" in tensors:
        named = _agree(tensors, asked, named, "JumpSAE", "thresholds")
    elif named in ("JumpSAE", "QSAE"):
        raise ValueError(f"{tensors.where} is no {asked}: it holds neither thresholds nor levels (Q)")
    if isinstance(asked, str) and asked.startswith("RA") and "dictionary.C" not in tensors:
        raise ValueError(f"{tensors.where} is no {asked}: its dictionary is not archetypal")
    if named is None:
        named = _from_numbers(source, tensors)
    if named in _REFUSED:
        raise ValueError(f"{tensors.where} is a {named} of overcomplete, which is not opened: {_REFUSED[named]}")
    if named not in _NEEDS:
        raise ValueError(f"sae_class should be one of {', '.join([*_NEEDS, *_SAME])}, but is {asked!r}")
    for name in ("k", "threshold"):
        if name in _NEEDS[named] and source.override(name) is None:
            raise ValueError(f"{tensors.where}: the file of a {named} does not hold its {name}; {_WHY[named]}")
        if name not in _NEEDS[named] and source.override(name) is not None:
            raise ValueError(f"a {named} of overcomplete has no {name} of its own; leave {name}=... out, or sae_class")
    if named != "MpSAE" and not any(name.startswith("encoder.") for name in tensors):
        raise ValueError(
            f"{tensors.where} holds no encoder, so it is no {named}; an MpSAE has none (sae_class='MpSAE')"
        )
    return str(named)


_WHY: Mapping[str, str] = {
    "TopKSAE": "say it: k=... (left out when it is made, it is d_sae // 10 there)",
    "BatchTopKSAE": "say it: threshold=..., its running_threshold when training ended. Its top_k counts firings of a whole "
    "batch and can not stand in for it",
    "MpSAE": "say how many steps it takes: k=...",
}


def _agree(tensors: TensorSource, asked: object, named: str | None, found: str, what: str) -> str:
    if named not in (None, found):
        raise ValueError(f"{tensors.where} is no {asked}: it holds the {what} of a {found}")
    return found


def _from_numbers(source: Source, tensors: TensorSource) -> str:
    """TopKSAE where k alone is said, BatchTopKSAE where a threshold alone is."""
    if not any(name.startswith("encoder.") for name in tensors):
        raise ValueError(
            f"{tensors.where} holds a dictionary and no encoder, as an MpSAE or an OMPSAE of overcomplete; say which: "
            "sae_class='MpSAE' and the number of its steps, k=..."
        )
    k, threshold = source.override("k"), source.override("threshold")
    if (k is None) == (threshold is None):
        raise ValueError(
            f"{tensors.where} could be an SAE, a TopKSAE or a BatchTopKSAE of overcomplete, whose files have the "
            "same tensors; say which: sae_class='SAE', or k=... (a TopKSAE), or threshold=... (a BatchTopKSAE)"
        )
    return "TopKSAE" if threshold is None else "BatchTopKSAE"


def _number(source: Source, name: str, default: float | None = None, *, least: float) -> float:
    value = source.override(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not least <= number < math.inf:
        raise ValueError(f"{name} should be a number of at least {least:g}, but is {value!r}")
    return number


# The dictionary that is in effect


def _atoms(source: Source, tensors: TensorSource, said: list[str]) -> Tensor:
    """``[d_sae, d]``."""
    multiplier = tensors.take("dictionary.multiplier", ()).double().exp()
    if "dictionary.C" in tensors:
        if source.override("normalization") is not None:
            raise ValueError("the rows of an archetypal dictionary are not normalised; leave normalization=... out")
        return _archetypal(source, tensors, said) * multiplier.to(tensors["dictionary.C"].dtype)
    if source.override("delta") is not None:
        raise ValueError("this dictionary is not archetypal and has no delta; leave delta=... out")
    weights = tensors.take("dictionary._weights", (None, None))
    mode = source.override("normalization", "l2")
    if mode not in _NORMALIZATIONS:
        raise ValueError(f"normalization should be one of {', '.join(_NORMALIZATIONS)}, but is {mode!r}")
    origin = "the default there, as the file does not say" if "normalization" not in source.overrides else "as was said"
    said.append(f"rows are normalised by {mode!r}, {origin}")
    divisor = _NORMALIZATIONS[mode](weights)  # [d_sae, 1], or a number
    return scaled(weights, multiplier / divisor).to(weights.dtype)  # from headers alone it is another


_EPS = 1e-8  # added to each norm there

_NORMALIZATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda weights: row_norms(weights)[:, None] + _EPS,
    "l1": lambda weights: _row_sums(weights)[:, None] + _EPS,
    "max_l2": lambda weights: row_norms(weights).amax(),
    "max_l1": lambda weights: _row_sums(weights).amax(),
    "identity": lambda weights: weights.new_ones((), dtype=torch.float64),
}


def _row_sums(weights: Tensor) -> Tensor:
    return weights.abs().sum(-1, dtype=torch.float64)


def _archetypal(source: Source, tensors: TensorSource, said: list[str]) -> Tensor:
    points = tensors.take("dictionary.C", (None, None))  # [P, d]
    weights = tensors.take("dictionary.W", (None, len(points))).relu()  # [d_sae, P]
    relaxation = tensors.take("dictionary.Relax", (len(weights), points.shape[1]))  # [d_sae, d]
    delta = _number(source, "delta", 1.0, least=0)
    said.append(f"an archetypal dictionary with delta = {delta:g}, {_origin(source, 'delta')}; made explicit")
    mixture = weights / (weights.sum(-1, keepdim=True) + _EPS)
    longest = (delta / relaxation.norm(dim=-1, keepdim=True)).clamp(max=1)
    return mixture @ points + relaxation * longest


def _origin(source: Source, name: str) -> str:
    return "as was said" if name in source.overrides else "the default there, as the file does not say"


# What reads the input, and what makes activations of it


def _encoder(tensors: TensorSource, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """``W_enc [d, d_sae]`` and ``b_enc [d_sae]`` of a linear encoder: the usual one, ``untied()`` or ``tied()``."""
    d_sae, d = atoms.shape
    tied = {name for name in tensors if name.startswith("encoder.tied_to.")}
    linear = {"encoder.final_block.0.weight", "encoder.final_block.0.bias", "encoder.weight", "encoder.bias"}
    others = sorted(name for name in tensors if name.startswith("encoder.") and name not in linear | tied)
    if others:
        raise ValueError(
            f"{tensors.where}: its encoder is more than one linear layer ({', '.join(others[:4])}), as "
            "overcomplete's mlp, resnet and attention encoders; such a dictionary is not opened"
        )
    if "encoder.final_block.0.weight" in tensors:
        weight = tensors.take("encoder.final_block.0.weight", (d_sae, d))
        return weight.T, tensors.take("encoder.final_block.0.bias", (d_sae,))
    bias = tensors.take("encoder.bias", (d_sae,)) if "encoder.bias" in tensors else atoms.new_zeros(d_sae)
    if not tied:
        return tensors.take("encoder.weight", (d_sae, d)).T, bias
    for name in tied:
        here, there = tensors[name], tensors.get("dictionary." + name.removeprefix("encoder.tied_to."))
        if there is None or here.shape != there.shape or not (here.is_meta or torch.equal(here, there)):
            raise ValueError(
                f"{tensors.where}: {name} differs from the dictionary's own; its encoder is tied to another"
            )
    tensors.ignore(r"encoder\.tied_to\..*")
    return atoms.T, bias


def _make_jump(foreign: Foreign, threshold: Tensor) -> None:
    """A feature fires there at its threshold too, and never below 0."""
    below = torch.nextafter(threshold, torch.full_like(threshold, -math.inf))
    foreign.architecture, foreign.tensors["threshold"] = "jumprelu", below.clamp(min=0)
    foreign.said.append("features fire at their threshold and above")


def _make_pursuit(foreign: Foreign, source: Source) -> None:
    """Steps of signed products, as here, with two differences that unit rows make small.

    There a token always takes all k steps, and a step may have a negative value. With rows no longer than 1 the row that was
    taken last has a product of at least 0 with what it left, so a negative value comes in the first step alone, on a token
    that has a positive product with no row.
    """
    atoms = foreign.tensors["W_dec"]
    slack = 8 * torch.finfo(atoms.dtype).eps
    if not atoms.is_meta and bool(row_norms(atoms).max() > 1 + slack):
        raise ValueError(
            "this MpSAE has rows longer than 1 (a multiplier, or another normalization than l2): its residuals can grow, "
            "and its codes become negative, which a matching pursuit here does not do"
        )
    foreign.architecture = "matching_pursuit"
    foreign.settings |= {"k": source.whole("k"), "residual_threshold": 0.0, "stop_on_repeat": False}
    foreign.said.append(
        f"k = {foreign.settings['k']} steps from what was said; a token without a positive product with any row gets "
        "no feature here, and one of negative value there"
    )


OVERCOMPLETE = Format(
    name="overcomplete",
    title="overcomplete, interpreto",
    layout="one .pt or .safetensors with dictionary._weights, or dictionary.C, W and Relax",
    recognise=_recognise,
    read=_read,
    reads="SAE, TopKSAE, BatchTopKSAE, JumpSAE, MpSAE; archetypal, tied and untied; linear encoders",
    overrides={
        "sae_class": f"the class, which the file does not hold: {', '.join(_NEEDS)}",
        "k": "features per token of a TopKSAE, steps of an MpSAE",
        "threshold": "running_threshold of a BatchTopKSAE",
        "normalization": f"of the rows: {', '.join(_NORMALIZATIONS)} (default l2)",
        "delta": "how far a row of an archetypal dictionary may be from its mixture (default 1)",
    },
    checked_against="overcomplete 0.3.0, interpreto 0.5.2",
)
