"""Qwen-Scope: TopK dictionaries of the residual stream of Qwen 3 and 3.5, one ``layer{n}.sae.pt`` for each layer.

    f = relu(topk(x @ W_enc.T + b_enc))        x_hat = f @ W_dec.T + b_dec

Both matrices lie transposed to ours, and nothing is subtracted from the input. A file does not say how many features may
fire. The repository does: in its ``config.json`` where it has one, and in its name,
``Qwen/SAE-Res-{model}-W{thousands of features}K-L0_{k}``.

Sources: the model cards of the collection; the loader of SAELens 6.54.12.

d_in  width of the input, d_sae  features.
"""

from __future__ import annotations

from typing import Any

from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.source import ConfigSource, Source, whole_number
from saescope.formats.tensor_files import TensorSource

CONFIG_FILE = "config.json"
_FILE = r"layer\d+\.sae\.pt"
# The repository, which a cache of the hub spells models--Qwen--...
_PLACE = (
    r"(?:models--Qwen--)?SAE-Res-(?P<model>[\w.-]+)-W(?P<thousands>\d+)K-L0_(?P<k>\d+)(?:@[^/]+)?(?:/snapshots/[^/]+)?"
)
_D_MODEL = {
    "Qwen3-1.7B-Base": 2048, "Qwen3-8B-Base": 4096, "Qwen3-30B-A3B-Base": 2048, "Qwen3.5-2B-Base": 2048,
    "Qwen3.5-9B-Base": 4096, "Qwen3.5-27B": 5120, "Qwen3.5-35B-A3B-Base": 2048,
}  # fmt: skip
# what a config may say beside, that changes nothing
_IGNORED = ("dtype", "torch_dtype", "num_layers", "layers", "architectures", "transformers_version", "license", "l0")


def _recognise(source: Source) -> bool:
    return bool(source.tensor_files(_FILE))


def _read(source: Source) -> Foreign:
    name = source.the_tensor_file(_FILE, "file layer{n}.sae.pt")
    layer = int(name.removeprefix("layer").removesuffix(".sae.pt"))
    tensors = source.tensors(name)
    foreign = Foreign(format="qwen_scope", architecture="topk", tensors=_tensors(tensors))
    foreign.settings["apply_b_dec_to_input"] = False
    foreign.metadata = {"hook_name": f"blocks.{layer}.hook_resid_post", "hf_hook_name": f"model.layers.{layer}.output"}
    foreign.said.append(f"layer {layer} from the file's name")
    config = _config(source)
    if config is not None:
        _take_from_config(foreign, config)
    _take_from_name(foreign, source)
    said_k = source.override("k")
    if said_k is not None:
        foreign.settings["k"] = whole_number(said_k, "k", least=1)
        foreign.said.append(f"k = {foreign.settings['k']} as you say")
    if "k" not in foreign.settings:
        raise ValueError(
            f"{source.label} does not say how many features may fire: neither {CONFIG_FILE} nor the folder's name "
            "(SAE-Res-Qwen3-8B-Base-W64K-L0_50 would say 50); say it: k=50"
        )
    if source.override("model_name"):
        foreign.metadata["model_name"] = str(source.override("model_name"))
    return foreign


def _tensors(tensors: TensorSource) -> dict[str, Any]:
    """Both matrices transposed: views."""
    W_enc = tensors.take("W_enc", (None, None))
    d_sae, d_in = W_enc.shape
    found = {
        "W_enc": W_enc.T,
        "W_dec": tensors.take("W_dec", (d_in, d_sae)).T,
        "b_enc": tensors.take("b_enc", (d_sae,)),
        "b_dec": tensors.take("b_dec", (d_in,)),
    }
    tensors.require_all_used()
    return found


def _config(source: Source) -> ConfigSource | None:
    return source.config(CONFIG_FILE) if source.has(CONFIG_FILE) else None


def _take_from_config(foreign: Foreign, config: ConfigSource) -> None:
    kind, site = config.get("model_type", str, "topk_sae"), config.get("hook_point", str, "resid_post")
    if kind != "topk_sae":
        raise ValueError(f"{config.where}: model_type is {kind!r}; known is topk_sae")
    for key, found in (("d_model", foreign.d_in), ("d_sae", foreign.d_sae)):
        wanted = config.get(key, int, found)
        if wanted != found:
            raise ValueError(f"{config.where} says {key} = {wanted}, but the layer's file has {found}")
    if site != "resid_post":
        raise ValueError(f"{config.where}: hook_point is {site!r}; known is resid_post")
    k = config.get("k", int)
    if k is not None:
        foreign.settings["k"] = k
        foreign.said.append(f"k = {k} from {CONFIG_FILE}")
    model = config.get("base_model", str)
    if model is not None:
        foreign.metadata["model_name"] = model
    config.ignore(*_IGNORED)
    config.require_all_used()


def _take_from_name(foreign: Foreign, source: Source) -> None:
    place = source.from_name(_PLACE)
    if place is None:
        return
    k, d_sae, model = int(place["k"]), int(place["thousands"]) * 1024, place["model"]
    if foreign.settings.setdefault("k", k) == k:
        foreign.said.append(f"k = {k} from the name")
    elif source.override("k") is None:
        raise ValueError(
            f"{source.label} is named for k = {k}, but its {CONFIG_FILE} says {foreign.settings['k']}; say which: "
            f"k={k} or k={foreign.settings['k']}"
        )
    foreign.metadata.setdefault("model_name", f"Qwen/{model}")
    if d_sae != foreign.d_sae:
        foreign.said.append(
            f"the name says {d_sae:,} features, but the file has {foreign.d_sae:,}; check that it is the right one"
        )
    if _D_MODEL.get(model, foreign.d_in) != foreign.d_in:
        foreign.said.append(
            f"the name says {model}, whose stream is {_D_MODEL[model]} wide, but the file reads {foreign.d_in}; check that "
            "it is the right one"
        )


QWEN_SCOPE = Format(
    name="qwen_scope",
    title="Qwen-Scope",
    layout="layer{n}.sae.pt",
    recognise=_recognise,
    read=_read,
    reads="TopK autoencoders, one layer at a time",
    overrides={
        "k": "how many features may fire, where neither config.json nor the repository's name says",
        "model_name": "the model, where neither says",
    },
    checked_against="an independent writer of the published formulas",
)
