"""Dictionaries that read whole texts have no place in a pass that may have a cache or padding."""

from __future__ import annotations

import pytest

from saescope.dictionaries import Temporal, TemporalConfig
from saescope.interventions import Site


def test_a_temporal_dictionary_is_refused(tiny) -> None:
    dictionary = Temporal(TemporalConfig(d_in=16, d_sae=12, n_heads=2, bottleneck_factor=3, kval_topk=3))
    with pytest.raises(ValueError, match="reads whole texts from their first token on"):
        Site(dictionary, tiny, hook_point="blocks.1.hook_resid_post")
