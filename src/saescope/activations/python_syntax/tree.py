"""What Python's parser knows: definitions, statements, expressions, and what the names in them stand for."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from saescope.activations.python_syntax.text import Spans, Text

_WORD = re.compile(r"\W*(\w+)")
_AS_NAME = re.compile(r"[\s)\\]*as\s+(\w+)")
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Located = ast.expr | ast.stmt
_SKIPPED_FIELDS = {"ctx", "op", "ops", "type_ignores"}  # they hold no text of their own
_LEAVES = {"JoinedStr", "TemplateStr"}  # an f-string is one literal; before Python 3.12 places inside are unreliable


class _Scope:
    """Names that a function knows: its parameters and what it assigns."""

    def __init__(self, outer: _Scope | None, parameters: Iterable[str] = (), is_function: bool = True) -> None:
        self.outer = outer
        self.parameters = set(parameters)
        self.assigned: set[str] = set()
        self.foreign: set[str] = set()
        """Declared ``global`` or ``nonlocal`` here."""
        self.is_function = is_function


class TreeReader:
    """Adds the classes that the syntax tree gives, one method per type of node that has something to say."""

    def __init__(self, text: Text, spans: Spans) -> None:
        self.text, self.add = text, spans.add
        self.reads: list[tuple[str, int, int, _Scope]] = []
        self.docstrings: dict[int, int] = {}
        self.module = _Scope(None, is_function=False)
        self.imported: set[str] = set()
        self.scope = self.module
        self._methods: dict[type, Callable[[ast.AST], None] | None] = {}

    def read(self, tree: ast.Module) -> dict[int, int]:
        """Adds the spans, and returns start and end of each docstring."""
        self._docstring(tree.body)
        for statement in tree.body:
            if not isinstance(statement, _Function | ast.ClassDef):
                self._span("module-level statement", statement)
        # A list instead of recursion: long `elif` chains and sums nest deeper than Python's stack
        waiting: list[tuple[ast.AST, _Scope]] = [(tree, self.module)]
        while waiting:
            node, scope = waiting.pop()
            self.scope = scope
            kind = type(node)
            if kind not in self._methods:
                self._methods[kind] = getattr(self, f"_{kind.__name__}", None)
            method = self._methods[kind]
            if method is not None:
                method(node)
            if isinstance(node, _Function | ast.Lambda):
                inner = _Scope(scope, (argument.arg for argument in _arguments(node.args)))
                body = node.body if isinstance(node.body, list) else [node.body]
                waiting += ((child, inner) for child in body)
                waiting += ((child, scope) for child in _children(node, but="body"))
            elif isinstance(node, ast.ClassDef):
                inner = _Scope(scope, is_function=False)
                waiting += ((child, inner) for child in node.body)
                waiting += ((child, scope) for child in _children(node, but="body"))
            else:
                waiting += ((child, scope) for child in _children(node))
        self._add_reads({node.name for node in tree.body if isinstance(node, _Function | ast.ClassDef)})
        return self.docstrings

    # places

    def _span(self, name: str, node: _Located) -> None:
        self.add(name, self._start(node), self._end(node))

    def _first(self, name: str, node: _Located) -> None:
        start = self._start(node)
        self.add(name, start, start + 1)

    def _start(self, node: _Located) -> int:
        return _start(self.text, node)

    def _end(self, node: _Located) -> int:
        return _end(self.text, node)

    def _block(self, name: str, body: Sequence[ast.stmt]) -> None:
        if body:
            self.add(name, self._statement_start(body[0]), self._end(body[-1]))

    def _statement_start(self, statement: ast.stmt) -> int:
        """Where a statement begins, its decorators counted."""
        decorators = getattr(statement, "decorator_list", [])
        return self.text.text.rfind("@", 0, self._start(decorators[0])) if decorators else self._start(statement)

    def _constant(self, role: str, node: ast.expr) -> None:
        kind = _constant_type(node)
        if kind in (str, bytes):
            self._span(f"string {role}", node)
        elif kind in (int, float, complex):
            self._span(f"number {role}", node)

    def _targets(self, name: str, node: ast.expr) -> None:
        if isinstance(node, ast.Name):
            self._span(name, node)
        elif isinstance(node, ast.Attribute):
            end = self._end(node)
            self.add("attribute being assigned", end - len(node.attr), end)
        elif isinstance(node, ast.Starred):
            self._targets(name, node.value)
        elif isinstance(node, ast.Tuple | ast.List):
            for element in node.elts:
                self._targets(name, element)

    # definitions

    def _docstring(self, body: Sequence[ast.stmt]) -> None:
        first = body[0] if body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            self.docstrings[self._start(first)] = self._end(first)

    def _FunctionDef(self, node: _Function) -> None:
        self._docstring(node.body)
        self.scope.assigned.add(node.name)
        self._parameters(node.args)
        if node.returns is not None:
            self._span("annotation", node.returns)
            self._span("return annotation", node.returns)
        start = self._statement_start(node.body[0])
        self.add("first token of a function body", start, start + 1)
        self._block("body of a function", node.body)

    _AsyncFunctionDef = _FunctionDef

    def _Lambda(self, node: ast.Lambda) -> None:
        self._span("lambda", node)
        self._parameters(node.args)

    def _parameters(self, arguments: ast.arguments) -> None:
        for argument in _arguments(arguments):
            start = self.text.at_byte(argument.lineno, argument.col_offset)
            end = start + len(argument.arg)
            self.add("parameter", start, end)
            if argument.arg in ("self", "cls"):
                self.add("`self` or `cls` parameter", start, end)
            if argument.annotation is not None:
                self._span("annotation", argument.annotation)
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self._span("default value of a parameter", default)

    def _ClassDef(self, node: ast.ClassDef) -> None:
        self._docstring(node.body)
        self.scope.assigned.add(node.name)
        for base in node.bases:
            self._span("base class", base)
        start = self._statement_start(node.body[0])
        self.add("first token of a class body", start, start + 1)
        self._block("body of a class", node.body)
        for statement in node.body:
            if isinstance(statement, _Function):
                self._block("body of a method", statement.body)
                begin = self.text.text.find("def", self._start(statement)) + len("def")
                name = _WORD.match(self.text.text, begin)
                if name:
                    self.add("name of a defined method", *name.span(1))

    # statements

    def _Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._targets("name being assigned", target)
        self._assigned(node.value)

    def _AugAssign(self, node: ast.AugAssign) -> None:
        self._targets("name being assigned", node.target)
        self._assigned(node.value)

    def _AnnAssign(self, node: ast.AnnAssign) -> None:
        self._targets("name being assigned", node.target)
        self._span("annotation", node.annotation)
        if node.value is not None:
            self._assigned(node.value)

    def _NamedExpr(self, node: ast.NamedExpr) -> None:
        self._targets("name being assigned", node.target)
        self._assigned(node.value)

    def _assigned(self, value: ast.expr) -> None:
        self._span("assigned value", value)
        self._first("first token of an assigned value", value)

    def _Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self._span("return value", node.value)
            self._first("first token of a return value", node.value)

    def _For(self, node: ast.For | ast.AsyncFor) -> None:
        self._targets("loop variable", node.target)
        self._span("iterable of a loop or comprehension", node.iter)
        self._block("body of a loop", node.body)
        self._block("body of an else", node.orelse)

    _AsyncFor = _For

    def _While(self, node: ast.While) -> None:
        self._condition(node.test)
        self._block("body of a loop", node.body)
        self._block("body of an else", node.orelse)

    def _If(self, node: ast.If) -> None:
        self._condition(node.test)
        self._block("body of an if", node.body)
        chained = len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If)
        if not chained or not self.text.text.startswith("elif", self._start(node.orelse[0])):
            self._block("body of an else", node.orelse)

    def _condition(self, test: ast.expr) -> None:
        self._span("condition of an if or while", test)
        self._first("first token of a condition", test)

    def _Try(self, node: ast.Try) -> None:
        self._block("body of a try", node.body)
        self._block("body of an else", node.orelse)

    _TryStar = _Try

    def _ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._block("body of an except", node.body)
        if node.type is not None:
            self._span("exception being caught", node.type)
        if node.type is not None and node.name is not None:
            self.scope.assigned.add(node.name)
            name = _AS_NAME.match(self.text.text, self._end(node.type))
            if name:
                self.add("name bound by `as`", *name.span(1))

    def _With(self, node: ast.With | ast.AsyncWith) -> None:
        self._block("body of a with", node.body)
        for item in node.items:
            self._span("context of a with", item.context_expr)
            if item.optional_vars is not None:
                self._targets("name bound by `as`", item.optional_vars)

    _AsyncWith = _With

    def _Raise(self, node: ast.Raise) -> None:
        raised = node.exc
        if raised is not None:
            self._span("exception being raised", raised.func if isinstance(raised, ast.Call) else raised)
        if isinstance(raised, ast.Call):
            for argument in raised.args:
                self._span("message of a raised exception", argument)

    def _Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.imported.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)

    _ImportFrom = _Import

    def _Global(self, node: ast.Global | ast.Nonlocal) -> None:
        self.scope.foreign.update(node.names)

    _Nonlocal = _Global

    # expressions

    def _Call(self, node: ast.Call) -> None:
        for position, argument in enumerate(node.args):
            self._span("argument of a call", argument)
            self._first("first token of an argument", argument)
            if position == 0:
                self._span("first argument of a call", argument)
            self._constant("as an argument", argument)
        for word in node.keywords:
            self._span("value of a keyword argument", word.value)
            self._constant("as an argument", word.value)

    def _Compare(self, node: ast.Compare) -> None:
        self._span("comparison", node)
        for operand in (node.left, *node.comparators):
            if _constant_type(operand) in (str, bytes):
                self._span("string in a comparison", operand)
        for operand in node.comparators:
            self._span("right side of a comparison", operand)

    def _BoolOp(self, node: ast.BoolOp) -> None:
        self._span("boolean expression", node)

    def _BinOp(self, node: ast.BinOp) -> None:
        self._span("arithmetic expression", node)
        if isinstance(node.op, ast.Mod):
            self._span("left side of `%`", node.left)

    def _IfExp(self, node: ast.IfExp) -> None:
        self._span("conditional expression", node)

    def _ListComp(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        self._span("comprehension", node)

    _SetComp = _DictComp = _GeneratorExp = _ListComp

    def _comprehension(self, node: ast.comprehension) -> None:
        self._targets("loop variable", node.target)
        self._span("iterable of a loop or comprehension", node.iter)
        for condition in node.ifs:
            self._span("condition of a comprehension", condition)

    def _Subscript(self, node: ast.Subscript) -> None:
        self._span("object being subscripted", node.value)
        self._span("subscript", node.slice)
        self._constant("as a subscript", node.slice)

    def _Slice(self, node: ast.Slice) -> None:
        self._span("slice", node)

    def _Dict(self, node: ast.Dict) -> None:
        self._span("dictionary", node)
        for key, value in zip(node.keys, node.values, strict=True):
            if key is not None:  # None stands for `**other`
                self._span("dictionary key", key)
            self._span("dictionary value", value)

    def _List(self, node: ast.List | ast.Tuple | ast.Set) -> None:
        if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
            return
        for element in node.elts:
            self._span("element of a list, tuple or set", element)
            self._constant("in a list, tuple or set", element)

    _Tuple = _Set = _List

    # names that are read

    def _Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            start = self._start(node)
            self.reads.append((node.id, start, start + len(node.id), self.scope))
        else:
            self.scope.assigned.add(node.id)

    def _add_reads(self, defined: set[str]) -> None:
        # At the end, since a function may be read before the place where its names are assigned
        for name, start, end, scope in self.reads:
            kind = self._origin(name, scope, defined)
            if kind is not None:
                self.add(kind, start, end)

    def _origin(self, name: str, scope: _Scope, defined: set[str]) -> str | None:
        inner: _Scope | None = scope
        while inner is not None:
            if name in inner.parameters:
                return "parameter being used"
            if inner.is_function and name in inner.assigned and name not in inner.foreign:
                return "local variable being used"
            inner = inner.outer
        if name in self.imported:
            return "imported name being used"
        if name in defined:
            return "module-level function or class being used"
        return "module-level variable being used" if name in self.module.assigned else None


def _start(text: Text, node: _Located) -> int:
    return text.at_byte(node.lineno, node.col_offset)


def _end(text: Text, node: _Located) -> int:
    assert node.end_lineno is not None  # ast.parse gives every expression and statement an end
    assert node.end_col_offset is not None
    return text.at_byte(node.end_lineno, node.end_col_offset)


def _constant_type(node: ast.expr) -> type | None:
    """Type of a literal; an f-string counts as a string."""
    if isinstance(node, ast.JoinedStr):
        return str
    return type(node.value) if isinstance(node, ast.Constant) else None


def _arguments(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from arguments.posonlyargs
    yield from arguments.args
    if arguments.vararg is not None:
        yield arguments.vararg
    yield from arguments.kwonlyargs
    if arguments.kwarg is not None:
        yield arguments.kwarg


_FIELDS: dict[type, tuple[str, ...]] = {
    kind: () if name in _LEAVES else tuple(field for field in kind._fields if field not in _SKIPPED_FIELDS)
    for name, kind in vars(ast).items()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}


def _children(node: ast.AST, but: str = "") -> Iterator[ast.AST]:
    for field in _FIELDS[type(node)]:
        value = getattr(node, field, None)
        if field == but:
            continue
        if isinstance(value, list):
            for child in value:
                if isinstance(child, ast.AST):
                    yield child
        elif isinstance(value, ast.AST):
            yield value
