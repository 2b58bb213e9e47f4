"""Architectures by name, and a stranger's architecture beside ours."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from saescope.dictionaries import (
    Dictionary,
    DictionaryConfig,
    ReLU,
    TopK,
    architecture,
    architectures,
    load_dictionary,
    register,
    save_dictionary,
)

pytestmark = pytest.mark.usefixtures("own_registry")


def test_ours_are_known_by_name():
    assert architectures()["relu"] is ReLU
    for name, cls in architectures().items():
        assert architecture(name) is cls
        assert cls.architecture == name
    assert (ReLU.architecture, ReLU.saelens_name) == ("relu", "standard")
    assert (TopK.architecture, TopK.saelens_name) == ("topk", "topk")


def test_the_registry_that_is_given_out_is_a_copy():
    architectures().clear()
    assert architecture("relu") is ReLU


@pytest.mark.parametrize(("name", "near"), [("topp", "topk"), ("rellu", "relu"), ("TopK", "topk")])
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"unknown architecture '{name}': did you mean '{near}'.*\? .*--plugin"):
        architecture(name)


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(ValueError, match=r"unknown architecture 'zzz': known are abs_topk, .*, transcoder\. "):
        architecture("zzz")


def test_a_strangers_architecture_is_saved_and_opened(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class ShiftedConfig(DictionaryConfig):
        shift: float

    @register("shifted")
    class Shifted(Dictionary):
        """Fires above a fixed level."""

        Config = ShiftedConfig
        config: ShiftedConfig

        def activate(self, pre: torch.Tensor) -> torch.Tensor:
            return F.relu(pre - self.config.shift)

    assert architecture("shifted") is Shifted
    dictionary = Shifted(ShiftedConfig(d_in=4, d_sae=6, shift=0.25), seed=3)
    save_dictionary(dictionary, tmp_path / "mine")
    config = json.loads((tmp_path / "mine" / "cfg.json").read_text())
    assert (config["architecture"], config["shift"]) == ("saescope/shifted", 0.25)
    opened = load_dictionary(tmp_path / "mine")
    assert type(opened) is Shifted
    assert opened.config == dictionary.config
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert opened(x).equal(dictionary(x))
    assert opened.encode_sparse(x).to_dense().equal(dictionary.encode(x))
    assert (dictionary.encode(x) > 0).any()


def test_taken_names_are_refused():
    class Other(ReLU):
        pass

    with pytest.raises(ValueError, match="name 'topk' is taken by TopK; choose another"):
        register("topk")(Other)
    with pytest.raises(ValueError, match="name 'temporal' is taken by Temporal"):  # also of what is only opened
        register("temporal")(Other)
    assert architecture("topk") is TopK
    assert Other.architecture == "relu"  # nothing was written on the refused class


def test_a_namesake_from_another_module_does_not_replace_ours():
    namesake = type("ReLU", (Dictionary,), {"activate": lambda self, pre: pre})
    with pytest.raises(ValueError, match="name 'relu' is taken by ReLU"):
        register("relu")(namesake)
    assert architecture("relu") is ReLU


def test_files_of_one_name_are_opened_by_one_class():
    class Other(ReLU):
        pass

    with pytest.raises(ValueError, match=r"ReLU opens the files named 'standard'; .*'saescope/other'"):
        register("other", saelens_name="standard")(Other)
    assert "other" not in architectures()


def test_a_file_of_several_classes_is_opened_by_the_one_that_owns_the_name():
    @register("mine", written_as="topk")
    class Mine(TopK):
        pass

    assert (Mine.saelens_name, Mine.opens_saelens_name) == ("topk", False)
    assert TopK.opens_saelens_name
    openers: dict[str, list[str]] = {}
    for name, cls in architectures().items():
        if cls.opens_saelens_name:
            openers.setdefault(cls.saelens_name, []).append(name)
    assert openers["topk"] == ["topk"]
    assert openers["jumprelu"] == ["jumprelu"]
    assert all(len(names) == 1 for names in openers.values())


def test_a_class_may_be_defined_again_as_a_notebook_cell_does():
    def cell() -> type[Dictionary]:
        @register("again")
        class Again(ReLU):
            pass

        return Again

    first, second = cell(), cell()
    assert first is not second
    assert architecture("again") is second


def test_an_architecture_without_a_rule_is_abstract():
    class Nothing(Dictionary):
        Config = DictionaryConfig

    with pytest.raises(TypeError, match="activate"):
        Nothing(DictionaryConfig(d_in=2, d_sae=2))
