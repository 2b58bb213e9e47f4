"""The lines that describe a whole: its model, release, set and source, and the kinds of explanations in it.

Fields as in the project's importer of August 2026. Each function names every field of its table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from saescope.formats.neuronpedia.layout import Place
from saescope.formats.neuronpedia.lines import LABEL_PREFIX, OURS, Line
from saescope.store.records import AnalysisRecord, DictionaryRecord


def model_line(
    place: Place,
    creator_id: str,
    created_at: str,
    *,
    num_layers: int,
    neurons_per_layer: int,
    owner: str,
    visibility: str,
) -> Line:
    """A line of the table `Model`; the site ignores it where it knows the model."""
    return {
        "id": place.model_id,
        "instruct": False,
        "creatorId": creator_id,
        "displayNameShort": place.model_id,
        "displayName": place.model_id,
        "tlensId": None,
        "dimension": None,
        "visibility": visibility,
        "defaultSourceSetName": None,
        "defaultSourceId": None,
        "inferenceEnabled": False,
        "layers": num_layers,
        "neuronsPerLayer": neurons_per_layer,
        "createdAt": created_at,
        "owner": owner,
        "updatedAt": created_at,
        "website": None,
    }


def release_line(place: Place, creator_id: str, created_at: str, about: Mapping[str, Any]) -> Line:
    """A line of the table `SourceRelease`."""
    return {
        "name": about["release"],
        "description": about["description"],
        "descriptionShort": None,
        "creatorName": about["creator_name"],
        "creatorNameShort": None,
        "creatorId": creator_id,
        "creatorEmail": about["creator_email"],
        "visibility": about["visibility"],
        "isNewUi": True,
        "featured": False,
        "urls": list(about["urls"]),
        "defaultSourceSetName": place.source_set,
        "defaultSourceId": place.source_id,
        "defaultUmapSourceIds": [place.source_id] if about["has_map"] else [],
        "createdAt": created_at,
    }


def source_set_line(
    place: Place, creator_id: str, created_at: str, about: Mapping[str, Any], dictionary: DictionaryRecord
) -> Line:
    """A line of the table `SourceSet`."""
    return {
        "modelId": place.model_id,
        "name": place.source_set,
        "creatorId": creator_id,
        "hasDashboards": True,
        "visibility": about["visibility"],
        "description": about["description"],
        "type": "transcoder" if dictionary.hook_point_out else "sae",
        "creatorName": about["creator_name"],
        "urls": list(about["urls"]),
        "creatorEmail": about["creator_email"],
        "releaseName": about["release"],
        "defaultOfModelId": None,
        "defaultRange": 1,
        "defaultShowBreaks": True,
        "showDfa": False,
        "showCorrelated": False,
        "showHeadAttribution": False,
        "showUmap": about["has_map"],
        "createdAt": created_at,
    }


def source_line(
    place: Place,
    creator_id: str,
    created_at: str,
    about: Mapping[str, Any],
    dictionary: DictionaryRecord,
    analysis: AnalysisRecord,
) -> Line:
    """A line of the table `Source`. What the table has no field for stands in `notes`."""
    config = {
        "architecture": dictionary.architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "metadata": {"model_name": dictionary.model, "hook_name": dictionary.hook_point},
    }
    ours = {
        "dictionary": dictionary.name,
        "series": dictionary.series,
        "hook_point_out": dictionary.hook_point_out,
        "analysis": analysis.name,
        "num_tokens": analysis.num_tokens,
        "band_kind": about["band_kind"],
    }
    return {
        "id": place.source_id,
        "modelId": place.model_id,
        "setName": place.source_set,
        "creatorId": creator_id,
        "hasDashboards": True,
        "inferenceEnabled": False,
        "inferenceHosts": [],
        "saelensConfig": json.dumps(config),
        "saelensRelease": None,
        "saelensSaeId": None,
        "hfRepoId": about["hf_repo"],
        "hfFolderId": about["hf_folder"],
        "visibility": about["visibility"],
        "defaultOfModelId": None,
        "hasUmap": about["has_map"],
        "hasUmapLogSparsity": about["has_map"],
        "hasUmapClusters": about["has_clusters"],
        "num_prompts": analysis.num_windows,
        "num_tokens_in_prompt": analysis.context_size,
        "dataset": analysis.dataset,
        "notes": json.dumps({OURS: ours}),
        "createdAt": created_at,
    }


def explanation_type_line(name: str, creator_id: str, creator_name: str, created_at: str) -> Line:
    """A line of the table `ExplanationType`: explanations may only be of a kind that is there."""
    is_label = name.startswith(LABEL_PREFIX)
    description = "Chosen by saescope without a language model, measured on held-out text." if is_label else ""
    return {**_config_line(name, description, creator_name, created_at), "creatorId": creator_id}


def explanation_model_line(name: str, creator_name: str, created_at: str) -> Line:
    """A line of the table `ExplanationModelType`: the language models that write explanations."""
    return _config_line(name, "", creator_name, created_at)


def _config_line(name: str, description: str, creator_name: str, created_at: str) -> Line:
    return {
        "name": name,
        "displayName": name,
        "description": description,
        "featured": False,
        "url": None,
        "creatorName": creator_name,
        "createdAt": created_at,
        "updatedAt": created_at,
    }
