"""A dump of the Language-Model-SAEs workflow with planted activations: what was kept, and where it was put."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from bson_writer import DumpWriter

NUM_TOKENS, CONTEXT, D_SAE = 4_000_000_000, 9, 6  # more tokens than 32 bits hold


@dataclass
class Planted:
    """The truth: activations of every feature in every row, `[d_sae, rows, context]` float32; 0 where it is silent."""

    acts: np.ndarray
    writer: DumpWriter = field(default_factory=DumpWriter)

    @property
    def act_times(self) -> list[int]:
        return [int((acts > 0).sum()) for acts in self.acts]

    @property
    def maxima(self) -> list[float]:
        return [float(acts.max()) for acts in self.acts]


def plant(seed: int = 0, num_rows: int = 12) -> np.ndarray:
    """Features that fire on a fifth of the tokens, one that never does (2), one that fires once (4)."""
    random = np.random.default_rng(seed)
    acts = random.exponential(2, (D_SAE, num_rows, CONTEXT)).astype(np.float32)
    acts[random.random(acts.shape) > 0.2] = 0
    acts[:, num_rows // 2] = 0  # a row in which nothing fires
    acts[2] = 0
    acts[4] = 0
    acts[4, 3, 5] = 1.5
    return acts


def sampling(
    planted: Planted, name: str, feature: int, rows: list[int], *, num_shards: int = 1, **changes: Any
) -> dict[str, Any]:
    """One sampling of a feature, as the workflow writes it: float32 indices, arrays in GridFS."""
    writer = planted.writer
    acts = planted.acts[feature][rows]
    sample, token = np.nonzero(acts)
    shards, in_shard = zip(*(place_of(row, len(planted.acts[0]), num_shards) for row in rows), strict=True)
    return {
        "name": name,
        "feature_acts_indices": writer.array(np.stack([sample, token]).astype(np.float32)),
        "feature_acts_values": writer.array(acts[sample, token]),
        "context_idx": writer.array(np.array(in_shard, dtype=np.int64)),
        "shard_idx": writer.array(np.array(shards)),
        "n_shards": writer.array(np.full(len(rows), num_shards)),
        "dataset_name": ["stories"] * len(rows),
        "model_name": ["gpt-tiny"] * len(rows),
    } | changes


def place_of(row: int, num_rows: int, num_shards: int) -> tuple[int, int]:
    """The shard of a row and its place there, by writing all shards out."""
    shards = np.array_split(np.arange(num_rows), num_shards)
    return next((number, int(np.flatnonzero(shard == row)[0])) for number, shard in enumerate(shards) if row in shard)


def top_rows(planted: Planted, feature: int, num: int = 4) -> list[int]:
    return np.argsort(-planted.acts[feature].max(axis=1), kind="stable")[:num].tolist()


def analysis(planted: Planted, feature: int, name: str = "default", *, num_shards: int = 1, **changes: Any) -> Any:
    """Top rows, some below half of the maximum, and rows that are called non-activating although one may activate."""
    peaks = planted.acts[feature].max(axis=1)
    weak = [row for row in range(len(peaks)) if 0 < peaks[row] <= peaks.max() / 2][:3]
    silent = [row for row in range(len(peaks)) if peaks[row] == 0][:2]
    chosen = {
        "top_activations": top_rows(planted, feature),
        "subsample-0.5": weak,
        "non_activating": [*silent, *weak[:1]],
    }
    return {
        "act_times": planted.act_times[feature],
        "max_feature_acts": planted.maxima[feature],
        "n_analyzed_tokens": NUM_TOKENS,
        "samplings": [
            sampling(planted, label, feature, rows, num_shards=num_shards) for label, rows in chosen.items() if rows
        ],
        "name": name,
    } | changes


def small_dump(*, num_shards: int = 1, chunk_bytes: int = 64) -> Planted:
    """One SAE with an analysis of all its features, an orphan file, bookmarks, interpretations, metrics."""
    planted = Planted(plant(), DumpWriter(chunk_bytes))
    writer = planted.writer
    config = {"sae_type": "sae", "act_fn": "topk", "d_model": 3, "expansion_factor": 2.0,
              "hook_point_in": "blocks.1.hook_resid_post", "hook_point_out": "blocks.1.hook_resid_post"}  # fmt: skip
    writer.add("saes", name="tiny-sae", series="tries", path="/models/tiny", cfg=config, model_name="gpt-tiny")
    writer.add("analyses", name="default", sae_name="tiny-sae", sae_series="tries")
    writer.array(np.arange(100))  # left behind by a deleted feature
    for index in range(D_SAE):
        values: dict[str, Any] = {"analyses": [analysis(planted, index, num_shards=num_shards)]}
        if index < 2:
            values["logits"] = {
                "top_positive": [{"token": f" up{i}", "logit": 3.0 - i} for i in range(3)],
                "top_negative": [{"token": f" down{i}", "logit": -3.0 + i} for i in range(3)],
            }
            values["metric"] = {"score": 0.25 * (index + 1)} | ({"only": 7.0} if index else {})
        if index == 1:
            values["interpretation"] = {
                "text": "stories of cats",
                "method": "simple",
                "passed": True,
                "steps": [1, None],
            }
        writer.add("features", sae_name="tiny-sae", sae_series="tries", index=index, **values)
    writer.add("bookmarks", sae_name="tiny-sae", sae_series="tries", feature_index=1, tags=["cats", "check"],
               notes="look again", created_at=datetime(2025, 6, 7, 8, 9, 10))  # fmt: skip
    writer.add("bookmarks", sae_name="another", sae_series="tries", feature_index=0, tags=[], notes=None)
    return planted
