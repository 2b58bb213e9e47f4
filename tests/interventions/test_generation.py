"""Texts written under changes: the tokens of Hugging Face, of plain loops over hand-written hooks, and of other batches."""

from __future__ import annotations

import copy
import threading
from itertools import pairwise

import pytest
import torch

import saescope as ss
from saescope.interventions import Ablate, Add, Clamp, Intervention, Site, Splice, Where
from saescope.interventions.generation import generate, stream
from saescope.interventions.generation_run import Run
from saescope.interventions.generation_text import GrowingText, prompt_ids_of
from saescope.interventions.sampling import gumbel_noise
from saescope.interventions.side_by_side import side_by_side, stream_side_by_side
from saescope.models import LanguageModel
from saescope.models.token_text import TokenReader

HOOK = "blocks.1.hook_resid_post"  # the output of transformer.h[1]
PROMPTS = ["def alpha(x", "return", "    return x + 7\ndef beta(x, mu)"]


def random_dictionary(dtype=torch.float64, d_sae=24):
    torch.manual_seed(1)
    dictionary = ss.ReLU(ss.ReLU.Config(d_in=16, d_sae=d_sae)).to(dtype)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.normal_(std=0.5)
    return dictionary


@pytest.fixture(scope="module")
def double(tiny):
    """The tiny model in float64."""
    return LanguageModel(copy.deepcopy(tiny.module).double(), tiny.tokenizer, "tiny64")


@pytest.fixture(scope="module")
def site(double):
    return Site(random_dictionary(), double, hook_point=HOOK, max_activations={3: 2.0, 5: 1.5})


def make_changes(site, positions="all"):
    return [Add(site, 3, 2.0, positions=positions), Clamp(site, 5, 3.0, positions=positions)]


def hand_changed(site, positions, num_prompt):
    """A hook for transformer.h[1] that does by hand what ``make_changes`` says, on one text without padding."""
    dictionary = site.dictionary

    def hook(module, args, output):
        x = output[0] if isinstance(output, tuple) else output
        f = dictionary.encode(x)
        d = dictionary.direction
        changed = x + 4.0 * d(3) + (4.5 - f[..., 5:6]) * d(5)
        column = torch.arange(x.shape[1])[None, :, None]
        chosen = {"all": column >= 0, "prompt": column < num_prompt, "generated": column >= num_prompt}[positions]
        special = hook.ids == 0
        new = torch.where(chosen & ~special[..., None], changed, x)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


@torch.no_grad()
def hand_logits(model, ids, site=None, positions="all", num_prompt=0):
    """Logits ``[T, V]`` of one whole text, without a cache."""
    given = torch.tensor([ids])
    if site is None:
        return model.module(given, use_cache=False).logits[0]
    hook = hand_changed(site, positions, num_prompt)
    hook.ids = given
    handle = model.module.transformer.h[1].register_forward_hook(hook)
    try:
        return model.module(given, use_cache=False).logits[0]
    finally:
        handle.remove()


def hand_written(model, ids, num_new, *, site=None, positions="all", temperature=0.0, seed=0, number=0):
    """New ids, each from a pass over the whole text."""
    text = list(ids)
    for step in range(num_new):
        logits = hand_logits(model, text, site, positions, len(ids))[-1]
        if temperature:
            logits = logits / temperature + torch.from_numpy(gumbel_noise(seed, number, step, len(logits)))
        text.append(int(logits.argmax()))
    return text[len(ids) :]


def text_of(tokenizer, ids):
    """By the bytes of byte-level BPE; bytes that form no character as codes."""
    bytes_of = {character: byte for byte, character in _byte_tokens().items()}
    pieces = tokenizer.convert_ids_to_tokens(ids)
    return bytes(bytes_of[each] for piece in pieces for each in piece).decode(errors="backslashreplace")


def padded(prompt_ids):
    width = max(map(len, prompt_ids))
    ids = torch.tensor([[0] * (width - len(each)) + each for each in prompt_ids])
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompt_ids])
    return ids, mask


@pytest.mark.parametrize("positions", [None, "all", "prompt", "generated"])
def test_greedy_text_is_that_of_hugging_face(double, site, positions):
    changes = [] if positions is None else make_changes(site, positions)
    found = generate(double, PROMPTS, changes=changes, max_new_tokens=8, temperature=0, stop_at_end=False)
    ids, mask = padded(found.prompt_ids)
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
    if changes:
        with Intervention(changes):
            expected = double.module.generate(ids, attention_mask=mask, **options)
    else:
        expected = double.module.generate(ids, attention_mask=mask, **options)
    assert found.new_ids == expected[:, ids.shape[1] :].tolist()
    assert found.texts == [text_of(double.tokenizer, new) for new in found.new_ids]


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_drawn_text_is_that_of_a_plain_loop_over_hand_written_hooks(double, site, positions, use_cache):
    settings = {"max_new_tokens": 7, "temperature": 0.8, "seed": 4, "stop_at_end": False, "use_cache": use_cache}
    plain = generate(double, PROMPTS, **settings)
    steered = generate(double, PROMPTS, changes=make_changes(site, positions), **settings)
    assert plain.new_ids != steered.new_ids
    for number, ids in enumerate(plain.prompt_ids):
        drawn = {"temperature": 0.8, "seed": 4, "number": number}
        assert plain.new_ids[number] == hand_written(double, ids, 7, **drawn)
        expected = hand_written(double, ids, 7, site=site, positions=positions, **drawn)
        assert steered.new_ids[number] == expected
        for found, where in ((plain, None), (steered, site)):
            logits = hand_logits(double, ids + found.new_ids[number], where, positions, len(ids))
            log_p = logits.log_softmax(-1)[len(ids) - 1 : -1]
            at_token = [float(row[token]) for row, token in zip(log_p, found.new_ids[number], strict=True)]
            assert found.log_probabilities[number] == pytest.approx(at_token, abs=1e-9)


def test_the_seed_decides_and_a_change_that_does_nothing_writes_the_same(double, site):
    settings = {"max_new_tokens": 10, "seed": 1, "stop_at_end": False}
    first = generate(double, PROMPTS, **settings)
    assert generate(double, PROMPTS, **settings) == first
    assert generate(double, PROMPTS, **{**settings, "seed": 2}).new_ids != first.new_ids
    same = generate(double, PROMPTS, changes=[Add(site, 3, 0.0), Splice(site)], **settings)
    assert same.new_ids == first.new_ids
    # two prompts that are equal have noise of their own
    twice = generate(double, [PROMPTS[0]] * 2, **settings)
    assert twice.new_ids[0] != twice.new_ids[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_is_continued_alike_whatever_its_batch_mates(tiny, temperature):
    """In float32, where padding rounds otherwise."""
    site = Site(random_dictionary(torch.float32), tiny, hook_point=HOOK, max_activations={3: 2.0, 5: 1.5})
    condition = Where(site, 7, above=0.1, so_far=True)
    changes = [*make_changes(site), Add(site, 5, 1.0, positions=["generated", condition])]
    settings = {"changes": changes, "max_new_tokens": 9, "temperature": temperature, "stop_at_end": False}
    together = generate(tiny, PROMPTS, **settings)
    for number, prompt in enumerate(PROMPTS):
        alone = generate(tiny, prompt, first_prompt=number, **settings)
        assert alone.new_ids == [together.new_ids[number]]
        assert alone.log_probabilities[0] == pytest.approx(together.log_probabilities[number], abs=1e-4)
    other = generate(tiny, [PROMPTS[0], "x" * 12, PROMPTS[2]], **settings)
    assert [other.new_ids[0], other.new_ids[2]] == [together.new_ids[0], together.new_ids[2]]


def test_an_end_token_stops_its_text_and_no_other(double, site):
    free = generate(double, PROMPTS, max_new_tokens=8, seed=3, stop_at_end=False)
    end = free.new_ids[1][3]
    first_at = [ids.index(end) if end in ids else None for ids in free.new_ids]
    ended = LanguageModel(copy.deepcopy(double.module), double.tokenizer, "ends")
    ended.module.generation_config.eos_token_id = [end, 319]
    found = generate(ended, PROMPTS, max_new_tokens=8, seed=3)
    assert found.ended == [at is not None for at in first_at]
    assert found.new_ids == [
        ids[: at + 1] if at is not None else ids for ids, at in zip(free.new_ids, first_at, strict=True)
    ]
    written = [ids[:at] for ids, at in zip(free.new_ids, first_at, strict=True)]
    assert found.texts == [text_of(double.tokenizer, ids) for ids in written]
    assert generate(ended, PROMPTS, max_new_tokens=8, seed=3, stop_at_end=False).new_ids == free.new_ids
    steps = list(stream(ended, PROMPTS, max_new_tokens=8, seed=3))
    assert len([token for step in steps for token in step.tokens if token.prompt == 1]) == first_at[1] + 1
    assert [token.prompt for step in steps for token in step.tokens if token.is_last and token.token_id == end]


def test_the_stream_is_the_text_token_by_token(double, site):
    settings = {"changes": make_changes(site), "max_new_tokens": 9, "seed": 6, "stop_at_end": False}
    whole = generate(double, PROMPTS, **settings)
    steps = list(stream(double, PROMPTS, **settings))
    assert [step.number for step in steps] == list(range(9))
    for number in range(len(PROMPTS)):
        tokens = [step.tokens[number] for step in steps]
        assert [token.prompt for token in tokens] == [number] * 9
        assert [token.token_id for token in tokens] == whole.new_ids[number]
        assert [token.log_probability for token in tokens] == whole.log_probabilities[number]
        texts = [token.text for token in tokens]
        assert texts[-1] == whole.texts[number]
        assert all(after.startswith(before) for before, after in pairwise(texts))
        assert [token.is_last for token in tokens] == [False] * 8 + [True]


def test_the_model_is_free_between_steps_and_any_thread_may_go_on(double, site):
    changes = make_changes(site, "generated")
    settings = {"max_new_tokens": 6, "seed": 2, "stop_at_end": False}
    expected = generate(double, PROMPTS, changes=changes, **settings).new_ids
    other_expected = generate(double, PROMPTS, **settings).new_ids
    seen, seen_other, was_free = [], [], []
    steered, plain = stream(double, PROMPTS, changes=changes, **settings), stream(double, PROMPTS, **settings)

    def one_step():
        with double.lock:
            was_free.append(True)
        seen.append([token.token_id for token in next(steered).tokens])
        seen_other.append([token.token_id for token in next(plain).tokens])

    for _ in range(6):
        thread = threading.Thread(target=one_step)
        thread.start()
        thread.join(60)
    assert was_free == [True] * 6
    assert [list(ids) for ids in zip(*seen, strict=True)] == expected
    assert [list(ids) for ids in zip(*seen_other, strict=True)] == other_expected


def test_the_model_is_held_within_a_step(double, site):
    held, threads = [], []

    def take():
        with double.lock:
            pass

    def look(value):
        threads.append(threading.Thread(target=take))
        threads[-1].start()
        threads[-1].join(0.2)
        held.append(threads[-1].is_alive())
        return value

    steps = stream(double, PROMPTS[:1], changes=Splice(site, codes=look, error_term=False), max_new_tokens=3)
    next(steps)
    threads[0].join(60)
    assert not threads[0].is_alive()
    next(steps)
    threads[1].join(60)
    assert held == [True, True]
    assert not threads[1].is_alive()


def test_a_stream_that_is_left_leaves_the_model_as_it_was(double, site):
    ids = torch.tensor([[5, 6, 7]])
    before = double.logits(ids)
    steps = stream(double, PROMPTS, changes=make_changes(site), max_new_tokens=5)
    next(steps)
    assert double.logits(ids).equal(before)
    steps.close()
    assert double.logits(ids).equal(before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in double.module.modules())


def test_a_stream_side_by_side_is_both_texts_with_their_numbers(double, site):
    changes, settings = make_changes(site, "generated"), {"max_new_tokens": 6, "seed": 9, "stop_at_end": False}
    whole = side_by_side(double, PROMPTS, changes, **settings)
    pairs = list(stream_side_by_side(double, PROMPTS, changes, **settings))
    for number in range(len(PROMPTS)):
        plain = [pair.plain[number] for pair in pairs]
        steered = [pair.steered[number] for pair in pairs]
        assert [token.token_id for token in plain] == whole.plain.new_ids[number]
        assert [token.token_id for token in steered] == whole.steered.new_ids[number]
        assert [token.log_probability_plain for token in steered] == pytest.approx(
            whole.scores.log_probabilities_plain[number], abs=1e-9
        )
        assert [token.kl for token in steered] == pytest.approx(whole.scores.kl[number], abs=1e-9)
        assert plain[0].kl is None


def test_sides_that_stop_at_different_steps_go_on_alone(double, site):
    ended = LanguageModel(copy.deepcopy(double.module), double.tokenizer, "ends")
    place = Site(site.dictionary, ended, hook_point=HOOK, max_activations={3: 2.0, 5: 1.5})
    changes, settings = make_changes(place), {"max_new_tokens": 8, "seed": 9}
    free = side_by_side(ended, PROMPTS[:1], changes, **settings, stop_at_end=False)
    (plain,), (steered,) = free.plain.new_ids, free.steered.new_ids
    end = next(token for token in steered[:5] if token not in plain)
    ended.module.generation_config.eos_token_id = end
    pairs = list(stream_side_by_side(ended, PROMPTS[:1], changes, **settings))
    assert len(pairs) == 8
    assert [len(pair.steered) for pair in pairs] == [1] * (steered.index(end) + 1) + [0] * (7 - steered.index(end))
    assert [pair.plain[0].token_id for pair in pairs] == plain
    assert side_by_side(ended, PROMPTS[:1], changes, **settings).steered.new_ids == [steered[: steered.index(end) + 1]]


def test_growing_text_never_splits_a_character(tokenizer):
    byte_ids = {i: tokenizer.convert_tokens_to_ids(c) for i, c in _byte_tokens().items()}
    text = "é漢字🎉 ok \\xe2\\x80 ’"
    ids = [byte_ids[byte] for byte in text.encode()]
    before = [byte_ids[byte] for byte in b"a" + text.encode()[:1]]  # half of the first character
    growing = GrowingText(TokenReader(tokenizer), before, frozenset())
    texts = [growing.read(ids[1 : n + 1], whole=n == len(ids) - 1) for n in range(1, len(ids))]
    assert texts[-1] == text
    assert all(text.startswith(each) for each in texts)
    assert all("\\x" not in each for each in texts[:12])
    # bytes that nothing completes are shown at the end, and not before something else follows
    growing = GrowingText(TokenReader(tokenizer), [byte_ids[ord("a")]], frozenset())
    lead = [byte_ids[byte] for byte in "漢".encode()[:2]]
    assert growing.read(lead, whole=False) == ""
    assert growing.read(lead, whole=True) == "\\xe6\\xbc"
    assert growing.read([*lead, byte_ids[ord("b")]], whole=False) == "\\xe6\\xbcb"
    surrogate = [byte_ids[byte] for byte in b"\xed\xa0\x80"]  # as many bytes as a character has, and none
    assert growing.read(surrogate, whole=False) == "\\xed\\xa0\\x80"
    assert growing.read([], whole=True) == ""


def _byte_tokens():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


def test_prompts_may_be_texts_or_ids_of_one_or_several(double):
    ids = double.tokenizer("return").input_ids
    assert prompt_ids_of(double, "return") == [ids]
    assert prompt_ids_of(double, ["return", "x"])[0] == ids
    assert prompt_ids_of(double, ids) == [ids]
    assert prompt_ids_of(double, [ids, [5]]) == [ids, [5]]
    assert prompt_ids_of(double, torch.tensor([ids])) == [ids]
    assert prompt_ids_of(double, "return", prepend_bos=True) == [[0, *ids]]
    assert prompt_ids_of(double, ["", "x"])[0] == [0]  # from <|endoftext|>
    found = generate(double, "", max_new_tokens=3, temperature=0, stop_at_end=False)
    assert found.new_ids == [hand_written(double, [0], 3)]


def test_ids_alone_do_without_a_tokenizer(double):
    silent = LanguageModel(double.module, None, "silent")
    found = generate(silent, [[5, 6]], max_new_tokens=3, temperature=0, stop_at_end=False)
    assert found.texts == ["".join(f"<{token}>" for token in found.new_ids[0])]
    with pytest.raises(ValueError, match="without a tokenizer; give prompts as lists of token ids"):
        generate(silent, "text")
    with pytest.raises(
        ValueError, match="prompt 0 is empty, and the tokenizer of silent has no beginning-of-text token"
    ):
        generate(silent, [[]])


@pytest.mark.parametrize(
    ("prompts", "settings", "words"),
    [
        ([], {}, "no prompt was given"),
        ([[320]], {}, r"prompt 0 has the token id 320, and the vocabulary of tiny64 has 0 to 319"),
        ([[3], [-1]], {}, "prompt 1 has the token id -1"),
        ([[1.5]], {}, "prompt 0 is neither a text nor a list of token ids: it holds 1.5"),
        ([7.0], {}, "prompt 0 is neither a text nor a list of token ids, but float"),
        ([[5] * 40], {"max_new_tokens": 1}, "prompt 0 has 40 tokens, and tiny64 reads at most 32"),
        ([[5] * 32], {"max_new_tokens": 1}, "prompt 0 has 32 tokens, and tiny64 reads at most 32"),
        ([[5], [5] * 30], {"max_new_tokens": 3}, "prompt 1 has 30 tokens and 3 are to follow.* at most 2 new tokens"),
        ("x", {"max_new_tokens": 0}, "max_new_tokens is a number of tokens, at least 1, not 0"),
        ("x", {"temperature": -1.0}, "temperature is 0"),
        ("x", {"first_prompt": -1}, "first_prompt is a prompt's number"),
    ],
    ids=str,
)
def test_what_can_not_be_continued_is_refused_before_anything_runs(double, prompts, settings, words):
    with pytest.raises(ValueError, match=words):
        generate(double, prompts, **settings)
    with pytest.raises(ValueError, match=words):
        stream(double, prompts, **settings)  # at once, without a step


def test_the_whole_context_can_be_used(double):
    found = generate(double, [[5] * 29], max_new_tokens=3, temperature=0, stop_at_end=False)
    assert found.new_ids == [hand_written(double, [5] * 29, 3)]


def test_changes_of_another_model_are_refused(tiny, double, site):
    with pytest.raises(ValueError, match=r"a change of the model tiny64, .* another object, tiny;"):
        generate(tiny, "x", changes=make_changes(site), max_new_tokens=3)
    with pytest.raises(ValueError, match="an intervention is made of changes"):
        generate(double, "x", changes=["louder"], max_new_tokens=3)


def test_a_model_of_masked_tokens_is_refused():
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(ValueError, match="generation needs a causal language model; masked predicts masked tokens"):
        generate(LanguageModel(BertForMaskedLM(config), None, "masked"), [[3]])


def test_logits_that_are_no_numbers_are_stopped_and_named(tiny, double, site):
    small = Site(random_dictionary(torch.float32), tiny, hook_point=HOOK, max_activations={3: 2.0})
    named = r"no numbers.* Add of feature 3 .* strength 1e\+30.*: choose a smaller strength"
    with pytest.raises(ValueError, match=named):
        generate(tiny, ["x", "y"], changes=Add(small, 3, 1e30), max_new_tokens=3)
    late = stream(tiny, "x", changes=Add(small, 3, 1e30, positions="generated"), max_new_tokens=3, stop_at_end=False)
    next(late)
    with pytest.raises(ValueError, match=named):
        next(late)
    assert torch.isfinite(tiny.logits(torch.tensor([[5, 6]]))).all()
    broken = LanguageModel(copy.deepcopy(double.module), double.tokenizer, "broken")
    broken.module.transformer.ln_f.weight.data[0] = torch.nan
    with pytest.raises(
        ValueError, match=r"text 0 .* at the prompt, and nothing was changed: is the model broken intact"
    ):
        generate(broken, ["x", "y"], max_new_tokens=3)


def test_infinite_logits_are_stopped_too(double, site):
    """An infinite logit is no NaN, and yet nothing can be drawn from it."""
    endless = LanguageModel(copy.deepcopy(double.module), double.tokenizer, "endless")
    place = Site(site.dictionary, endless, hook_point=HOOK, max_activations={3: 2.0})
    handle = endless.module.register_forward_hook(_infinite)
    try:
        with pytest.raises(
            ValueError, match=r"text 1 .* infinite after 1 new tokens, with Add of feature 3 .* strength 2"
        ):
            generate(endless, [[5], [6]], changes=Add(place, 3, 2.0), max_new_tokens=3, stop_at_end=False)
    finally:
        handle.remove()


def _infinite(module, args, output):
    if output.logits.shape[1] == 1 and output.past_key_values.get_seq_length() > 1:
        output.logits[1, -1, 7] = torch.inf
    return output


def test_padding_and_ended_texts_are_not_looked_at(double):
    """What the model makes of padding may be anything; only tokens are checked."""
    run = Run(double, [[5], [6, 7, 8]])
    logits = run.read_prompts()
    assert torch.allclose(logits[0], hand_logits(double, [5])[-1])
    read = run.read(torch.tensor([[9], [0]]), torch.tensor([[True], [False]]))
    assert torch.allclose(read[0, 0], hand_logits(double, [5, 9])[-1])
    again = run.read(torch.tensor([[4], [0]]), torch.tensor([[True], [False]]))
    assert torch.allclose(again[0, 0], hand_logits(double, [5, 9, 4])[-1])


def test_what_the_model_makes_of_padding_does_not_stop_it(double):
    expected = generate(double, [[5], [6, 7, 8]], max_new_tokens=3, stop_at_end=False)
    handle = double.module.register_forward_hook(_broken_padding)
    try:
        assert generate(double, [[5], [6, 7, 8]], max_new_tokens=3, stop_at_end=False) == expected
    finally:
        handle.remove()


def _broken_padding(module, args, output):
    if output.logits.shape[1] == 3:
        output.logits[0, :2] = torch.nan
    return output


def test_removing_features_from_what_is_generated_changes_nothing_of_the_prompt(double, site):
    """The first new token is drawn before anything was generated."""
    every = Ablate(site, list(range(24)), positions="generated")
    plain, ablated = (
        generate(double, PROMPTS, changes=each, max_new_tokens=6, temperature=0, stop_at_end=False)
        for each in ((), every)
    )
    assert [ids[0] for ids in ablated.new_ids] == [ids[0] for ids in plain.new_ids]
    assert [row[0] for row in ablated.log_probabilities] == pytest.approx([row[0] for row in plain.log_probabilities])
    assert ablated.log_probabilities != plain.log_probabilities


@pytest.mark.parametrize("kind", ["llama", "gemma2", "opt", "phi", "mixtral"])
def test_other_families_write_what_they_write_in_hugging_face(tiny_model, blocks, make_dictionary, kind):
    """Greedy, with padding on the left. In float32: where nothing can be attended to, Gemma 2 has no numbers in float64."""
    model = tiny_model(kind, torch.float32)
    site = Site(make_dictionary(dtype=torch.float32), model, hook_point=f"{blocks(kind)}.1.output")
    changes = [Add(site, 3, 4.0, "activation", positions="generated"), Clamp(site, 5, 3.0, "activation")]
    found = generate(model, [[5, 6, 7, 8, 9, 10], [11], [12, 13]], changes=changes, max_new_tokens=9, temperature=0)
    ids, mask = padded(found.prompt_ids)
    options = {"do_sample": False, "max_new_tokens": 9, "min_new_tokens": 9, "pad_token_id": 0, "eos_token_id": None}
    with Intervention(changes):
        expected = model.module.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()
    ends = [row.index(1) + 1 if 1 in row else 9 for row in expected]  # 1 is </s>, at which saescope stops
    assert found.new_ids == [row[:end] for row, end in zip(expected, ends, strict=True)]
    for number, prompt in enumerate(found.prompt_ids):
        alone = generate(model, prompt, changes=changes, max_new_tokens=9, temperature=0, use_cache=False)
        assert alone.new_ids == [found.new_ids[number]]
