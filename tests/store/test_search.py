"""Full-text search: the same features as looking through all words in memory, on both databases."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from saescope.store import Explanation, Store, listing, words

ALPHABET = [
    "a",
    "B",
    "é",
    "É",
    "ß",
    "ſ",
    "σ",
    "Σ",
    "ς",
    "İ",
    "1",
    "²",
    "½",
    "_",
    "名",
    "ه",
    "é",
    "ǆ",
    "𝔘",
    "ꙁ",
    "-",
    " ",
    "'",
    '"',
    "\\",
]
ALPHABET += [
    "*",
    "&",
    "|",
    "!",
    ":",
    "(",
    "\0",
    "\udc80",
    "क",
    "ि",
    "Ⅷ",
    "🙂",
    "\u200d",
    "%",
    ";",
    "\n",
    "<->",
    "NOT ",
    "OR ",
]


def _text(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(ALPHABET, k=length))


def _plain(rng: random.Random, length: int) -> str:
    return _text(rng, length).replace("\0", "").replace("\udc80", "")


def _cut(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _found(store: Store, query: str, analysis: str | None = None) -> list[int]:
    page = store.features("tiny", analysis=analysis, search=query, sort="index", descending=False, limit=100)
    assert store.count("tiny", analysis=analysis, search=query) == len(page.features)
    return [feature.index for feature in page.features]


@pytest.mark.parametrize("few", [2500, 0])
def test_search_is_what_brute_force_finds(
    store: Store, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(listing, "_FEW", few)
    rng = random.Random(0)
    texts: dict[int, list[str]] = {}
    features, windows, examples = [], [], []
    for index in range(60):
        label = make.label(_plain(rng, 12)) if rng.random() < 0.5 else None
        texts[index] = [label.text] if label else []
        features.append(make.feature(index, label=label))
        tokens = [_text(rng, rng.randrange(4)) for _ in range(6)]
        windows.append(make.window(index, token_texts=tokens))
        positions = sorted(rng.sample(range(6), 3))
        role = {"top_rank": 0} if index % 3 else {"quantile_band": 1}  # only the top examples are searched
        examples.append(
            make.example(index, index, peak=positions[0], positions=positions, values=(1.0, 2.0, 3.0), **role)
        )
        if index % 3:
            texts[index] += [tokens[position] for position in positions]
    store.write(make.dictionary(d_sae=60), make.analysis(), features, windows, examples)
    for index in rng.sample(range(60), 20):
        said = _plain(rng, 10) + "x"
        store.explain("tiny", index, Explanation(text=said))
        texts[index].append(said)

    known = {index: {word for text in said for word in _cut(text)} for index, said in texts.items()}
    asked = ["a", "É", "x", "b a", "Σ", "NOT", "a or b"]
    asked += [word[: rng.randrange(1, 4)] for index in rng.sample(range(60), 30) for word in sorted(known[index])[:2]]
    asked += [f"{_plain(rng, 3)} {_plain(rng, 2)}" for _ in range(60)]
    num_hits = 0
    for query in asked:
        if not _cut(query):
            continue
        expected = [
            index for index, have in known.items() if all(any(w.startswith(q) for w in have) for q in _cut(query))
        ]
        assert _found(store, query) == expected, query
        num_hits += len(expected)
    assert num_hits > 100


def test_a_search_without_a_word_is_refused(store: Store, fill: Callable[..., object]) -> None:
    fill(store)
    for query in ("", "  ", "%-'\"*()", "🙂"):
        with pytest.raises(ValueError, match=r"has no word in it; words are made of letters, digits and underscores"):
            store.features(search=query)
        with pytest.raises(ValueError, match="has no word in it"):
            store.count(search=query)


def test_search_follows_explanations(store: Store, fill: Callable[..., object]) -> None:
    fill(store)
    fill(store, analysis="second")
    fill(store, "other")
    assert _found(store, "digits 100") == [2]
    assert _found(store, "ÉLAN vi") == [3]
    assert _found(store, "x_") == [5]
    assert _found(store, "func arg") == [2]  # tokens on which it fires; "def" is not among them
    assert _found(store, "def") == []
    first = store.explain("tiny", 4, Explanation(text="Primes, twin primes"))
    second = store.explain("tiny", 4, Explanation(text="odd digits"))
    for analysis in ("default", "second"):
        assert _found(store, "prime", analysis) == [4]
        assert _found(store, "digits", analysis) == [2, 4]
    assert store.count("other", search="prime") == 0
    store.forget_explanation(first)
    assert _found(store, "prime") == []
    assert _found(store, "odd") == [4]
    store.forget_explanation(second)
    assert _found(store, "digits") == _found(store, "digits", "default") == [2]


def test_long_words_and_many_words(store: Store, make: SimpleNamespace) -> None:
    long = "é" * 500
    many = " ".join(f"w{i}" for i in range(words.MOST + 50))
    wide = " ".join("𝔘" * words.LONGEST + str(i) for i in range(5)) + " " + " ".join(f"𝔘{i}" * 9 for i in range(4000))
    features = [make.feature(i, label=make.label(text)) for i, text in enumerate((long, many, wide))]
    store.write(make.dictionary(), make.analysis(), features, [], [])
    assert _found(store, long) == _found(store, long[:3]) == [0]
    assert _found(store, f"w{words.MOST - 1}") == [1]
    assert _found(store, f"w{words.MOST}") == []
    assert _found(store, "𝔘" * 80) == [2]


def test_the_index_and_its_words_agree(store: Store, fill: Callable[..., object]) -> None:
    fill(store)
    number = store.explain("tiny", 4, Explanation(text="prime"))
    store.forget_explanation(number)
    store.update("tiny", [(2, {"label": None})])
    fill(store, overwrite=True)
    with store._engine.begin() as connection:
        kept = connection.exec_driver_sql("select feature_index, words from feature_text order by feature_index").all()
        assert [tuple(row) for row in kept] == [
            (index, {2: "digits 100 of them func arg", 3: "élan vital", 5: "x_y"}.get(index, "")) for index in range(8)
        ]
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(
                "insert into feature_search (feature_search, rank) values ('integrity-check', 1)"
            )
