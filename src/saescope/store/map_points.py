"""The map of an analysis as columns: where each feature lies, how often it fires, and its cluster.

One pass over the table gives 100,000 points in some tenths of a second; as records they would take many times that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from saescope.store.finding import find
from saescope.store.records import AnalysisRecord, DictionaryRecord

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class MapPoints:
    """The features of one analysis that have a place on its map, by index. All columns are of one length, N."""

    dictionary: DictionaryRecord
    analysis: AnalysisRecord
    num_features: int
    """Of the analysis, with a place or without."""
    index: np.ndarray  # int64, [N], rising
    x: np.ndarray  # float64, [N]
    y: np.ndarray  # float64, [N]
    density: np.ndarray  # float64, [N]: share of the tokens on which it fires; 0 if it never does
    cluster: np.ndarray  # int64, [N]: -1 for features in none

    def __len__(self) -> int:
        return len(self.index)


def read_map_points(connection: Connection, name: str | None, analysis: str | None) -> MapPoints:
    """See `Store.map_points`."""
    import numpy as np

    found = find(connection, name, analysis)
    rows = connection.execute(
        text(
            "select feature_index, map_x, map_y, density, coalesce(cluster, -1) from feature "
            "where analysis_id = :analysis_id and map_x is not null and map_y is not null order by feature_index"
        ),
        {"analysis_id": found.analysis_id},
    ).all()
    number = connection.scalar(
        text("select count(*) from feature where analysis_id = :analysis_id"), {"analysis_id": found.analysis_id}
    )

    def column(place: int, kind: type) -> np.ndarray:
        return np.fromiter((row[place] for row in rows), kind, len(rows))

    return MapPoints(
        dictionary=found.dictionary,
        analysis=found.analysis,
        num_features=number or 0,
        index=column(0, np.int64),
        x=column(1, np.float64),
        y=column(2, np.float64),
        density=column(3, np.float64),
        cluster=column(4, np.int64),
    )
