"""Labels of tokens from Python itself: against plain loops over characters, on source whose truth is written down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from saescope.activations import Document, TokenWindows, WindowConfig
from saescope.activations.python_syntax import CLASS_NAMES, syntax_classes
from saescope.evaluation.probing.python_labels import (
    DEFAULT_NAMES,
    DEPTH_NAMES,
    HIERARCHIES,
    hierarchy_labels,
    line_depths,
    python_labels,
)
from saescope.evaluation.sample import TokenSample, read_sample

SOURCE = '''\
"""Module docstring.

Second line.
"""
import os  # after code

# before the class

class Alpha:
    """Docstring of Alpha."""

    x = 1

    def beta(self, gamma=2):
        for delta in range(gamma):
            if delta:
                print(
  delta, "text")
            # indented like the loop's body
        # indented like the method's body
    # indented like the class's body
# at the left
\tand_tab = 3
'''.replace("\tand_tab", "and_tab")

DEPTHS = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 0]


@pytest.fixture(scope="module")
def text(tokenizer: Any) -> TokenWindows:
    documents = [
        Document("a.py", SOURCE),
        Document("b.py", SOURCE.replace("\n", "\r\n")),
        Document("c.py", "x = 1\n" * 40),
    ]
    return TokenWindows.build(documents, tokenizer, WindowConfig(context_size=24))


@pytest.fixture(scope="module")
def sample(tiny: Any, text: TokenWindows) -> TokenSample:
    return read_sample(tiny, text, ["transformer.h.0"])


def test_depth_of_each_line() -> None:
    assert line_depths(SOURCE).tolist() == DEPTHS
    assert line_depths(SOURCE.replace("\n", "\r\n")).tolist() == DEPTHS
    assert line_depths("\ufeff" + SOURCE).tolist() == DEPTHS
    assert line_depths("").tolist() == [0]
    assert line_depths("\n\n").tolist() == [0, 0, 0]
    assert line_depths("if x:\n\ty\n\tif z:\n\t\tw\n\t# c\nv").tolist() == [0, 1, 1, 2, 1, 0]
    assert line_depths("def f():\n    # first\n    return 1").tolist() == [0, 1, 1]


def test_labels_are_those_of_the_characters_of_each_token(tokenizer, text: TokenWindows, sample: TokenSample) -> None:
    names = (*DEFAULT_NAMES, "keyword `def`", "name", "string")
    labels = python_labels(sample, text, tokenizer, names)
    labels.check(sample)
    assert labels.names == names
    for row, (position, number) in enumerate(zip(sample.position.tolist(), sample.document.tolist(), strict=True)):
        document, place = text.document_of(position)
        assert document is text.documents[number]
        encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)
        start, end = encoded["offset_mapping"][place]
        visible = [i for i in range(start, end) if not document.text[i].isspace()]
        first = visible[0] if visible else start
        spans = syntax_classes(document.text)
        expected = {span.name for span in spans if span.start < end and span.end > first}
        line = document.text.replace("\r\n", " \n")[: visible[0] if visible else end - 1].count("\n")
        depths = DEPTHS if number < 2 else [0] * 50
        expected.add(DEPTH_NAMES[min(depths[line], 3)])
        assert {name for name, value in zip(names, labels.values[row], strict=True) if value} == expected & set(names)
    assert labels.values.any(0)[[names.index(name) for name in ("docstring", "comment", *DEPTH_NAMES)]].all()
    depth = np.stack([labels.column(name) for name in DEPTH_NAMES])
    assert (depth.sum(0) == 1).all()


def test_part_of_the_sample_gets_the_same_labels(tokenizer, text: TokenWindows, sample: TokenSample) -> None:
    whole = python_labels(sample, text, tokenizer)
    tokens = np.random.default_rng(0).permutation(len(sample))[:30]
    part = python_labels(sample.select(tokens), text, tokenizer)
    np.testing.assert_array_equal(part.values, whole.values[tokens])


def test_text_that_is_cut_off_or_packed_apart_has_the_same_labels(tiny, tokenizer, text) -> None:
    short = TokenWindows.build(text.documents, tokenizer, WindowConfig(context_size=16, max_tokens=150))
    apart = TokenWindows.build(text.documents, tokenizer, WindowConfig(context_size=24, packing="separate"))
    for windows in (short, apart):
        part = read_sample(tiny, windows, ["transformer.h.0"])
        labels = python_labels(part, windows, tokenizer, ("docstring", *DEPTH_NAMES))
        all_tokens = read_sample(tiny, replace(apart, config=apart.config), ["transformer.h.0"])
        reference = python_labels(all_tokens, apart, tokenizer, ("docstring", *DEPTH_NAMES))
        separators = windows.separator_id is not None
        place = {
            (document, position - int(apart.document_starts[document])): row
            for row, (document, position) in enumerate(zip(all_tokens.document, all_tokens.position, strict=True))
        }
        rows = [
            place[document, position - int(windows.document_starts[document]) - separators]
            for document, position in zip(part.document, part.position, strict=True)
        ]
        np.testing.assert_array_equal(labels.values, reference.values[rows])


def test_default_names_exist() -> None:
    assert set(DEFAULT_NAMES) <= {*CLASS_NAMES, *DEPTH_NAMES}
    assert len(set(DEFAULT_NAMES)) == len(DEFAULT_NAMES) >= 20
    assert {name for pair in HIERARCHIES for name in pair} <= set(CLASS_NAMES)


def test_children_hold_within_their_parents_only(tokenizer, text: TokenWindows, sample: TokenSample) -> None:
    labels = hierarchy_labels(sample, text, tokenizer)
    plain = python_labels(sample, text, tokenizer, labels.names)
    for parent, child in HIERARCHIES:
        np.testing.assert_array_equal(labels.column(parent), plain.column(parent))
        np.testing.assert_array_equal(labels.column(child), plain.column(child))  # these nest
        assert 0 < labels.column(child).sum() < labels.column(parent).sum()
        assert not (labels.column(child) & ~labels.column(parent)).any()
    crossing = python_labels(sample, text, tokenizer, ("keyword", "name", "comment", "inside brackets", "string"))
    assert (crossing.column("string") & ~crossing.column("inside brackets")).any()
    pairs = [("string", "docstring"), ("inside brackets", "string")]  # a chain, its lower link first
    cut = hierarchy_labels(sample, text, tokenizer, pairs)
    inside = crossing.column("inside brackets") & crossing.column("string")
    np.testing.assert_array_equal(cut.column("string"), inside)
    np.testing.assert_array_equal(cut.column("docstring"), inside & plain.column("docstring"))
    with pytest.raises(ValueError, match="each child needs one parent"):
        hierarchy_labels(sample, text, tokenizer, [("string", "docstring"), ("name", "docstring")])


def test_other_text_is_refused(tokenizer, text: TokenWindows, sample: TokenSample) -> None:
    def named(name: str, content: str = SOURCE) -> TokenWindows:
        return replace(text, documents=[text.documents[0], Document(name, content), text.documents[2]])

    with pytest.raises(ValueError, match=r"notes\.md is not Python"):
        python_labels(sample, named("notes.md"), tokenizer)
    with pytest.raises(ValueError, match=r"b\.py has other tokens than its windows"):
        python_labels(sample, named("b.py", SOURCE + "y = 2\n"), tokenizer)
    with pytest.raises(ValueError, match="no syntax class is named 'keywrod'; did you mean 'keyword'"):
        python_labels(sample, text, tokenizer, ("keywrod",))
    moved = replace(sample, position=sample.position + 1)
    with pytest.raises(ValueError, match="other tokens than these windows"):
        python_labels(moved, text, tokenizer)
    with pytest.raises(ValueError, match="other tokens than these windows"):
        python_labels(TokenSample.of_activations(sample.x), text, tokenizer)
    with pytest.raises(ValueError, match="other tokens than these windows"):
        python_labels(replace(sample, document=sample.document + 1), text, tokenizer)
    # tokens of documents that are not in the sample are nobody's business
    others = sample.select(sample.document != 1)
    assert python_labels(others, named("notes.md"), tokenizer).values.any()


@pytest.mark.parametrize(
    "content", ["print 'of Python 2'\n", "if x:\n    y = 1\n  z = 2\n", 'x = """open\n', "def (\n"]
)
def test_source_that_cannot_be_parsed_is_refused(tiny, tokenizer, content: str) -> None:
    documents = [Document("good.py", SOURCE), Document("old.py", content * 10)]
    windows = TokenWindows.build(documents, tokenizer, WindowConfig(context_size=16))
    sample = read_sample(tiny, windows, ["transformer.h.0"])
    with pytest.raises(ValueError, match=r"old\.py is not Python that this interpreter can parse"):
        python_labels(sample, windows, tokenizer)
