"""The tables of `schema.MIGRATIONS` as names for queries; a test compares the two column by column."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Double, Integer, LargeBinary, MetaData, Table, Text

_metadata = MetaData()


def _table(name: str, columns: str) -> Table:
    """`"id* name:text size:big"`: integers unless said otherwise, `*` for a key that the database makes."""
    kinds: dict[str, Any] = {"": Integer, "text": Text, "big": BigInteger, "double": Double, "bytes": LargeBinary}
    made: list[Column[Any]] = []
    for column in columns.split():
        title, _, kind = column.partition(":")
        made.append(Column(title.rstrip("*"), kinds[kind], primary_key=title.endswith("*")))
    return Table(name, _metadata, *made)


series = _table("series", "id* name:text")
dictionary = _table(
    "dictionary",
    "id* name:text series_id model:text hook_point:text hook_point_out:text architecture:text d_in d_sae details:text",
)
analysis = _table(
    "analysis",
    "id* dictionary_id name:text dataset:text context_size num_tokens:big num_windows:big details:text created_at:text "
    "num_features num_stored_windows:big num_examples:big",
)
feature = _table(
    "feature",
    "analysis_id feature_index num_firings:big density:double max_activation:double mean_activation:double "
    "std_activation:double mean_positive:double median_positive:double num_windows:big first_firing:big last_firing:big "
    "special_share:double negative_share:double decoder_norm:double encoder_norm:double encoder_bias:double "
    "encoder_decoder_cosine:double logit_mean:double logit_std:double logit_skew:double logit_kurtosis:double "
    "map_x:double map_y:double cluster label_precision:double label_recall:double label_lift:double "
    "label_num_firings:big label_kind:text label:text",
)
feature_detail = _table(
    "feature_detail",
    "analysis_id feature_index histogram:text bands:text positions:text top_logits:text bottom_logits:text "
    "logit_histogram:text neighbours:text sources:text top_float32 bottom_float32 neighbours_float32",
)
text_window = _table(
    "text_window",
    "analysis_id window_id:big document:text document_offset:big text:text token_ids:text token_ranges:text",
)
example = _table(
    "example",
    "analysis_id feature_index number peak window_id:big activation:double num_copies top_rank quantile_band width_band "
    "negative:text positions:text activations:text",
)
feature_text = _table("feature_text", "id:big analysis_id feature_index words:text")
explanation = _table(
    "explanation",
    "id* dictionary_id feature_index text:text method:text author:text score:double details:text created_at:text",
)
embedding = _table("embedding", "explanation_id embedder:text vector:bytes")
tag = _table("tag", "dictionary_id feature_index name:text")
bookmark = _table("bookmark", "dictionary_id feature_index created_at:text")
note = _table("note", "id* dictionary_id feature_index text:text author:text created_at:text")
evaluation = _table(
    "evaluation",
    "id* dictionary_id study:text metric:text value:double low:double high:double variant:text code_version:text "
    "details:text created_at:text",
)
training_run = _table("training_run", "id* dictionary_id settings:text metrics:text code_version:text created_at:text")

OF_ANALYSIS = (feature, feature_detail, text_window, example, feature_text)
"""Rows that belong to one analysis, in an order in which they can be written."""

OF_DICTIONARY = (explanation, tag, bookmark, note, evaluation, training_run)
"""Rows that belong to the dictionary and outlive any one analysis; embeddings hang on explanations."""

TABLES = (series, dictionary, analysis, *OF_ANALYSIS, *OF_DICTIONARY, embedding)
