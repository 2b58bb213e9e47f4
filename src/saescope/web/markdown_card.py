"""A feature as Markdown, to be put into an issue, a notebook or a message. Token text stands in code spans."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from saescope.store.records import FeaturePage, Neighbour, PageExample, TokenLogit
from saescope.web.numbers import decimal, percent, whole
from saescope.web.pieces import surroundings

_EXAMPLES, _LOGITS, _NEIGHBOURS = 10, 10, 5
_AROUND = 16  # tokens on either side of the peak
_ACTIVE = re.compile(r"[\\`*_{}\[\]<>#|~&!]")
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_BLANKS = {"\n": "↵", "\t": "⇥"}


def feature_markdown(page: FeaturePage, labels: dict[int, str]) -> str:
    """Label, numbers, logit effects, the strongest examples with the peak in «», neighbours, what people said."""
    return "\n".join(_lines(page, labels)) + "\n"


def _lines(page: FeaturePage, labels: dict[int, str]) -> Iterator[str]:
    feature, detail, dictionary = page.feature, page.detail, page.dictionary
    title = _plain(feature.label.text) if feature.label else "unlabelled"
    yield f"## Feature {feature.index} of {_plain(dictionary.name)}: {title}"
    yield ""
    yield f"{_plain(dictionary.model)}, {_plain(dictionary.hook_point)}, on {_plain(page.analysis.dataset)}"
    yield ""
    numbers = [("density", percent(feature.density)), ("firings", whole(feature.num_firings))]
    numbers += [("strongest", decimal(feature.max_activation))]
    for name, value in (("mean", feature.mean_positive), ("median", feature.median_positive)):
        numbers += [] if value is None else [(name, decimal(value))]
    if feature.label:
        for name in ("precision", "recall"):
            share = getattr(feature.label, name)
            numbers += [] if share is None else [(name, percent(share))]
        numbers += [] if feature.label.lift is None else [("lift", f"{decimal(feature.label.lift, 3)}×")]
    yield f"| {' | '.join(name for name, _ in numbers)} |"
    yield f"|{' ---: |' * len(numbers)}"
    yield f"| {' | '.join(value for _, value in numbers)} |"
    for explanation in page.explanations:
        by = ", ".join(filter(None, [explanation.author, explanation.method]))
        score = "" if explanation.score is None else f", score {decimal(explanation.score, 3)}"
        yield f"\n> {_plain(explanation.text)} ({_plain(by)}{score})"
    if detail.top_logits or detail.bottom_logits:
        yield f"\n- makes likelier: {_logits(detail.top_logits)}"
        yield f"- makes less likely: {_logits(detail.bottom_logits)}"
    if page.examples:
        yield "\nWhere it fires most:\n"
        for example in page.examples[:_EXAMPLES]:
            yield f"- {decimal(example.activation, 3, trim=False)} {_code(_excerpt(example))}"
    for kind, words in (("decoder", "by decoder row"), ("encoder", "by encoder row"), ("firing", "by firings")):
        if near := detail.neighbours.get(kind, ())[:_NEIGHBOURS]:
            yield f"\nNearest {words}: {_neighbours(near, labels)}"
    if page.tags:
        yield f"\nTags: {', '.join(map(_plain, page.tags))}"
    for note in page.notes:
        yield f"\nNote{f' by {_plain(note.author)}' if note.author else ''}: {_plain(note.text)}"


def _excerpt(example: PageExample) -> str:
    around = surroundings(example, _AROUND, _AROUND)
    before = "".join(piece.text for piece in around.before)
    after = "".join(piece.text for piece in around.after)
    return f"{'…' * around.more_before}{before}«{around.peak.text}»{after}{'…' * around.more_after}"


def _logits(tokens: Sequence[TokenLogit]) -> str:
    shown = [f"{_code(token.text)} {decimal(token.logit, 3, trim=False)}" for token in tokens[:_LOGITS]]
    return ", ".join(shown)


def _neighbours(near: Sequence[Neighbour], labels: dict[int, str]) -> str:
    shown = []
    for neighbour in near:
        label = f" {_plain(labels[neighbour.feature])}" if neighbour.feature in labels else ""
        shown.append(f"{neighbour.feature}{label} ({decimal(neighbour.value, 3, trim=False)})")
    return ", ".join(shown)


def _code(text: str) -> str:
    """A code span of any text: on one line, in more backticks than it holds."""
    seen = _UNSEEN.sub(_named, text)
    fence = "`" * (max(map(len, re.findall("`+", seen)), default=0) + 1)
    return f"{fence} {seen} {fence}"


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return _UNSEEN.sub(" ", _ACTIVE.sub(r"\\\g<0>", text))


def _named(found: re.Match[str]) -> str:
    code = ord(found[0])
    return _BLANKS.get(found[0]) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
