"""The tables of Neuronpedia's bulk layout as a schema, written from their description and not from the code under test.

Each field has a type: `str`, `float` (any JSON number), `int`, `bool`, `time`, a list of one (`[float]`), an enum, or
several of these. A field that may be NULL has None among them. `problems(line, TABLE)` says what is wrong with a line.
"""

from __future__ import annotations

import math
import re
from typing import Any

TIME = "time"
VISIBILITY = frozenset({"PUBLIC", "UNLISTED", "PRIVATE"})
MODEL_ID, SOURCE_ID = re.compile(r"[A-Za-z0-9._-]+"), re.compile(r"\d+-[A-Za-z0-9.-]+(__.+)?")
CUID = re.compile(r"c[a-z0-9]{24}")

Schema = dict[str, tuple[Any, ...]]

_NEURON: Schema = {
    "modelId": (MODEL_ID,), "layer": (SOURCE_ID,), "index": (re.compile(r"\d+"), int), "creatorId": (str, None),
    "createdAt": (TIME,), "sourceSetName": (str, None), "maxActApprox": (float,), "hasVector": (bool,),
    "vector": ([float],), "vectorLabel": (str, None), "vectorDefaultSteerStrength": (float, None),
    "hookName": (str, None), "topkCosSimIndices": ([int],), "topkCosSimValues": ([float],),
    "neuron_alignment_indices": ([int],), "neuron_alignment_values": ([float],), "neuron_alignment_l1": ([float],),
    "correlated_neurons_indices": ([int],), "correlated_neurons_pearson": ([float],),
    "correlated_neurons_l1": ([float],), "correlated_features_indices": ([int],),
    "correlated_features_pearson": ([float],), "correlated_features_l1": ([float],), "neg_str": ([str],),
    "neg_values": ([float],), "pos_str": ([str],), "pos_values": ([float],), "frac_nonzero": (float,),
    "freq_hist_data_bar_heights": ([float],), "freq_hist_data_bar_values": ([float],),
    "logits_hist_data_bar_heights": ([float],), "logits_hist_data_bar_values": ([float],),
    "decoder_weights_dist": ([float],), "umap_x": (float, None), "umap_y": (float, None),
    "umap_log_feature_sparsity": (float, None), "umap_cluster": (int, None),
}  # fmt: skip
_ACTIVATION: Schema = {
    "id": (CUID,), "modelId": (MODEL_ID,), "layer": (SOURCE_ID,), "index": (re.compile(r"\d+"), int),
    "creatorId": (str,), "createdAt": (TIME,), "tokens": ([str],), "values": ([float],), "maxValue": (float,),
    "maxValueTokenIndex": (int,), "minValue": (float,), "binMin": (float, None), "binMax": (float, None),
    "binContains": (float, None), "qualifyingTokenIndex": (int, None), "dfaValues": ([float],),
    "dfaTargetIndex": (int, None), "dfaMaxValue": (float, None), "lossValues": ([float],),
    "logitContributions": (str, None), "zIndices": ([[int]],), "zValues": ([float],), "dataIndex": (str, None),
    "dataSource": (str, None),
}  # fmt: skip
_EXPLANATION: Schema = {
    "id": (CUID,), "modelId": (MODEL_ID,), "layer": (SOURCE_ID,), "index": (re.compile(r"\d+"),),
    "description": (str,), "authorId": (str,), "embedding": ([float], None), "triggeredByUserId": (str, None),
    "typeName": (str, None), "explanationModelName": (str, None), "notes": (str, None), "createdAt": (TIME,),
}  # fmt: skip
_MODEL: Schema = {
    "id": (MODEL_ID,), "instruct": (bool,), "creatorId": (str,), "displayNameShort": (str,), "displayName": (str,),
    "tlensId": (str, None), "dimension": (int, None), "visibility": (VISIBILITY,),
    "defaultSourceSetName": (str, None), "defaultSourceId": (str, None), "inferenceEnabled": (bool,),
    "layers": (int,), "neuronsPerLayer": (int,), "createdAt": (TIME,), "owner": (str,), "updatedAt": (TIME,),
    "website": (str, None),
}  # fmt: skip
_SOURCE_SET: Schema = {
    "modelId": (MODEL_ID,), "name": (str,), "creatorId": (str,), "hasDashboards": (bool,),
    "visibility": (VISIBILITY,), "description": (str,), "type": (str,), "creatorName": (str,), "urls": ([str],),
    "creatorEmail": (str, None), "releaseName": (str, None), "defaultOfModelId": (str, None), "defaultRange": (int,),
    "defaultShowBreaks": (bool,), "showDfa": (bool,), "showCorrelated": (bool,), "showHeadAttribution": (bool,),
    "showUmap": (bool,), "createdAt": (TIME,),
}  # fmt: skip
_SOURCE: Schema = {
    "id": (SOURCE_ID,), "modelId": (MODEL_ID,), "setName": (str,), "creatorId": (str,), "hasDashboards": (bool,),
    "inferenceEnabled": (bool,), "inferenceHosts": ([str],), "saelensConfig": (str, None),
    "saelensRelease": (str, None), "saelensSaeId": (str, None), "hfRepoId": (str, None), "hfFolderId": (str, None),
    "visibility": (VISIBILITY,), "defaultOfModelId": (str, None), "hasUmap": (bool,), "hasUmapLogSparsity": (bool,),
    "hasUmapClusters": (bool,), "num_prompts": (int, None), "num_tokens_in_prompt": (int, None),
    "dataset": (str, None), "notes": (str, None), "createdAt": (TIME,),
}  # fmt: skip
_RELEASE: Schema = {
    "name": (str,), "description": (str,), "descriptionShort": (str, None), "creatorName": (str,),
    "creatorNameShort": (str, None), "creatorId": (str,), "creatorEmail": (str, None), "visibility": (VISIBILITY,),
    "isNewUi": (bool,), "featured": (bool,), "urls": ([str],), "defaultSourceSetName": (str, None),
    "defaultSourceId": (str, None), "defaultUmapSourceIds": ([str],), "createdAt": (TIME,),
}  # fmt: skip
_CONFIG: Schema = {
    "name": (str,), "displayName": (str,), "description": (str,), "featured": (bool,), "url": (str, None),
    "creatorName": (str,), "createdAt": (TIME,), "updatedAt": (TIME,),
}  # fmt: skip

TABLES: dict[str, Schema] = {
    "features": _NEURON,
    "activations": _ACTIVATION,
    "explanations": _EXPLANATION,
    "model": _MODEL,
    "sourceset": _SOURCE_SET,
    "source": _SOURCE,
    "release": _RELEASE,
    "explanation_type": {**_CONFIG, "creatorId": (str,)},
    "explanation_model_type": _CONFIG,
}

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def problems(line: Any, table: Schema) -> list[str]:
    """What the line has that its table does not allow; an empty list if it fits."""
    if not isinstance(line, dict):
        return [f"no object: {line!r}"]
    found = [f"{key} is missing" for key in table.keys() - line.keys()]
    found += [f"{key} is not a field" for key in line.keys() - table.keys()]
    for key, kinds in table.items():
        if key in line and not any(_is(line[key], kind) for kind in kinds):
            found.append(f"{key} is {line[key]!r}, not {kinds}")
    return found


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is(entry, kind[0]) for entry in value)
    if isinstance(kind, re.Pattern):
        return isinstance(value, str) and kind.fullmatch(value) is not None
    if isinstance(kind, frozenset):
        return value in kind
    if kind == TIME:
        return isinstance(value, str) and _TIME.fullmatch(value) is not None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and "\x00" not in value
    return isinstance(value, kind)
