"""Roles of samples: ranks without gaps, one example per row, bands by peaks."""

from __future__ import annotations

from saescope.formats.lm_saes.arranging import arrange, band_edges, band_of
from saescope.formats.lm_saes.samples import Sample
from saescope.formats.lm_saes.texts import SamplePoint


def sample(sampling: str, row: int, *values: float) -> Sample:
    fires = [place for place, value in enumerate(values) if value]
    return Sample(sampling, SamplePoint("d", 0, 1, row), tuple(fires), tuple(values[place] for place in fires))


def test_a_row_is_one_example_with_all_its_roles() -> None:
    found = arrange(
        [
            sample("top_activations", 1, 0, 4.0),
            sample("top_activations", 2, 9.0, 1.0),
            sample("top_activations", 7),
            sample("middle", 3, 0, 0, 10.0),  # stronger than the ones called the strongest
            sample("middle", 1, 0, 4.0),
            sample("middle", 4, 2.0, 2.0),
            sample("non_activating", 5),
            sample("non_activating", 4, 2.0, 2.0),
        ],
        10.0,
    )
    told = [(e.point.row, e.peak, e.activation, e.rank, e.band, e.is_silent) for e in found.examples]
    assert told == [
        (3, 2, 10.0, None, 4, False),
        (2, 0, 9.0, 0, None, False),
        (1, 1, 4.0, 1, 2, False),  # 4.0 begins the third fifth
        (4, 0, 2.0, None, 1, False),
        (5, 0, 0.0, None, None, True),
    ]
    assert (found.num_active_silent, found.num_empty) == (1, 1)
    assert found.edges[:-1] == (0.0, 2.0, 4.0, 6.0, 8.0)


def test_without_drawn_rows_there_are_no_bands() -> None:
    assert arrange([sample("top_activations", 0, 1.0)], 1.0).edges == ()
    assert arrange([], 0.0).examples == ()


def test_a_peak_above_the_maximum_is_still_in_the_last_band() -> None:
    found = arrange([sample("middle", 0, 3.0)], 2.5)  # written at another precision
    assert found.examples[0].band == 4
    assert found.edges[-1] > 3.0
    assert band_of(-1.0, band_edges(5.0)) == 0
