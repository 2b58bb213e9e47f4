"""Syntax classes: every class on a hand-written text, the mapping to tokens against a plain loop, and hostile texts."""

from __future__ import annotations

import itertools
import re
import sysconfig
import tokenize
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.activations.python_syntax import (
    CLASS_NAMES,
    KEYWORDS,
    OPERATORS,
    Span,
    SyntaxTable,
    class_id,
    syntax_classes,
    token_classes,
)
from saescope.activations.python_syntax import (
    tokens as token_reader,
)

# class -> source, and the substrings that must be its spans, in order. ␤ stands for a line break, to keep cases on a line.
CASES: dict[str, tuple[str, list[str]]] = {
    "comment": ("x = 1  # one two ␤#: three␤", ["# one two", "#: three"]),
    "comment on a line of its own": ("x = 1  # a␤if x:␤    # b␤    pass", ["# b"]),
    "comment after code": ("x = 1  # a␤# b␤", ["# a"]),
    "first token of a comment": ("x = 1  # a", ["#"]),
    "first word of a comment": ("x = 1  # alpha beta␤#!gamma␤# ---␤", ["alpha", "gamma"]),
    "last token of a comment": ("x = 1  # alpha?  ", ["?"]),
    "string": ("f('a', b'b', r\"c\", f'{d}')", ["'a'", "b'b'", 'r"c"', "f'{d}'"]),
    "docstring": ('"mod"␤def f():␤    """fun␤    """␤    "no"␤class A:␤    r"c"␤', ['"mod"', '"""fun␤    """', 'r"c"']),
    "string other than a docstring": ('"mod"␤x = "a"␤', ['"a"']),
    "f-string": ("x = f'a{b}' + 'c' + rF'''{d:{e}}'''", ["f'a{b}'", "rF'''{d:{e}}'''"]),
    "bytes literal": ("x = b'a' + 'c' + Rb'd'", ["b'a'", "Rb'd'"]),
    "raw string": ("x = r'a' + 'c' + Rb'd'", ["r'a'", "Rb'd'"]),
    "opening quotes of a string": ("x = r'a' + \"\" + '''b'''", ["'", '"', "'''"]),
    "closing quotes of a string": ("x = r'a' + \"b\"", ["'", '"']),
    "opening quotes of a docstring": ('r"""doc"""␤x = "a"', ['"""']),
    "closing quotes of a docstring": ("'doc'␤x = 'a'", ["'"]),
    "first word of a string": ("x = '  alpha beta' + '' + '--'", ["alpha"]),
    "first word of a docstring": ('"""␤  The end.␤"""␤x = "a"', ["The"]),
    "last word of a docstring": ('"""␤  The end.␤"""␤x = "a"', ["end"]),
    "first line of a docstring": ('"""␤  The end.␤␤  More.␤"""', ["The end."]),
    "doctest line": ('"""Doc.␤␤>>> f(1)␤2␤  ... x␤"""', [">>> f(1)", "... x"]),
    "escape sequence in a string": (r"x = 'a\n\\n\x41\d' + b'\u0041\0' + r'\n'", [r"\n", r"\\", r"\x41", r"\0"]),
    "placeholder in a format string": (
        "x = '%s of %(n)5.2f' % y; z = '{0} {{}} {a.b!r:>{w}}'.format(y); w = '%s {}'",
        ["%s", "%(n)5.2f", "{0}", "{a.b!r:>{w}}"],
    ),
    "interpolated expression in an f-string": (
        "x = f'a{b}{{c}}{d[\"}\"]:{e}>3}{g(h)!r}' + f'\\N{DASH}{i}' + '{j}'",
        ["{b}", "{d[\"}\"]:{e}>3}", "{g(h)!r}", "{i}"],
    ),
    "number": ("x = 1 + 0xFF + 1.5e3 + 2j", ["1", "0xFF", "1.5e3", "2j"]),
    "integer": ("x = 1_000 + 0xFF + 1.5", ["1_000"]),
    "floating-point number": ("x = 1 + 1.5 + 1e9 + 2j", ["1.5", "1e9", "2j"]),
    "hexadecimal number": ("x = 1 + 0xFF + 0X1e", ["0xFF", "0X1e"]),
    "octal or binary number": ("x = 0o17 + 0b11 + 17", ["0o17", "0b11"]),
    "keyword": ("if x: return None", ["if", "return", "None"]),
    "name": ("if x: print(y.z)", ["x", "print", "y", "z"]),
    "dunder name": ("__init__, __x, _y_, a__", ["__init__"]),
    "private name": ("__init__, __x, _y, _, x_", ["__x", "_y"]),
    "constant name (UPPER_CASE)": ("MAX_1, Max, A, _AB", ["MAX_1", "_AB"]),
    "CamelCase name": ("MAX, Max, MaxSize, max, _Max, a_B", ["Max", "MaxSize", "_Max"]),
    "`self`": ("self.x = myself", ["self"]),
    "`cls`": ("cls(clsx)", ["cls"]),
    "built-in name": ("print(x.print, len=len)", ["print", "len"]),
    "exception name": ("KeyError, MyError, DeprecationWarning, Errors", ["KeyError", "MyError", "DeprecationWarning"]),
    "last token of a name": ("alpha = if_", ["a", "_"]),
    "name of a defined function": ("async def f(x): g(x)", ["f"]),
    "name of a defined class": ("class A(B): pass", ["A"]),
    "attribute name": ("a.b.c(d)", ["b", "c"]),
    "method being called": ("a.b.c(d.e)", ["c"]),
    "function being called": ("f(x)(y); a.g(z); class_ = (1)␤def h(): pass", ["f"]),
    "name before a `.`": ("a.b.c(d.e)", ["a", "b", "d"]),
    "name of a keyword argument": ("f(a, b=c, d=g(e=1))␤class A(m=B): x = 1", ["b", "d", "e", "m"]),
    "imported module": ("import a.b as c, d␤from .e import f", ["a", "b", "d", "e"]),
    "imported name": ("import a␤if x: from b import (c, d as e)", ["c", "d"]),
    "alias of an import": ("import a as b␤from c import d as e", ["b", "e"]),
    "comparison operator": ("a < b == c <<d", ["<", "=="]),
    "arithmetic or bitwise operator": ("a + -b << c @ d; f(*e)", ["+", "-", "<<", "@"]),
    "augmented assignment operator": ("a += 1; b = 2; c //= 3; d == e", ["+=", "//="]),
    "parenthesis opening a call": ("f(a)(b); (c); x[0](d)", ["(", "(", "("]),
    "parenthesis closing a call": ("f((a)); (c)", [")"]),
    "parenthesis opening parameters": ("def f(a=g(1)): pass", ["("]),
    "parenthesis closing parameters": ("def f(a=g(1)): pass", [")"]),
    "bracket opening a subscript": ("a[b][c] = [d]; return_ = 'x'[0]", ["[", "[", "["]),
    "bracket closing a subscript": ("a[b] = [d]", ["]"]),
    "bracket opening a list": ("a[b] = [d]", ["["]),
    "bracket closing a list": ("a[b] = [d]", ["]"]),
    "parenthesis of a tuple or group": ("x = (a, b); f(c)", ["(", ")"]),
    "comma between arguments": ("f(a, [b, c]); (d, e)", [","]),
    "comma between parameters": ("def f(a, b=(1, 2)): return lambda x, y: 0", [",", ","]),
    "comma between elements": ("f(a, [b, c]); d, e = {g, h}", [",", ","]),
    "trailing comma": ("f(a, b,)", [","]),
    "`:` that opens a block": ("if x[1:2]: y: int = lambda: 0", [":"]),
    "`:` of an annotation": ("def f(a: b) -> c: d: e = {1: 2}␤case: g", [":", ":", ":"]),
    "`:` of a dict": ("x = {1: 2, **y, 3: z[4:5]}", [":", ":"]),
    "`:` of a slice": ("x = {1: z[4:5:6]}", [":", ":"]),
    "`:` of a lambda": ("x = {1: lambda a=2: a}", [":"]),
    "`=` of an assignment": ("a = b = f(c=1) == d", ["=", "="]),
    "`=` of a keyword argument": ("a = f(c=1)", ["="]),
    "`=` of a default value": ("def f(a=1, *, b: c = 2): return lambda d=3: 0", ["=", "=", "="]),
    "`*` or `**` that packs or unpacks": ("def f(*a, **b): g(*a, 2 ** 3 * c, **b)", ["*", "**", "*", "**"]),
    "indentation": ("if x:␤    y␤    # c␤␤  ", ["    ", "    "]),
    "indentation that opens a block": ("if x:␤    y␤    z", ["    "]),
    "indentation after a block": ("if x:␤  if y:␤    z␤  w␤v", ["  "]),
    "line break that ends a statement": ("x = (1,␤2)␤# c␤␤y␤", ["␤", "␤"]),
    "line break inside brackets": ("x = (1,␤2)␤# c␤", ["␤"]),
    "line break after a comment": ("x  # a␤# b␤y␤", ["␤", "␤"]),
    "blank line": ("x␤␤  ␤y␤", ["␤", "  ␤"]),
    "first token of a logical line": ("xy = (1,␤ 2)␤if zw: v", ["x", "i"]),
    "last token of a logical line": ("xy = (1,␤ 25)  # c␤zw", [")", "w"]),
    "first token of a block": ("if x:␤  # c␤  yy␤  zz", ["y"]),
    "first token after a block": ("if x:␤  y␤zz", ["z"]),
    "first token of a line inside brackets": ("f(a,␤  bb)␤c", ["b"]),
    "inside brackets": ("f(a, [b], c) + ()", ["a, [b], c"]),
    "decorator": ("@a.b(c)␤def f(): return d @ e", ["@a.b(c)"]),
    "header of a function definition": ("async def f(a: b = {1: 2}) -> c: pass", ["async def f(a: b = {1: 2}) -> c:"]),
    "header of a class definition": ("class A(B): x: int", ["class A(B):"]),
    "import statement": ("import a, b; c␤if d: from e import f", ["import a, b", "from e import f"]),
    "raise statement": ("if a: raise B(c) from d", ["raise B(c) from d"]),
    "assert statement": ("assert a, 'b'; c", ["assert a, 'b'"]),
    "name of a defined method": ("class A:␤  async def  f(self): pass␤def g(): pass", ["f"]),
    "parameter": ("def f(a, /, b: B, *c, d=1, **e): return lambda g: 0", ["a", "b", "c", "d", "e", "g"]),
    "`self` or `cls` parameter": ("def f(self, x): return self", ["self"]),
    "default value of a parameter": ("def f(a, b=(1, 2), *, c=d, e): pass", ["(1, 2)", "d"]),
    "annotation": ("def f(a: B[c], d) -> e: g: h = 1", ["B[c]", "e", "h"]),
    "return annotation": ("def f(a: b) -> c | d: pass", ["c | d"]),
    "base class": ("class A(b.C, D, metaclass=E): pass", ["b.C", "D"]),
    "first token of a function body": ("def f():␤  return_ = 1␤  x", ["r"]),
    "first token of a class body": ("class A:␤  @dec␤  def f(self): xx", ["@"]),
    "body of a function": ("def f():␤  a␤  b␤c", ["a␤  b"]),
    "body of a method": ("class A:␤  def f(self):␤    a␤  def g(self): b", ["a", "b"]),
    "body of a class": ("class A:␤  a = 1␤  b = 2␤c", ["a = 1␤  b = 2"]),
    "module-level statement": ("a = 1␤def f(): b␤if c: d", ["a = 1", "if c: d"]),
    "name being assigned": ("a, *b = c; d += 1; e: f; (g := 1)␤h.i = j[k] = 2", ["a", "b", "d", "e", "g"]),
    "attribute being assigned": ("a.bc = d.e; f.g += 1", ["bc", "g"]),
    "assigned value": ("a = b, c; d += e; f: g = h; (i := j)", ["b, c", "e", "h", "j"]),
    "first token of an assigned value": ("a = bcd + e", ["b"]),
    "return value": ("def f():␤  if a: return bc + d␤  return", ["bc + d"]),
    "first token of a return value": ("def f(): return bc + d", ["b"]),
    "loop variable": ("for a, (b, *c) in d: [e for f in g]", ["a", "b", "c", "f"]),
    "iterable of a loop or comprehension": ("for a in b.c: [e for f in g]", ["b.c", "g"]),
    "condition of an if or while": ("if a == b: pass␤elif not c: pass␤while d: e if f else g", ["a == b", "not c", "d"]),
    "first token of a condition": ("while abc == b: pass", ["a"]),
    "body of an if": ("if a:␤  b; c␤elif d: e␤else: f", ["b; c", "e"]),
    "body of an else": ("if a: b␤elif c: d␤else: e␤for g in h: i␤else: j", ["e", "j"]),
    "body of a loop": ("for a in b:␤  c␤  d␤while e: f", ["c␤  d", "f"]),
    "body of a try": ("try:␤  a␤  b␤except C: d", ["a␤  b"]),
    "body of an except": ("try: a␤except C: d␤except E: f", ["d", "f"]),
    "body of a with": ("with a as b: c; d", ["c; d"]),
    "context of a with": ("with a(b) as c, d: e", ["a(b)", "d"]),
    "name bound by `as`": ("with a as b: pass␤try: c␤except (D, E) as f: pass␤except (G) as h: pass", ["b", "f", "h"]),
    "exception being raised": ("raise a.B(c) from d␤raise e␤raise", ["a.B", "e"]),
    "exception being caught": ("try: a␤except (B, C): d␤except E as f: g␤except: h", ["(B, C)", "E"]),
    "message of a raised exception": ("raise A('b %s' % c, d)", ["'b %s' % c", "d"]),
    "argument of a call": ("f(a, *b, c=d, **e)", ["a", "*b"]),
    "first argument of a call": ("f(a, b); g(c=d)", ["a"]),
    "first token of an argument": ("f(ab + c, 'd')", ["a", "'"]),
    "value of a keyword argument": ("f(a, b=c + d, **e)", ["c + d", "e"]),
    "string as an argument": ("f('a', b, c='d', e=f'{g}')", ["'a'", "'d'", "f'{g}'"]),
    "number as an argument": ("f('a', 1, c=2.5, d=True)", ["1", "2.5"]),
    "comparison": ("a < b <= c; d is not e; f + g", ["a < b <= c", "d is not e"]),
    "right side of a comparison": ("a < b <= c; d in (e, f)", ["b", "c", "(e, f)"]),
    "string in a comparison": ("a == 'b'; 'c' in d; e + 'f'", ["'b'", "'c'"]),
    "boolean expression": ("a and not b; c + d", ["a and not b"]),
    "arithmetic expression": ("a + b; c and d", ["a + b"]),
    "left side of `%`": ("'a %s' % b; c / d", ["'a %s'"]),
    "conditional expression": ("x = a if b else c", ["a if b else c"]),
    "lambda": ("x = lambda a: b, c", ["lambda a: b"]),
    "comprehension": ("x = [a for b in c]; f(d for e in g)", ["[a for b in c]", "(d for e in g)"]),
    "condition of a comprehension": ("[a for b in c if d == e if f]", ["d == e", "f"]),
    "subscript": ("a[b, 1]; c[d:e]", ["b, 1", "d:e"]),
    "slice": ("a[b, 1:2]; c[:]; d[e]", ["1:2", ":"]),
    "string as a subscript": ("a['b']; c['d' + e]", ["'b'"]),
    "number as a subscript": ("a[0]; c[d]", ["0"]),
    "object being subscripted": ("a.b[c]", ["a.b"]),
    "dictionary": ("x = {a: b}; y = {c}", ["{a: b}"]),
    "dictionary key": ("x = {a: b, **c}", ["a"]),
    "dictionary value": ("x = {a: b, **c}", ["b", "c"]),
    "element of a list, tuple or set": ("a, b = [c], {d}, e", ["[c]", "c", "{d}", "d", "e"]),
    "string in a list, tuple or set": ("x = ['a', 1, {'b'}]", ["'a'", "'b'"]),
    "number in a list, tuple or set": ("x = ['a', 1, {2.5}]; f(3)", ["1", "2.5"]),
    "parameter being used": ("def f(a):␤  b = a␤  def g(): return a.c + b", ["a", "a"]),
    "local variable being used": ("def f(a):␤  print(b, d)␤  global d␤  b = d = a␤  return lambda: b", ["b", "b"]),
    "imported name being used": ("import a.b, c as d␤a.b(c, d)", ["a", "d"]),
    "module-level function or class being used": ("def f(): f(g)␤class A: pass␤A(f)", ["f", "A", "f"]),
    "module-level variable being used": ("a = 1␤b␤class C: d = a; e = d", ["a"]),
}  # fmt: skip


def substrings(source: str, name: str) -> list[str]:
    return [source[span.start : span.end] for span in syntax_classes(source) if span.name == name]


@pytest.mark.parametrize("name", CASES)
def test_class_covers_exactly(name: str) -> None:
    source, expected = CASES[name]
    found = substrings(source.replace("␤", "\n"), name)
    assert found == [text.replace("␤", "\n") for text in expected]


def test_every_class_has_a_case() -> None:
    spelled = {f"keyword `{word}`" for word in KEYWORDS} | {f"operator `{symbol}`" for symbol in OPERATORS}
    assert set(CASES) | spelled == set(CLASS_NAMES)
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES))


@pytest.mark.parametrize("word", KEYWORDS)
def test_keywords(word: str) -> None:
    assert substrings(f"x = '{word}'  # {word}\nx{word}\n{word}\n", f"keyword `{word}`") == [word]


@pytest.mark.parametrize("symbol", OPERATORS)
def test_operators(symbol: str) -> None:
    assert substrings(f"'{symbol}'  # {symbol}\na {symbol} b\n", f"operator `{symbol}`") == [symbol]


def test_unknown_class_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match="'docstring'"):
        class_id("docstrng")
    assert [class_id(name) for name in CLASS_NAMES] == list(range(len(CLASS_NAMES)))


# --- offsets -----------------------------------------------------------------------------------------------------------

SNIPPET = '''"""Größe → x.

>>> f(1)
"""
import os

class Ä(Base):
    \f
    def grüßen(self, ñ="é→", *, 数=1):
        """Sagt 'hällo'."""
        return f"{ñ}→{数!r}", 'ü' + self.数  # fértig

'''


def without_ends(spans: list[Span], source: str) -> list[tuple[str, str]]:
    return [(span.name, re.sub(r"\r\n?", "\n", source[span.start : span.end])) for span in spans]


def test_characters_of_several_bytes() -> None:
    assert substrings(SNIPPET, "parameter") == ["self", "ñ", "数"]
    assert substrings(SNIPPET, "default value of a parameter") == ['"é→"', "1"]
    assert substrings(SNIPPET, "return value") == ["f\"{ñ}→{数!r}\", 'ü' + self.数"]
    assert substrings(SNIPPET, "comment") == ["# fértig"]
    assert substrings(SNIPPET, "docstring") == ['"""Größe → x.\n\n>>> f(1)\n"""', '"""Sagt \'hällo\'."""']


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_mark(line_end: str, mark: str) -> None:
    plain = syntax_classes(SNIPPET)
    source = mark + SNIPPET.replace("\n", line_end)
    assert without_ends(syntax_classes(source), source) == without_ends(plain, SNIPPET)
    broken = [span for span in syntax_classes(source) if span.name == "line break that ends a statement"]
    assert {source[span.start : span.end] for span in broken} == {line_end}


# --- texts that are no Python ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["", "\n", "\ufeff", "\x00", "x = '", "(", ")", "\\", "  x\n y\n", "$?", "\ud800 = 1"]
)
def test_hostile_texts(source: str) -> None:
    for span in syntax_classes(source):
        assert 0 <= span.start < span.end <= len(source)


def test_broken_text_keeps_the_classes_of_its_tokens() -> None:
    source = '"""doc"""\nimport os  # the system\ndef f(:\n    return "\\d"\n'
    assert substrings(source, "imported module") == ["os"]
    assert substrings(source, "comment") == ["# the system"]
    assert substrings(source, "keyword `return`") == ["return"]
    assert substrings(source, "docstring") == []
    assert substrings(source, "string other than a docstring") == []
    assert substrings(source, "string") == ['"""doc"""', '"\\d"']


def test_deep_nesting() -> None:
    chain = "if a: b\n" + "elif a: b\n" * 300
    assert len(substrings(chain, "body of an if")) == 301
    assert substrings("x = " + "(" * 500 + ")" * 500, "assigned value") == []  # more than the parser takes


def test_fstrings_as_python_3_12_tokenizes_them() -> None:
    middle, start, end = 901, 902, 903  # numbers that no token type of this Python has
    raw = token_reader._RawToken
    tokens = [
        raw(tokenize.NAME, "x", (1, 0), (1, 1)),
        raw(start, "f'", (1, 2), (1, 4)),
        raw(middle, "a", (1, 4), (1, 5)),
        raw(tokenize.OP, "{", (1, 5), (1, 6)),
        raw(start, "f'", (1, 6), (1, 8)),
        raw(end, "'", (1, 8), (1, 9)),
        raw(tokenize.OP, "}", (1, 9), (1, 10)),
        raw(end, "'", (1, 10), (1, 11)),
        raw(tokenize.NEWLINE, "\n", (1, 11), (1, 12)),
    ]
    merged = list(token_reader._merge_fstrings(tokens, {start}, {end}))
    assert [(token.kind, token.start, token.end) for token in merged] == [
        (tokenize.NAME, (1, 0), (1, 1)),
        (tokenize.STRING, (1, 2), (1, 11)),
        (tokenize.NEWLINE, (1, 11), (1, 12)),
    ]


PIECES = [
    *(
        "x",
        "y.z",
        "def f(a, b=1):",
        "class A(B):",
        "if x:",
        "else:",
        "return",
        "lambda a: b",
        "'s'",
        '"""d"""',
        "f'{x}'",
    ),
    *(
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "=",
        "==",
        "*",
        "**",
        "# c",
        "\n",
        "\n    ",
        "\r\n",
        "\t",
        "\f",
        "\\",
        "é",
    ),
    *(
        "import os",
        "from a import b as c",
        "@d",
        "1.5",
        "0x1F",
        "for i in j:",
        "try:",
        "except E as e:",
        "with a as b:",
    ),
]
sources = st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join) | st.text(max_size=40)


@settings(max_examples=300, deadline=None)
@given(sources)
def test_any_text_gives_spans_within_it(source: str) -> None:
    spans = syntax_classes(source)
    assert spans == sorted(spans, key=lambda span: (span.start, span.end, class_id(span.name)))
    assert all(0 <= span.start < span.end <= len(source) for span in spans)


def test_standard_library_files() -> None:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    files = [file for file in files if file.stat().st_size < 40_000][::3][:40]
    assert len(files) >= 30
    for file in files:
        source = file.read_text(encoding="utf-8")
        found = {span.name for span in syntax_classes(source)}
        assert "module-level statement" in found or source.count("\n") < 3, file
        docstrings = substrings(source, "docstring")
        assert all(text.rstrip().endswith(('"', "'")) for text in docstrings), file


# --- from spans to tokens ----------------------------------------------------------------------------------------------


def brute_force(source: str, starts: list[int], ends: list[int]) -> list[set[str]]:
    """The rule of belonging, token by token and character by character."""
    spans = syntax_classes(source)
    classes = []
    for start, end in zip(starts, ends, strict=True):
        characters = set(range(start, end))
        if source[start:end].strip():
            while source[min(characters)].isspace():
                characters.remove(min(characters))
        classes.append({span.name for span in spans if characters & set(range(span.start, span.end))})
    return classes


def check_table(source: str, starts: list[int], ends: list[int]) -> None:
    table = token_classes(source, np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64))
    expected = brute_force(source, starts, ends)
    assert [set(table.classes_of(token)) for token in range(table.num_tokens)] == expected
    assert table.num_tokens == len(starts)


@settings(max_examples=150, deadline=None)
@given(sources, st.data())
def test_tokens_against_a_plain_loop(source: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(source)), max_size=30)))
    check_table(source, [0, *cuts], [*cuts, len(source)])  # empty tokens among them


def test_tokens_of_a_byte_level_tokenizer() -> None:
    pieces = re.finditer(r" ?\w+| ?[^\s\w]+|\s+(?!\S)|\s+", SNIPPET)
    offsets = []
    for match in pieces:
        offsets += [match.span()] * (1 if match[0].isascii() else 2)  # two tokens that share one range of characters
    check_table(SNIPPET, [start for start, _ in offsets], [end for _, end in offsets])


def test_leading_space_does_not_count_and_inner_line_breaks_do() -> None:
    source = 'def f():\n    """Doc\n    string."""\n    return 1\n'
    cuts = [0, 3, 5, 8, 12, 16, 19, 23, 30, 34, 38, 45, 47, 48]
    table = token_classes(source, np.array(cuts[:-1]), np.array(cuts[1:]))
    texts = [source[a:b] for a, b in itertools.pairwise(cuts)]
    assert texts[4] == ' """'
    assert "indentation" not in table.classes_of(4)
    assert "opening quotes of a docstring" in table.classes_of(4)
    assert texts[6] == "\n   "
    assert "docstring" in table.classes_of(6)
    assert texts[10] == " return"
    assert "keyword `return`" in table.classes_of(10)


def test_table_counts_members_and_joins() -> None:
    source = SNIPPET * 3
    cuts = np.arange(0, len(source) + 1, 3)
    table = token_classes(source, cuts[:-1], cuts[1:])
    both = SyntaxTable.concatenate([table, SyntaxTable.empty(2), table])
    assert both.num_tokens == 2 * table.num_tokens + 2
    assert both.classes_of(table.num_tokens) == ()
    positions = np.array([5, 1, 40, 41, 7])
    for index, name in enumerate(CLASS_NAMES):
        inside = table.members(name)
        assert table.counts()[index] == inside.sum()
        assert table.counts(positions)[index] == inside[positions].sum()
        np.testing.assert_array_equal(table.select(positions).members(name), inside[positions])
        assert both.counts()[index] == 2 * inside.sum()
    assert table.counts(np.zeros(0, dtype=np.int64)).sum() == 0


@pytest.mark.parametrize(
    ("starts", "ends", "message"),
    [([0], [1, 2], "one length"), ([0], [9], "within the 5"), ([2], [1], "ranges"), ([2, 0], [3, 1], "decrease")],
)
def test_offsets_are_checked(starts: list[int], ends: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_classes("x = 1", np.array(starts), np.array(ends))


def test_bits_are_checked() -> None:
    with pytest.raises(ValueError, match="token_classes"):
        SyntaxTable(bits=np.zeros((3, 2), dtype=np.uint8))
