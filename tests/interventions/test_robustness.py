"""The model is as it was, whatever happens inside; threads keep to themselves; wrong input is refused in words."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saescope.interventions import Ablate, Add, Clamp, Intervention, ProjectOut, Scale, Site, Splice, Where
from saescope.models import HookPointError, LanguageModel
from saescope.models.one_thread import OneThread

PLACE = "blocks.1.hook_resid_post"


@pytest.fixture
def model(tiny_model: Any) -> LanguageModel:
    found: LanguageModel = tiny_model("gpt2")
    return found


@pytest.fixture
def site(model: LanguageModel, make_dictionary: Any) -> Site:
    return Site(make_dictionary(), model, hook_point=PLACE, max_activations={3: 2.0, 4: 0.0, 5: float("inf")})


@pytest.fixture
def untouched(model: LanguageModel, ids: Tensor, count_hooks: Any) -> Iterator[Callable[[], None]]:
    """Called, it checks that the model is as it was; as it also does in the end."""
    logits, hooks = model.logits(ids), count_hooks(model)
    parameters = {name: each.clone() for name, each in model.module.state_dict().items()}

    def check() -> None:
        assert count_hooks(model) == hooks
        assert torch.equal(model.logits(ids), logits)
        assert all(torch.equal(each, parameters[name]) for name, each in model.module.state_dict().items())
        assert not model.lock.is_mine
        assert model.running is None

    yield check
    check()


def far_apart(*tensors: Tensor) -> bool:
    return all(float((a - b).abs().max()) > 1e-3 for i, a in enumerate(tensors) for b in tensors[:i])


# Exceptions


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit, SystemExit])
def test_an_exception_anywhere(
    error: type[BaseException], site: Site, ids: Tensor, untouched: Any, count_hooks: Any
) -> None:
    model, change = site.model, Add(site, 3, 1.0)
    before = count_hooks(model)

    def fails(value: Tensor) -> Tensor:
        raise error("inside")

    with Intervention(change):
        assert count_hooks(model) > before
    with pytest.raises(error), Intervention(change):
        raise error("in the context")
    untouched()
    with pytest.raises(error), Intervention(change):
        model.logits(ids, edits={"blocks.2.hook_mlp_out": fails})
    untouched()
    with pytest.raises(error), Intervention([change, Splice(site, codes=fails)]):
        model.logits(ids)
    untouched()
    outer, inner = Intervention(change), Intervention(Ablate(site, 2))
    with pytest.raises(error), outer, inner, outer:
        raise error("nested")
    untouched()
    with outer:
        with pytest.raises(error), inner:
            model.logits(ids, edits={"blocks.2.hook_mlp_out": fails})
        inside = model.logits(ids)  # the outer one still holds
    with Intervention(change):
        assert torch.equal(inside, model.logits(ids))


def test_a_context_that_can_not_be_entered(
    site: Site, ids: Tensor, untouched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.model._wiring, "_new_wires", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), Intervention(Add(site, 3, 1.0)):
        pass
    monkeypatch.undo()
    untouched()


def test_an_exception_in_the_pass_ahead(
    model: LanguageModel, make_dictionary: Any, ids: Tensor, untouched: Any
) -> None:
    crossed = Site(
        make_dictionary("relu_crosscoder", 32, 24, source_widths=(16, 16)),
        model,
        hook_point=[PLACE, "blocks.2.hook_resid_post"],
    )

    def fails(value: Tensor) -> Tensor:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), Intervention(Ablate(crossed, 3)):
        model.logits(ids, edits={"blocks.0.hook_mlp_out": fails})


# Entering again


def test_again_and_within_itself(site: Site, ids: Tensor, untouched: Any) -> None:
    model = site.model
    intervention = Intervention(Scale(site, 3, 4.0))
    feature = int(site.dictionary.encode(model.read(ids, [PLACE])[PLACE]).sum((0, 1)).argmax())
    intervention = Intervention(Scale(site, feature, 4.0))
    with intervention:
        once = model.logits(ids)
    with intervention, intervention:
        with intervention:
            assert torch.equal(model.logits(ids), once)
        assert torch.equal(model.logits(ids), once)
    assert far_apart(once, model.logits(ids))
    with intervention:
        assert torch.equal(model.logits(ids), once)
    with Intervention(Scale(site, feature, 4.0)), Intervention(Scale(site, feature, 4.0)):
        assert far_apart(model.logits(ids), once)  # two of them are two


def test_the_inner_one_sees_what_the_outer_one_made(site: Site, ids: Tensor, untouched: Any) -> None:
    model, d = site.model, site.dictionary
    x = model.read(ids, [PLACE])[PLACE]
    unit = (d.W_dec[7] / d.W_dec[7].norm()).detach()
    added = 3.0 * d.W_dec[3].detach()

    def without(v: Tensor) -> Tensor:
        return v - (v * unit).sum(-1, keepdim=True) * unit

    add, project = Intervention(Add(site, 3, 3.0, "activation")), Intervention(ProjectOut(site, 7))
    for outer, inner, expected in [(add, project, without(x + added)), (project, add, without(x) + added)]:
        with outer, inner:
            assert torch.equal(model.read(ids, [PLACE])[PLACE], expected)
    with Intervention([Add(site, 3, 3.0, "activation"), ProjectOut(site, 7)]):
        assert torch.equal(model.read(ids, [PLACE])[PLACE], without(x + added))


def test_contexts_that_are_left_in_another_order(site: Site, ids: Tensor, untouched: Any) -> None:
    model = site.model
    one, two = Intervention(Add(site, 3, 3.0, "activation")), Intervention(Ablate(site, range(24)))
    with two:
        expected = model.logits(ids)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert torch.equal(model.logits(ids), expected)
    two.__exit__(None, None, None)
    untouched()


def test_a_model_that_is_read_in_the_middle_of_a_pass(
    tiny_model: Any, make_dictionary: Any, ids: Tensor, count_hooks: Any
) -> None:
    """A value that waits for the end of its block is not lost, nor what a transcoder has read."""
    for kind in ("gpt2", "gptj"):
        model = tiny_model(kind)
        plain = model.read(ids, ["blocks.0.hook_mlp_out"])["blocks.0.hook_mlp_out"]
        before = count_hooks(model)
        transcoder = Site(
            make_dictionary("transcoder", d_out=16),
            model,
            hook_point="blocks.1.hook_mlp_in",
            hook_point_out="blocks.1.hook_mlp_out",
        )
        middle = Site(
            make_dictionary(), model, hook_point="blocks.1.hook_mlp_in" if kind == "gptj" else "blocks.1.hook_resid_mid"
        )
        changes = [Add(middle, 3, 2.0, "activation"), Splice(transcoder, error_term=False)]
        with Intervention(changes):
            expected = model.logits(ids)
        seen: list[Tensor] = []

        def reads(f: Tensor, model: LanguageModel = model, seen: list[Tensor] = seen) -> Tensor:
            with model.edit({"blocks.0.hook_mlp_out": lambda value: value}):
                pass
            seen.append(model.read(ids[:, :3], ["blocks.0.hook_mlp_out"])["blocks.0.hook_mlp_out"])
            return f

        with Intervention([changes[0], Splice(transcoder, error_term=False, codes=reads)]):
            assert torch.equal(model.logits(ids), expected), kind
        assert torch.allclose(seen[0], plain[:, :3], atol=1e-12)
        assert count_hooks(model) == before


# Threads


def test_threads_see_only_their_own(site: Site, ids: Tensor, untouched: Any) -> None:
    model = site.model
    changes = {"add": Add(site, 3, 3.0, "activation"), "ablate": Ablate(site, range(24)), "plain": None, "module": None}
    expected: dict[str, Tensor] = {}
    for name, change in changes.items():
        if change is None:
            expected[name] = model.logits(ids)
        else:
            with Intervention(change):
                expected[name] = model.logits(ids)
    assert far_apart(expected["add"], expected["ablate"], expected["plain"])
    together = threading.Barrier(len(changes))
    shared = {name: Intervention(change) for name, change in changes.items() if change is not None}
    wrong: list[str] = []

    def run(name: str) -> None:
        try:
            for _ in range(25):
                together.wait(timeout=60)
                if name == "plain":
                    found = model.logits(ids)
                elif name == "module":  # waits for nobody
                    found = model.module(ids).logits
                else:
                    with shared[name]:
                        found = model.logits(ids)
                        again = model.module(ids).logits
                    found = found if torch.equal(found, again) else again * torch.nan
                if not torch.equal(found, expected[name]):
                    wrong.append(name)
        except BaseException as error:  # shown by the test
            wrong.append(f"{name}: {error!r}")
            together.abort()

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def in_a_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert found, "it waited in vain"
    return found[0]


def test_while_a_context_is_open_another_thread_that_calls_the_module_gets_it_plain(site: Site, ids: Tensor) -> None:
    model = site.model
    plain = model.logits(ids)
    with Intervention(Add(site, 3, 3.0, "activation")):
        changed = model.logits(ids)
        assert torch.equal(in_a_thread(lambda: model.module(ids).logits), plain)
        assert torch.equal(model.logits(ids), changed)


def test_an_error_in_one_thread_leaves_the_model_free(site: Site, ids: Tensor, untouched: Any) -> None:
    def fails() -> str:
        with pytest.raises(RuntimeError), Intervention(Add(site, 3, 1.0)):
            raise RuntimeError("inside")
        return "left"

    assert in_a_thread(fails) == "left"
    untouched()


def test_a_generator_that_another_thread_closes(site: Site, ids: Tensor, untouched: Any) -> None:
    model = site.model

    def texts() -> Iterator[Tensor]:
        with Intervention(Add(site, 3, 3.0, "activation")):
            while True:
                yield model.logits(ids)

    def begin() -> Iterator[Tensor]:
        opened = texts()
        next(opened)
        return opened

    opened = in_a_thread(begin)
    assert model.lock._owner is not None
    opened.close()
    untouched()
    opened = in_a_thread(begin)
    del opened
    gc.collect()
    untouched()


def test_the_lock() -> None:
    lock = OneThread()
    with pytest.raises(RuntimeError, match="more often"):
        lock.release()
    with lock, lock:
        assert lock.is_mine
        assert not in_a_thread(lambda: lock.is_mine)
    order: list[str] = []
    lock.acquire()
    waiting = threading.Thread(target=lambda: (lock.acquire(), order.append("second"), lock.release()), daemon=True)
    waiting.start()
    waiting.join(timeout=0.2)
    order.append("first")
    lock.release()
    waiting.join(timeout=30)
    assert order == ["first", "second"]
    assert not lock.is_mine


# Strengths that break the numbers


def test_strengths_that_overflow(tiny_model: Any, make_dictionary: Any, ids: Tensor, count_hooks: Any) -> None:
    for dtype, strength in [(torch.float16, 3e5), (torch.bfloat16, 3e39), (torch.float32, 3e39)]:
        model = tiny_model("gpt2", dtype)
        before, plain = count_hooks(model), model.logits(ids)
        site = Site(make_dictionary(dtype=torch.float32), model, hook_point=PLACE)
        words = rf"^(Add|Clamp) of feature 3 at {PLACE} with strength (300000|3e\+39) makes activations .* infinite"
        for change in (Add(site, 3, strength, "activation"), Clamp(site, 3, strength, "activation")):
            with pytest.raises(ValueError, match=words), Intervention([Add(site, 2, 1.0, "activation"), change]):
                model.logits(ids)
        assert count_hooks(model) == before
        assert torch.equal(model.logits(ids), plain)
        with Intervention(Add(site, 3, 2.0, "activation")):
            assert bool(torch.isfinite(model.logits(ids)).all())


def test_strengths_that_only_together_overflow(tiny_model: Any, make_dictionary: Any, ids: Tensor) -> None:
    model = tiny_model("gpt2", torch.float16)
    site = Site(make_dictionary(dtype=torch.float32), model, hook_point=PLACE)
    strong = 5e4 / float(site.dictionary.W_dec[3].detach().abs().max())
    with Intervention(Add(site, 3, strong, "activation", positions="generated")):
        model.logits(ids)
    with (
        pytest.raises(ValueError, match=r"Add of feature 3 .* makes activations"),
        Intervention([Add(site, 3, strong, "activation"), Add(site, 3, strong, "activation")]),
    ):
        model.read(ids, [PLACE])


def test_logits_that_are_no_numbers_are_not_handed_on(site: Site, ids: Tensor, untouched: Any) -> None:
    with (
        pytest.raises(ValueError, match=r"logits are no numbers, with Add of feature 3 .* strength 1e\+30.*smaller"),
        Intervention(Add(site, 3, 1e30, "activation")),
    ):
        site.model.logits(ids, edits={"transformer.ln_f": lambda value: value * torch.nan})


def test_what_was_broken_before_is_nobodys_fault(site: Site, ids: Tensor) -> None:
    def broken(value: Tensor) -> Tensor:
        value[0, 2] = torch.nan
        return value

    with site.model.edit({PLACE: broken}), Intervention(Add(site, 3, 1.0)):
        found = site.model.read(ids, [PLACE])[PLACE]
    assert int(found.isnan().any(-1).sum()) == 1


# Wrong input


@pytest.mark.parametrize("feature", [24, -1, True, 2.0, "3", None, torch.tensor(3)])
def test_features_that_there_are_not(feature: Any, site: Site) -> None:
    words = r"feature -?\d+ is out of range: .*24 features, 0 to 23" if type(feature) is int else "whole number, not by"
    for make in (
        lambda: Add(site, feature, 1.0, "activation"),
        lambda: Clamp(site, feature, 1.0, "activation"),
        lambda: Scale(site, feature, 1.0),
        lambda: Ablate(site, [2, feature]),
        lambda: ProjectOut(site, feature),
        lambda: Where(site, feature),
        lambda: site.max_activation(feature),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_numpys_whole_numbers_are_whole_numbers(site: Site, ids: Tensor) -> None:
    with Intervention([Ablate(site, np.arange(3)), Scale(site, np.int64(4), np.float32(2))]):  # type: ignore[arg-type]
        found = site.model.logits(ids)
    with Intervention([Ablate(site, (0, 1, 2)), Scale(site, 4, 2.0)]):
        assert torch.equal(site.model.logits(ids), found)


def test_strengths_that_are_none(site: Site) -> None:
    for strength in (float("nan"), float("inf"), -float("inf"), "strong", None, True):
        for make in (Add, Clamp):
            with pytest.raises(ValueError, match=r"a strength is a finite number, not .* feature 3"):
                make(site, 3, strength)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="a factor is a finite number"):
            Scale(site, 3, strength)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"strength 1e\+308 maximum activations is no finite activation"):
        Add(site, 3, 1e308)
    with pytest.raises(ValueError, match="unit is"):
        Add(site, 3, 1.0, "percent")  # type: ignore[arg-type]


def test_maxima_that_are_not_known(site: Site, model: LanguageModel, make_dictionary: Any) -> None:
    with pytest.raises(ValueError, match=r"feature 4 .* never fired .*\(0.0\); .*unit=\"activation\""):
        Add(site, 4, 1.0)
    with pytest.raises(ValueError, match=r"feature 5 .* never fired .*\(inf\)"):
        Clamp(site, 5, 1.0)
    with pytest.raises(ValueError, match="says nothing of feature 6"):
        Add(site, 6, 1.0)
    with pytest.raises(ValueError, match=r"need to know it for feature 3 .*give max_activations"):
        Add(Site(make_dictionary(), model, hook_point=PLACE), 3, 1.0)
    with pytest.raises(ValueError, match=r"shape \(23,\), .* 24 features"):
        Site(make_dictionary(), model, hook_point=PLACE, max_activations=torch.ones(23))

    def lacks(feature: int) -> float:
        raise LookupError(f"no page for {feature}")

    with pytest.raises(ValueError, match=r"feature 3 .*no page for 3"):
        Add(Site(make_dictionary(), model, hook_point=PLACE, max_activations=lacks), 3, 1.0)


def test_a_maximum_is_asked_for_once(model: LanguageModel, make_dictionary: Any, ids: Tensor) -> None:
    asked: list[int] = []
    site = Site(
        make_dictionary(), model, hook_point=PLACE, max_activations=lambda feature: asked.append(feature) or 2.0
    )  # type: ignore[func-returns-value]
    with Intervention(Add(site, 3, 1.0)):
        model.logits(ids)
        model.logits(ids)
    assert asked == [3]


def test_places_that_there_are_not(model: LanguageModel, make_dictionary: Any) -> None:
    with pytest.raises(HookPointError, match=r"no hook point 'model.layers.1'"):
        Site(make_dictionary(), model, hook_point="model.layers.1")
    with pytest.raises(HookPointError, match="3 blocks"):
        Site(make_dictionary(), model, hook_point="blocks.3.hook_resid_post")
    with pytest.raises(ValueError, match="which hook point it was trained on"):
        Site(make_dictionary(), model)
    with pytest.raises(ValueError, match=r"width 12 there, but blocks.1.hook_resid_post of tiny-gpt2 has 16"):
        Site(make_dictionary("relu", 12), model, hook_point=PLACE)
    with pytest.raises(ValueError, match="name it with hook_point_out"):
        Site(make_dictionary("transcoder", d_out=16), model, hook_point=PLACE)
    with pytest.raises(ValueError, match="hook_point_out is for transcoders"):
        Site(make_dictionary(), model, hook_point=PLACE, hook_point_out=PLACE)
    with pytest.raises(ValueError, match=r"widths \[8, 24\], but .* have \[16, 16\]"):
        Site(
            make_dictionary("relu_crosscoder", 32, 20, source_widths=(8, 24)),
            model,
            hook_point=[PLACE, "blocks.2.hook_resid_post"],
        )
    with pytest.raises(ValueError, match="a dictionary is needed here, not str"):
        Site("features", model)  # type: ignore[arg-type]


def test_interventions_that_are_none(site: Site, tiny_model: Any, make_dictionary: Any) -> None:
    other = Site(make_dictionary(), tiny_model("llama"), hook_point=PLACE)
    with pytest.raises(ValueError, match="not of nothing"):
        Intervention([])
    with pytest.raises(ValueError, match="not of int"):
        Intervention([Add(site, 3, 1.0), 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="changes of different models"):
        Intervention([Add(site, 3, 1.0), Ablate(other, 3)])
    with pytest.raises(ValueError, match="changes of different models"):
        Intervention(Add(site, 3, 1.0, positions=Where(other, 3)))
    with pytest.raises(ValueError, match="named twice"):
        Ablate(site, [3, 4, 3])


def test_texts_longer_than_the_context(site: Site, ids: Tensor, untouched: Any) -> None:
    model = site.model
    with Intervention(Add(site, 3, 1.0)):
        with pytest.raises(ValueError, match="33 tokens is longer than the 32"):
            model.logits(torch.full((1, 33), 5))
        cache = model.forward(torch.full((1, 30), 5), use_cache=True).past_key_values
        model.forward(torch.full((1, 2), 5), cache=cache)
        with pytest.raises(ValueError, match="33 tokens is longer than the 32"):
            model.forward(torch.full((1, 1), 5), cache=cache)
        cache = model.forward(ids[:, :3], use_cache=True).past_key_values
        with pytest.raises(ValueError, match=r"shape \(2, 1\), the token ids have \(2, 1\) after 3 cached"):
            model.forward(ids[:, 3:4], attention_mask=torch.ones(2, 1), cache=cache)


def test_a_part_of_the_model_by_itself(site: Site, ids: Tensor, untouched: Any) -> None:
    with Intervention(Add(site, 3, 1.0)), pytest.raises(ValueError, match="call the whole model inside the context"):
        site.model.module.transformer(ids)


def test_gradient_checkpointing(tiny_model: Any, make_dictionary: Any, ids: Tensor) -> None:
    source = tiny_model("llama")
    model = LanguageModel(copy.deepcopy(source.module), source.tokenizer, "own")
    site = Site(make_dictionary(), model, hook_point=PLACE)
    enable = "activation_checkpointing_enable"  # its name from transformers 5.23 on
    getattr(model.module, enable if hasattr(model.module, enable) else "gradient_checkpointing_enable")()
    with Intervention(Add(site, 3, 1.0, "activation")):
        model.logits(ids)  # in evaluation it does nothing
        model.module.train()
        with pytest.raises(ValueError, match="with gradient checkpointing"):
            model.module(ids)
        with torch.no_grad():
            model.module(ids)


def test_inference_mode(site: Site, ids: Tensor, untouched: Any) -> None:
    model = site.model
    change = [Add(site, 3, 1.0, positions=["all", Where(site, 2, so_far=True)]), Ablate(site, [2, 3])]
    with Intervention(change):
        expected = model.logits(ids)
        with torch.inference_mode():
            first = model.forward(ids, use_cache=True)
            assert torch.equal(first.logits, expected)
        with torch.no_grad():
            assert torch.equal(model.logits(ids), expected)
        assert torch.equal(model.logits(ids), expected)


def test_experts_and_the_places_in_them(tiny_model: Any, make_dictionary: Any, by_hand: Any, ids: Tensor) -> None:
    model = tiny_model("mixtral", torch.float32)  # its experts know no float64
    site = Site(make_dictionary(dtype=torch.float32), model, hook_point="model.layers.1.mlp")
    row = 2.0 * site.dictionary.W_dec[3].detach()
    with by_hand(model, "model.layers.1.mlp", lambda value: value + row):
        expected = model.logits(ids)
    with Intervention(Add(site, 3, 2.0, "activation")):
        assert torch.equal(model.logits(ids), expected)


def test_a_dictionary_on_another_device(model: LanguageModel, make_dictionary: Any, ids: Tensor) -> None:
    site = Site(make_dictionary().to("meta"), model, hook_point=PLACE)
    with (
        Intervention(Ablate(site, 3)),
        pytest.raises(ValueError, match=r"on meta, .* on cpu; .*dictionary.to\(device\)"),
    ):
        model.logits(ids)


def test_nothing_of_a_pass_is_held_after_it(site: Site, ids: Tensor) -> None:
    model = site.model
    held: list[weakref.ref[Tensor]] = []

    def see(f: Tensor) -> Tensor:
        held.append(weakref.ref(f))
        return f

    with Intervention([Splice(site, codes=see), Add(site, 3, 1.0, positions=Where(site, 2, so_far=True))]):
        model.logits(ids)
        model.read(ids, [PLACE])
        cache = model.forward(ids, use_cache=True).past_key_values
        kept = weakref.ref(cache)
        del cache
        gc.collect()
        assert [each() for each in (*held, kept)] == [None] * 4


def test_dictionaries_that_read_whole_texts(model: LanguageModel) -> None:
    from saescope.dictionaries import architecture

    made = architecture("temporal")
    dictionary = made(made.Config(d_in=16, d_sae=32, n_heads=2, bottleneck_factor=4))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="a temporal dictionary reads whole texts"):
        Site(dictionary, model, hook_point=PLACE)
