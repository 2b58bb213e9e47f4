"""The scripts of the pages as one classic script: a browser loads no modules from a disk, and some thirty slowly from afar.

Every module becomes a function that is run once, after those that it imports from, and gives back what it exports. So names
keep to their modules, which obey rules that make this a matter of lines:

    import { a, b as c } from "./x.js";
    export function f() {      export async function g() {      export class K {      export const N = 1;

and nothing else of what modules can do: no default export, no list of exports, no ``import()``, no ``import.meta``, no
``await`` outside of functions, no circle. What breaks a rule is refused with file and line.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

_NAME = r"[A-Za-z_$][\w$]*"
_IMPORT = re.compile(rf'import \{{ ({_NAME}(?: as {_NAME})?(?:, {_NAME}(?: as {_NAME})?)*) \}} from "\./([\w-]+\.js)";')
_EXPORT = re.compile(rf"export ((?:async )?function\*? ?|class |const )({_NAME})(?=[ (=])")
_REFUSED = [
    (re.compile(r"\bimport\s*\("), "import() is not understood; import at the head of the module"),
    (re.compile(r"\bimport\s*\.\s*meta\b"), "import.meta means nothing outside of a module"),
    (re.compile(r"^\s*export\s+default\b"), "give what is exported a name"),
    (re.compile(r"^\s*export\b"), "only `export function`, `export class` and `export const NAME` are understood"),
    (re.compile(r"^\s*import\b"), 'only `import { a, b } from "./x.js";` on one line is understood'),
    (re.compile(r"[;}]\s*(?:import|export)\b"), "an import or export begins its own line"),
    (
        re.compile(r"^(?:export\s+)?(?:(?:const|let|var)\s[^=]*=\s*)?(?:for\s+)?await\b"),
        "await needs a function around it",
    ),
    (re.compile(r"</script|<!--|]]>", re.IGNORECASE), "this could end the script where it stands inside a page"),
]


@cache
def app_script() -> str:
    """The scripts of all pages."""
    return bundle(files("saescope.web") / "static" / "app")


def bundle(folder: Traversable, entry: str = "main.js") -> str:
    """`entry` and all that it imports, as one classic script.

    Raises:
        ValueError: a module breaks a rule, is missing, or imports what is not exported or in a circle.
    """
    modules = _in_order(folder, entry)
    names = {name: f"saescope_module_{number}" for number, name in enumerate(modules)}
    parts = []
    for name, (lines, exported) in modules.items():
        body = "\n".join(_without_modules(line, names) for line in lines).strip("\n")
        parts.append(
            f"// {name}\nconst {names[name]} = (() => {{\n{body}\nreturn {{ {', '.join(exported)} }};\n}})();\n"
        )
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


def order(folder: Traversable, entry: str = "main.js") -> list[str]:
    """`entry` and all that it imports, each after those that it imports from."""
    return list(_in_order(folder, entry))


_Modules = dict[str, tuple[list[str], list[str]]]  # by file name: the lines, and the names that are exported


def _in_order(folder: Traversable, entry: str) -> _Modules:
    done: _Modules = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ValueError(f"{name} imports itself: {' -> '.join((*above[above.index(name) :], name))}")
        if name in done:
            return
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{above[-1] if above else 'the bundle'} wants {name}, which is not in {folder}")
        lines = file.read_text(encoding="utf-8").splitlines()
        exported, imported = _checked(name, lines)
        for number, wanted, source in imported:
            visit(source, (*above, name))
            missing = [one for one in wanted if one not in done[source][1]]
            if missing:
                raise ValueError(f"{name}:{number}: {source} does not export {', '.join(missing)}")
        done[name] = (lines, exported)

    visit(entry, ())
    return done


def _checked(name: str, lines: list[str]) -> tuple[list[str], list[tuple[int, list[str], str]]]:
    """What a module exports, and what it imports: line, names, file."""
    exported, imported = [], []
    for number, line in enumerate(lines, start=1):
        found = _IMPORT.fullmatch(line)
        if found is not None:
            imported.append((number, [one.split(" as ")[0] for one in found[1].split(", ")], found[2]))
            continue
        definition = _EXPORT.match(line)
        if definition is not None:
            exported.append(definition[2])
        rest = line if definition is None else line.removeprefix("export ")
        for pattern, words in _REFUSED:
            if pattern.search(rest):
                raise ValueError(f"{name}:{number}: {line.strip()!r}: {words}")
    return exported, imported


def _without_modules(line: str, names: dict[str, str]) -> str:
    found = _IMPORT.fullmatch(line)
    if found is not None:
        return f"const {{ {found[1].replace(' as ', ': ')} }} = {names[found[2]]};"
    return line.removeprefix("export ") if _EXPORT.match(line) else line
