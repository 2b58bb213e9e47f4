"""Which tokens are changed: every rule against a mask written by hand, with and without a cache, batched and padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from saescope.interventions import Add, Intervention, Site, Where

PLACE = "blocks.1.hook_resid_post"
PATH = "transformer.h.1"
FEATURE = 4
# rows: padding, special (0 begins, 1 may come anywhere) and ordinary tokens
IDS = torch.tensor([[1, 1, 0, 7, 12, 30, 9], [0, 5, 22, 1, 8, 17, 33], [1, 1, 1, 1, 1, 13, 6]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]])
NEXT = torch.tensor([[4, 1, 19], [28, 6, 2], [3, 3, 1]])  # what is given as the continuation, special tokens as well
ALL_IDS = torch.cat([IDS, NEXT], dim=1)
ALL_MASK = torch.cat([MASK, torch.ones_like(NEXT)], dim=1)
PROMPT = 7

Given = Callable[[Any], Tensor]  # a mask [B, 10], of the fixture below


@pytest.fixture
def site(tiny_model: Any, make_dictionary: Any) -> Site:
    return Site(make_dictionary(), tiny_model("gpt2"), hook_point=PLACE)


def read_whole(model: Any, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """The prompt, and again with each next token, without a cache: logits of what is new."""
    found = [model.logits(ids[:, :PROMPT], attention_mask=mask[:, :PROMPT])]
    for end in range(PROMPT + 1, ids.shape[1] + 1):
        found.append(model.logits(ids[:, :end], attention_mask=mask[:, :end])[:, -1:])
    return found


def read_cached(model: Any, ids: Tensor, mask: Tensor, pieces: Sequence[int] = (1, 1, 1)) -> list[Tensor]:
    found, cache, begin = [], DynamicCache(config=model.module.config), 0
    for length in (PROMPT, *pieces):
        end = begin + length
        output = model.forward(ids[:, begin:end], attention_mask=mask[:, :end], cache=cache, use_cache=True)
        found.append(output.logits)
        begin = end
    return found


def added_by_hand(site: Site, by_hand: Any, wanted: Tensor, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """One row of the decoder added where ``wanted`` says, by a plain hook that is told the columns of each pass."""
    model, row = site.model, 3.0 * site.dictionary.W_dec[FEATURE].detach()
    cache, found, begin = DynamicCache(config=model.module.config), [], 0
    for length in (PROMPT, 1, 1, 1):
        end = begin + length
        columns = wanted[:, begin:end]

        def function(x: Tensor, columns: Tensor = columns) -> Tensor:
            new = x.clone()
            for b in range(len(x)):
                for t in range(x.shape[1]):
                    if columns[b, t]:
                        new[b, t] = x[b, t] + row
            return new

        with by_hand(model, PATH, function):
            output = model.forward(ids[:, begin:end], attention_mask=mask[:, :end], cache=cache, use_cache=True)
        found.append(output.logits)
        begin = end
    return found


def where_it_fires(site: Site, feature: int, above: float) -> Tensor:
    """Bool [B, 10]: a feature at the first block's end, on the plain model; not of tokens that come after a change."""
    x = site.model.read(ALL_IDS, [site.reads[0].name], attention_mask=ALL_MASK)[site.reads[0].name]
    return site.dictionary.encode(x)[..., feature] > above


def so_far(active: Tensor, counts: Tensor) -> Tensor:
    found = torch.zeros_like(active)
    for b in range(len(active)):
        seen = False
        for t in range(active.shape[1]):
            seen = seen or bool(active[b, t] and counts[b, t])
            found[b, t] = seen
    return found


@torch.no_grad()
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    "rule",
    [
        "all",
        "prompt",
        "generated",
        "rows",
        "one row",
        "where",
        "above",
        "so far",
        "so far from the prompt",
        "mask and so far",
        "two",
    ],
)
def test_every_rule(rule: str, special: bool, site: Site, make_dictionary: Any, by_hand: Any) -> None:
    model = site.model
    earlier = Site(make_dictionary(), model, hook_point="blocks.0.hook_mlp_out")
    x = earlier.dictionary.encode(
        model.read(ALL_IDS, [earlier.reads[0].name], attention_mask=ALL_MASK)[earlier.reads[0].name]
    )
    counts = ALL_MASK.bool() & (torch.ones_like(ALL_MASK).bool() if special else ALL_IDS > 1)
    shares = (x > 0)[counts].double().mean(0)
    feature = int((shares - 0.5).abs().argmin())  # one that fires on some tokens, and not on others
    everywhere = torch.ones_like(counts)  # one that fires on padding first, which has not "been active"
    rare = next(
        each
        for each in range(24)
        if not torch.equal(so_far(x[..., each] > 0, everywhere) & counts, so_far(x[..., each] > 0, counts) & counts)
        and bool((so_far(x[..., each] > 0, counts) & counts).any())
    )
    fired = [so_far(x[..., each] > 0, counts) & counts & ~(x[..., each] > 0) for each in range(24)]
    lasting = max(range(24), key=lambda each: int(fired[each][:, PROMPT:].sum()))  # one that fired in the prompt alone
    assert bool(fired[lasting][:, PROMPT:].any())
    level = 1.01 * float(x[..., feature][counts & (x[..., feature] > 0)].min())
    in_prompt = (torch.arange(10) < PROMPT).expand(3, 10)
    rows = torch.rand((3, PROMPT), generator=torch.Generator().manual_seed(0)) < 0.5
    padded = torch.cat([rows, torch.zeros(3, 3, dtype=torch.bool)], dim=1)
    fires, rarely = where_it_fires(earlier, feature, 0.0), where_it_fires(earlier, rare, 0.0)
    positions, wanted = {
        "all": ("all", torch.ones_like(counts)),
        "prompt": ("prompt", in_prompt),
        "generated": ("generated", ~in_prompt),
        "rows": (rows, padded),
        "one row": (rows[1], padded[1].expand(3, 10)),
        "where": (Where(earlier, feature), fires),
        "above": (Where(earlier, feature, above=level), where_it_fires(earlier, feature, level)),
        "so far": (Where(earlier, rare, so_far=True), so_far(rarely, counts)),
        "so far from the prompt": (
            Where(earlier, lasting, so_far=True),
            so_far(where_it_fires(earlier, lasting, 0.0), counts),
        ),
        "mask and so far": ([rows, Where(earlier, rare, so_far=True)], padded & so_far(rarely, counts)),
        "two": (["prompt", Where(earlier, feature)], in_prompt & fires),
    }[rule]
    wanted = wanted & counts
    assert bool(wanted.any())
    assert not bool(wanted.all())
    expected = added_by_hand(site, by_hand, wanted, ALL_IDS, ALL_MASK)
    change = Add(site, FEATURE, 3.0, "activation", positions=positions, special_tokens=special)
    intervention = Intervention(change)
    with intervention:
        cached = read_cached(model, ALL_IDS, ALL_MASK)
        pieces = read_cached(model, ALL_IDS, ALL_MASK, pieces=(2, 1))
        whole = read_whole(model, ALL_IDS, ALL_MASK)
    assert all(map(torch.equal, cached, expected))
    kept = ALL_MASK.bool()
    for found in (whole, [pieces[0], pieces[1][:, :1], pieces[1][:, 1:], pieces[2]]):
        torch.testing.assert_close(found[0][kept[:, :PROMPT]], expected[0][kept[:, :PROMPT]], rtol=0, atol=1e-10)
        for mine, other in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)
    for row in range(3):  # and each text by itself, without its padding
        real = ALL_MASK[row].bool()
        own = real.nonzero()[0, 0]
        if isinstance(positions, Tensor | list):
            continue  # their masks are those of the padded prompt
        with intervention:
            alone, cache = [], DynamicCache(config=model.module.config)
            for begin, end in ((int(own), PROMPT), (7, 8), (8, 9), (9, 10)):
                piece = ALL_IDS[row : row + 1, begin:end]
                alone.append(model.forward(piece, cache=cache, use_cache=True).logits)
        torch.testing.assert_close(alone[0][0], expected[0][row, own:], rtol=0, atol=1e-10)
        for mine, other in zip(alone[1:], expected[1:], strict=True):
            torch.testing.assert_close(mine[0], other[row], rtol=0, atol=1e-10)


def test_the_activations_of_padding_and_special_tokens_are_untouched(site: Site) -> None:
    model = site.model
    plain = model.read(IDS, [PLACE], attention_mask=MASK)[PLACE]
    with Intervention(Add(site, FEATURE, 3.0, "activation")):
        changed = model.read(IDS, [PLACE], attention_mask=MASK)[PLACE]
    moved = (changed != plain).any(-1)
    assert torch.equal(moved, MASK.bool() & (IDS > 1))
    with Intervention(Add(site, FEATURE, 3.0, "activation", special_tokens=True)):
        changed = model.read(IDS, [PLACE], attention_mask=MASK)[PLACE]
    assert torch.equal((changed != plain).any(-1), MASK.bool())


def test_a_condition_at_the_same_place_whatever_the_order(site: Site, make_dictionary: Any) -> None:
    model = site.model
    other = Site(make_dictionary("topk", k=3), model, hook_point=PLACE)
    x = model.read(IDS, [PLACE], attention_mask=MASK)[PLACE]
    f = other.dictionary.encode(x)
    feature = int((f > 0).double().mean((0, 1)).argmax())
    wanted = (f[..., feature] > 0) & MASK.bool() & (IDS > 1)
    expected = torch.where(wanted[..., None], x + 3.0 * site.dictionary.W_dec[FEATURE], x).detach()
    one = Add(site, FEATURE, 3.0, "activation", positions=Where(other, feature))
    with Intervention(one):
        assert torch.equal(model.read(IDS, [PLACE], attention_mask=MASK)[PLACE], expected)
    two = Add(other, 2, 1.0, "activation")  # the condition is that of the stream as it came
    first = torch.where((MASK.bool() & (IDS > 1))[..., None], expected + other.dictionary.W_dec[2], expected).detach()
    with Intervention([one, two]):
        assert torch.equal(model.read(IDS, [PLACE], attention_mask=MASK)[PLACE], first)
    with Intervention([two, one]):
        found = model.read(IDS, [PLACE], attention_mask=MASK)[PLACE]
    torch.testing.assert_close(found, first, rtol=0, atol=1e-12)


def test_the_same_dictionary_is_condition_and_target(site: Site) -> None:
    model = site.model
    x = model.read(IDS, [PLACE], attention_mask=MASK)[PLACE]
    f = site.dictionary.encode(x).detach()
    feature = int(((f > 0).double().mean((0, 1)) - 0.5).abs().argmin())
    wanted = (f[..., feature] > 0) & MASK.bool() & (IDS > 1)
    encoded: list[int] = []
    plain = type(site.dictionary).encode
    expected = torch.where(wanted[..., None], x - f[..., [feature]] * site.dictionary.W_dec[feature], x).detach()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(site.dictionary), "encode", lambda self, x: (encoded.append(1), plain(self, x))[1])
        from saescope.interventions import Ablate

        with Intervention(Ablate(site, feature, positions=Where(site, feature))):
            assert torch.equal(model.read(IDS, [PLACE], attention_mask=MASK)[PLACE], expected)
    assert len(encoded) == 1  # once for both


def test_a_condition_at_a_later_place_is_refused(site: Site, make_dictionary: Any) -> None:
    later = Site(make_dictionary(), site.model, hook_point="blocks.2.hook_resid_post")
    with (
        Intervention(Add(site, FEATURE, 1.0, "activation", positions=Where(later, 3))),
        pytest.raises(ValueError, match=r"depends on feature 3 at blocks.2.hook_resid_post, .* not come to yet"),
    ):
        site.model.logits(IDS)


def test_one_intervention_for_texts_one_after_another(site: Site) -> None:
    model = site.model
    change = Add(site, FEATURE, 3.0, "activation", positions="generated")
    used = Intervention(change)
    generator = torch.Generator().manual_seed(3)
    for length, cached in [(4, True), (6, False), (3, True), (6, True), (2, False), (4, False)]:
        ids = torch.randint(2, 40, (2, length), generator=generator)

        def run(within: Intervention, ids: Tensor = ids, cached: bool = cached) -> Tensor:
            with within:
                return model.module.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, use_cache=cached
                )

        assert torch.equal(run(used), run(Intervention(change)))


def test_two_texts_whose_passes_alternate(site: Site) -> None:
    """Each text goes by its own cache, also where the model made it."""
    model = site.model
    change = Add(site, FEATURE, 3.0, "activation", positions=["generated", Where(site, 1, so_far=True)])
    texts = [IDS[1:2, :5], IDS[1:2, 1:7]]

    def steps(within: Intervention, text: Tensor, given: bool) -> Any:
        cache, new = DynamicCache(config=model.module.config) if given else None, text
        for _ in range(4):
            with within:
                output = model.forward(new, cache=cache, use_cache=True)
            cache, new = output.past_key_values, output.logits[:, -1:].argmax(-1)
            yield output.logits

    for given in (True, False):
        expected = [list(steps(Intervention(change), text, given)) for text in texts]
        shared = Intervention(change)
        found = list(zip(*(steps(shared, text, given) for text in texts), strict=True))
        for which in (0, 1):
            assert all(torch.equal(both[which], alone) for both, alone in zip(found, expected[which], strict=True))


def test_reading_something_else_in_the_middle_of_a_generation(site: Site) -> None:
    model = site.model
    with Intervention(Add(site, FEATURE, 3.0, "activation", positions="generated")):
        expected = read_cached(model, ALL_IDS, ALL_MASK)
        cache, found, begin = DynamicCache(config=model.module.config), [], 0
        for length in (PROMPT, 1, 1, 1):
            end = begin + length
            output = model.forward(ALL_IDS[:, begin:end], attention_mask=ALL_MASK[:, :end], cache=cache, use_cache=True)
            found.append(output.logits)
            begin = end
            model.read(torch.full((3, 20), 9), [PLACE])
            model.width("transformer.h.2.mlp.c_fc")
    assert all(map(torch.equal, found, expected))


def test_beams_without_a_cache_share_their_prompt(site: Site) -> None:
    model = site.model
    settings: dict[str, Any] = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    settings["attention_mask"] = torch.ones_like(IDS[:2])
    with Intervention(Add(site, FEATURE, 3.0, "activation", positions="generated")):
        cached = model.module.generate(IDS[:2], **settings)
        whole = model.module.generate(IDS[:2], use_cache=False, **settings)
    assert torch.equal(cached, whole)


def test_a_context_that_begins_in_the_middle_of_a_text(site: Site, by_hand: Any) -> None:
    model = site.model
    wanted = torch.zeros(3, 10, dtype=torch.bool)
    wanted[:, 8:] = ALL_IDS[:, 8:] > 1  # the first new token was read before the context
    expected = added_by_hand(site, by_hand, wanted, ALL_IDS, ALL_MASK)
    cache = DynamicCache(config=model.module.config)
    model.forward(ALL_IDS[:, :7], attention_mask=ALL_MASK[:, :7], cache=cache)
    model.forward(ALL_IDS[:, 7:8], attention_mask=ALL_MASK[:, :8], cache=cache)
    for column in (8, 9):
        with Intervention(Add(site, FEATURE, 3.0, "activation", positions="generated")):
            output = model.forward(ALL_IDS[:, [column]], attention_mask=ALL_MASK[:, : column + 1], cache=cache)
        assert torch.equal(output.logits, expected[column - 6])
    with Intervention(Add(site, FEATURE, 3.0, "activation", positions="prompt")):
        model.forward(ALL_IDS[:, :2], attention_mask=torch.cat([ALL_MASK, ALL_MASK[:, :2]], 1), cache=cache)


@pytest.mark.parametrize("layout", ["left", "right"])
def test_masks_of_four_dimensions_and_caches_of_fixed_size(layout: str, site: Site) -> None:
    model = site.model
    mask = MASK if layout == "left" else MASK.flip(1)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    square = (causal & mask.bool()[:, None, :])[:, None]  # [B, 1, T, T]
    added = torch.zeros(square.shape, dtype=torch.float64).masked_fill(~square, -1e9)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    seen: list[Tensor] = []

    def see(value: Tensor) -> Tensor:
        seen.append(value)
        return value

    with Intervention(Add(site, FEATURE, 3.0, "activation")), model.tapped([(PLACE, see)]):
        for each in (mask, square, added):
            model.module(input_ids=IDS, attention_mask=each, position_ids=positions)
    for value in seen[1:]:
        torch.testing.assert_close(value[mask.bool()], seen[0][mask.bool()], rtol=0, atol=1e-6)
    with Intervention(Add(site, FEATURE, 3.0, "activation")), pytest.raises(ValueError, match=r"\(3, 5\), .* \(3, 7\)"):
        model.module(input_ids=IDS, attention_mask=mask[:, :5])


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_generation_with_a_cache_of_fixed_size(kind: str, tiny_model: Any, make_dictionary: Any) -> None:
    model = tiny_model(kind, torch.float32)  # Gemma 2 itself gives NaN for padding on the left in float64
    site = Site(make_dictionary(), model, hook_point=PLACE)
    settings = {"attention_mask": MASK, "max_new_tokens": 4, "do_sample": False}
    for positions in ("all", "generated"):
        with Intervention(Add(site, FEATURE, 3.0, "activation", positions=positions)):
            growing = model.module.generate(IDS, **settings)
            fixed = model.module.generate(IDS, cache_implementation="static", disable_compile=True, **settings)
        assert torch.equal(growing, fixed)


def test_a_mask_given_by_place_counts(site: Site) -> None:
    """``model(ids, past, mask)``: arguments without names are found."""
    model = site.model
    with Intervention(Add(site, FEATURE, 3.0, "activation", special_tokens=True)):
        named = model.module(input_ids=IDS, attention_mask=MASK).logits
        assert torch.equal(model.module(IDS, None, MASK).logits, named)


def test_embeddings_in_the_place_of_ids(site: Site) -> None:
    model = site.model
    embedded = model.module.get_input_embeddings()(IDS[:2])
    with Intervention(Add(site, FEATURE, 3.0, "activation", special_tokens=True)):
        assert torch.equal(model.module(inputs_embeds=embedded).logits, model.module(IDS[:2]).logits)
    words = r"special tokens can not be told .* special_tokens=True"
    with Intervention(Add(site, FEATURE, 3.0, "activation")), pytest.raises(ValueError, match=words):
        model.module(inputs_embeds=embedded)
    change = Add(
        site, FEATURE, 3.0, "activation", positions=["generated", Where(site, 1, so_far=True)], special_tokens=True
    )
    with Intervention(change):
        cache = DynamicCache(config=model.module.config)
        found = [model.module(inputs_embeds=embedded, past_key_values=cache).logits]
        found += [model.module(ALL_IDS[:2, [c]], past_key_values=cache).logits for c in (7, 8, 9)]
    with Intervention(change):
        expected = read_cached(model, ALL_IDS[:2], torch.ones(2, 10))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ("promt", "not 'promt'"),
        ([], "empty list"),
        (["all", 3], "not 3"),
        (7, "not 7"),
        (torch.tensor([0, 3]), r"a torch.int64 tensor of shape \(2,\)"),
        (torch.ones(2, 2, 2, dtype=torch.bool), r"shape \(2, 2, 2\)"),
    ],
)
def test_rules_that_are_none(positions: Any, words: str, site: Site) -> None:
    with pytest.raises(ValueError, match=words):
        Add(site, FEATURE, 1.0, "activation", positions=positions)


@pytest.mark.parametrize("shape", [(6,), (8,), (2, 7), (3, 6)])
def test_masks_of_another_shape(shape: tuple[int, ...], site: Site) -> None:
    change = Add(site, FEATURE, 1.0, "activation", positions=torch.ones(shape, dtype=torch.bool))
    with Intervention(change), pytest.raises(ValueError, match=r"the prompt has 3 texts of 7 tokens, padding counted"):
        site.model.logits(IDS, attention_mask=MASK)


def test_conditions_are_checked(site: Site) -> None:
    for above in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="at least 0"):
            Where(site, 3, above=above)
    with pytest.raises(ValueError, match="feature 24 is out of range"):
        Where(site, 24)
