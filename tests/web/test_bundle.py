"""Modules as one classic script: in the right order, each in its own scope, and nothing that is only half understood."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from saescope.web.bundle import app_script, bundle, order

APP = files("saescope.web") / "static" / "app"


@pytest.fixture
def modules(tmp_path: Path) -> Callable[..., Path]:
    """Writes modules into a folder: names without ".js", and their text."""

    def write(**texts: str) -> Path:
        for name, text in texts.items():
            (tmp_path / f"{name}.js").write_text(text)
        return tmp_path

    return write


def test_every_module_of_the_pages_is_taken_after_those_it_needs():
    found = order(APP)
    assert found[-1] == "main.js"
    assert sorted(found) == sorted(path.name for path in APP.iterdir() if path.name.endswith(".js"))  # none forgotten
    for place, name in enumerate(found):
        for line in (APP / name).read_text().splitlines():
            if line.startswith("import "):
                assert found.index(line.rpartition('"./')[2].removesuffix('";')) < place


def test_the_bundle_is_made_of_the_modules_lines():
    script = app_script()
    for name in order(APP):
        for line in (APP / name).read_text().splitlines():
            if not line.startswith(("import ", "export ")):
                assert line in script
    assert not any(line.startswith(("import ", "export ")) for line in script.splitlines())


def test_a_module_becomes_a_function(modules: Callable[..., Path]):
    folder = modules(
        main='import { a, b as c } from "./lib.js";\n\nlog(a(1), c);\n',
        lib="let count = 0;\nexport function a(x) {\n  return x;\n}\nexport const b = 2;\n",
    )
    assert bundle(folder) == (
        '(() => {\n"use strict";\n'
        "// lib.js\nconst saescope_module_0 = (() => {\nlet count = 0;\nfunction a(x) {\n  return x;\n}\nconst b = 2;\n"
        "return { a, b };\n})();\n\n"
        "// main.js\nconst saescope_module_1 = (() => {\nconst { a, b: c } = saescope_module_0;\n\nlog(a(1), c);\n"
        "return {  };\n})();\n})();\n"
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("export default function f() {}", "give what is exported a name"),
        ("export { a, b };", "only `export function`"),
        ('export * from "./lib.js";', "only `export function`"),
        ("export let a = 1;", "only `export function`"),
        ("export const { a } = {};", "only `export function`"),
        ("export const [a] = [];", "only `export function`"),
        ("  export const a = 1;", "only `export function`"),
        ('import a from "./lib.js";', "on one line is understood"),
        ('import * as a from "./lib.js";', "on one line is understood"),
        ('import "./lib.js";', "on one line is understood"),
        ("import {", "on one line is understood"),
        ('import { a } from "./lib.js"; a();', "on one line is understood"),
        ('import { a } from "../lib.js";', "on one line is understood"),
        ('import { a } from "https://elsewhere.example/lib.js";', "on one line is understood"),
        ("f(); export const a = 1;", "begins its own line"),
        ('f(await import("./lib.js"));', "import() is not understood"),
        ("export const a = import('./lib.js');", "import() is not understood"),
        ("f(import.meta.url);", "means nothing outside"),
        ("await f();", "needs a function around it"),
        ("const a = await f();", "needs a function around it"),
        ("export const a = await f();", "needs a function around it"),
        ("for await (const a of f()) g(a);", "needs a function around it"),
        ('const a = "</SCRIPT>";', "could end the script"),
        ("// <!-- hidden", "could end the script"),
    ],
)
def test_what_is_not_understood_is_refused_with_file_and_line(modules: Callable[..., Path], line: str, words: str):
    folder = modules(main=f"const first = 1;\n{line}\n", lib="export const a = 1;\n")
    with pytest.raises(ValueError, match=r"main\.js:2: ") as refused:
        bundle(folder)
    assert words in str(refused.value)


def test_what_fits_no_module_is_refused(modules: Callable[..., Path]):
    main = 'import { a, b } from "./lib.js";\n'
    with pytest.raises(ValueError, match=r"main\.js wants lib\.js, which is not in"):
        bundle(modules(main=main))
    with pytest.raises(ValueError, match=r"main\.js:1: lib\.js does not export b"):
        bundle(modules(main=main, lib="export const a = 1, b = 2;\n"))
    circle = {"main": 'import { a } from "./one.js";', "one": 'import { b } from "./two.js";\nexport const a = 1;'}
    with pytest.raises(ValueError, match=r"one\.js imports itself: one\.js -> two\.js -> one\.js"):
        bundle(modules(**circle, two='import { a } from "./one.js";\nexport const b = 1;'))


@pytest.mark.slow
def test_it_runs_as_the_modules_do(browser: Any, modules: Callable[..., Path]):
    folder = modules(
        main='import { add, names as all } from "./a.js";\nimport { Thing, later } from "./b.js";\n'
        "const count = 'main';\nadd(count);\nadd(new Thing().name);\nlater().then(() => { window.found = all; });\n",
        a='const count = "a";\nexport const names = [count];\nexport function add(name) {\n  names.push(name);\n}\n',
        b='import { add } from "./a.js";\nconst count = "b";\nadd(count);\nexport class Thing {\n  name = "thing";\n}\n'
        'export async function later() {\n  await null;\n  add("later");\n}\n',
    )
    (folder / "app.js").write_text(bundle(folder))
    (folder / "page.html").write_text("<!doctype html><title>x</title><script defer src=app.js></script>")
    page = browser.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((folder / "page.html").as_uri())
    page.wait_for_function("window.found")
    assert page.evaluate("window.found") == ["a", "b", "main", "thing", "later"]
    assert page.evaluate("typeof add + typeof count + typeof saescope_module_0") == "undefined" * 3
    assert said == []
    page.close()


@pytest.mark.slow
def test_the_scripts_of_the_pages_run_from_a_disk(visit: Callable[..., Any], tmp_path: Path):
    (tmp_path / "app.js").write_text(app_script())
    (tmp_path / "page.html").write_text(
        '<!doctype html><title>x</title><link rel="icon" href="data:,"><script defer src="app.js"></script><p>words</p>'
    )
    page = visit((tmp_path / "page.html").as_uri())
    page.keyboard.press("?")
    assert page.locator("dialog h2").inner_text() == "Keys"
