"""An export holds what the store holds, in files that need no server, and is written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sqlite3
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from saescope.store import Store
from saescope.store.records import (
    AnalysisRecord,
    DictionaryRecord,
    Example,
    Feature,
    FeatureDetail,
    FeatureRecord,
    Label,
    Neighbour,
    Window,
)
from saescope.web import export, whole_folder
from saescope.web.bundle import app_script
from saescope.web.export import FileLinks, export_file, export_folder, words_of
from saescope.web.page_json import feature_as_json


def rows_in(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "rows.js").read_text()
    assert text.startswith("window.SAESCOPE_ROWS = [")
    return json.loads(text.removeprefix("window.SAESCOPE_ROWS = ").removesuffix(";\n"))


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_holds_a_page_for_each_feature_and_all_that_they_link_to(store: Store, tmp_path: Path):
    told: list[int] = []
    written = export_folder(store, tmp_path / "out", progress=told.append)
    folder = tmp_path / "out"
    assert told == [1, 2, 3, 4]
    assert written.path == folder / "index.html"
    assert written.num_features == 4
    assert {name for name in files_in(folder) if name.startswith("f/")} == {f"f/{i}.html" for i in (3, 5, 7, 9)}
    assert written.num_bytes == sum((folder / name).stat().st_size for name in files_in(folder))
    assert (folder.stat().st_mode & 0o777, (folder / "index.html").stat().st_mode & 0o444) == (0o755, 0o444)
    for page in folder.rglob("*.html"):
        text = page.read_text()
        for kind, address in re.findall(r'<[^>]* (href|src)="([^"]*)"', text):
            if not address.startswith(("#", "?")):
                target = (page.parent / unescape(address)).resolve()
                assert target.is_file(), (page, kind, address)
                assert target.is_relative_to(folder.resolve())
        assert "http" not in re.sub(r'http-equiv|xmlns="[^"]*"', "", text)
        assert "/api" not in text
        assert "<script>" not in text.replace("&lt;script&gt;", "")
        assert '<meta http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;;' in text
    assert (folder / "app.js").read_text() == app_script()
    assert json.loads((folder / "saescope-export.json").read_text())["dictionary"] == "tiny <b>topk</b>"


def test_rows_are_the_stores(store: Store, tmp_path: Path):
    store.explain("tiny <b>topk</b>", 9, _explanation("negative ones, Überall", 0.25))
    export_folder(store, tmp_path / "out")
    rows = rows_in(tmp_path / "out")
    assert [row["index"] for row in rows] == [3, 5, 7, 9]
    for row in rows:
        record = feature_as_json(store.page(None, row["index"]).feature)
        for key, value in record.items():
            assert row.get(key) == value
    assert rows[0]["tags"] == ["syntax <u>"]
    assert rows[0]["is_bookmarked"] is True
    assert rows[0]["explanation"] == {
        "text": "a <i>receiver</i>",
        "method": "detection",
        "author": "judge",
        "score": 0.8125,
    }
    assert "is_bookmarked" not in rows[1]
    with sqlite3.connect(tmp_path / "features.db") as database:
        indexed = dict(database.execute("select feature_index, words from feature_text"))
    database.close()
    assert {row["index"]: row["words"] for row in rows} == indexed
    assert "überall" in rows[3]["words"]
    assert words_of(store.page(None, 3)) == indexed[3]


def _explanation(text: str, score: float) -> Any:
    from saescope.store.records import Explanation

    return Explanation(text=text, method="detection", author="judge", score=score)


def test_pages_lead_to_each_other_and_only_to_what_was_exported(store: Store, tmp_path: Path):
    export_folder(store, tmp_path / "some", indices=[9, 3, 3])
    page = (tmp_path / "some" / "f" / "3.html").read_text()
    near = dict(re.findall(r'<a data-keeps href="([^"]*)"><span class="index">(\d+)</span>', page))
    assert near == {"9.html": "9"}
    assert re.findall(r'rel="(prev|next)"[^>]*href="([^"]*)"', page) == [("next", "9.html")]
    assert 'class="brand" href="../index.html"' in page
    assert re.search(r'<span class="index">5</span>', page)  # named, and no link
    assert "/f/5.html" not in page
    last = (tmp_path / "some" / "f" / "9.html").read_text()
    assert re.findall(r'rel="(prev|next)"[^>]*href="([^"]*)"', last) == [("prev", "3.html")]
    export_folder(store, tmp_path / "all")
    page = (tmp_path / "all" / "f" / "5.html").read_text()
    assert re.findall(r'rel="(prev|next)"[^>]*href="([^"]*)"', page) == [("prev", "3.html"), ("next", "7.html")]
    near = re.findall(r'<a data-keeps href="([^"]*)"><span', (tmp_path / "all" / "f" / "3.html").read_text())
    assert near == ["5.html", "9.html"]  # 77 was not analysed


def test_the_start_page_is_the_list_by_density(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    export_folder(store, tmp_path / "out")
    start = (tmp_path / "out" / "index.html").read_text()
    assert re.findall(r'<th scope="row" class="c-index"><a href="([^"]*)">(\d+)', start) == [
        ("f/3.html", "3"), ("f/9.html", "9"), ("f/5.html", "5"), ("f/7.html", "7"),
    ]  # fmt: skip
    assert "4 features" in start
    assert start.index('src="rows.js"') < start.index('src="app.js"')
    monkeypatch.setattr(export, "ROWS_DRAWN", 2)
    export_folder(store, tmp_path / "fewer")
    start = (tmp_path / "fewer" / "index.html").read_text()
    assert re.findall(r'class="c-index"><a href="f/(\d+).html', start) == ["3", "9"]
    assert len(rows_in(tmp_path / "fewer")) == 4


def test_many_are_read_in_order_and_few_one_by_one_and_both_are_the_same(store: Store, tmp_path: Path):
    export_folder(store, tmp_path / "all")
    export_folder(store, tmp_path / "one", indices=[7])
    only = (tmp_path / "one" / "f" / "7.html").read_text()
    among = (tmp_path / "all" / "f" / "7.html").read_text()
    without_steps = re.compile(r'<nav class="steps".*?</nav>', re.DOTALL)
    assert without_steps.sub("", only) == without_steps.sub("", among)


def test_an_older_analysis_can_be_exported(store: Store, tmp_path: Path):
    record = store.dictionary()
    newer = AnalysisRecord(name="newer", dataset="other", context_size=4, num_tokens=10)
    store.write(
        record, newer, [Feature(record=FeatureRecord(index=1, num_firings=2, density=0.2, max_activation=1.0))], [], []
    )
    export_folder(store, tmp_path / "new")
    export_folder(store, tmp_path / "old", analysis="default")
    assert {row["index"] for row in rows_in(tmp_path / "new")} == {1}
    assert {row["index"] for row in rows_in(tmp_path / "old")} == {3, 5, 7, 9}


@pytest.mark.parametrize(
    "name", ["../../out", "/tmp/out", "..", "CON", "x" * 300, "<script>alert(1)</script>", "%2e%2e"]
)
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path):
    inside = tmp_path / "inside"
    inside.mkdir()
    with Store.open(tmp_path / "names.db") as store:
        record = DictionaryRecord(name=name, model=name, hook_point=name, architecture="topk", d_in=1, d_sae=2)
        window = Window.of_texts(id=0, document="../../../doc.html", offset=0, token_ids=[1], token_texts=["../x"])
        example = Example(feature=0, window_id=0, peak=0, activation=1.0, positions=(0,), values=(1.0,), top_rank=0)
        label = Label(text="../../label</title>", kind="tokens", precision=1.0, lift=1.0, num_firings=1)
        feature = FeatureRecord(index=0, num_firings=1, density=0.5, max_activation=1.0, label=label)
        detail = FeatureDetail(neighbours={"decoder": (Neighbour(feature=1, value=0.5),)})
        store.write(record, AnalysisRecord(name=name, dataset=name, context_size=1, num_tokens=2),
                    [Feature(record=feature, detail=detail)], [window], [example])  # fmt: skip
        before = files_in(tmp_path)
        export_folder(store, inside / "out")
        export_file(store, inside / "one.html")
    new = files_in(tmp_path) - before - {"names.db-wal", "names.db-shm"}
    assert {name.split("/")[0] for name in new} == {"inside"}
    assert {name.split("/")[1] for name in new} == {"out", "one.html"}
    assert "out/f/0.html" in {name.removeprefix("inside/") for name in new}


# Whole or not at all


def test_what_is_there_is_not_replaced_unless_it_is_an_export_and_that_is_wanted(store: Store, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    export_folder(store, out)  # an empty folder is nobody's
    with pytest.raises(FileExistsError, match="--overwrite replaces"):
        export_folder(store, out)
    export_folder(store, out, indices=[5], overwrite=True)
    assert {name for name in files_in(out) if name.startswith("f/")} == {"f/5.html"}
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == ["out"]

    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt, which is of no export"):
        export_folder(store, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"

    other = tmp_path / "other"
    (other / "f").mkdir(parents=True)
    (other / "index.html").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError):
            export_folder(store, other, overwrite=overwrite)
    assert (other / "index.html").read_text() == "mine"

    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "link").symlink_to(other)
    for place in (file, tmp_path / "link"):
        with pytest.raises(FileExistsError, match="is no folder"):
            export_folder(store, place, overwrite=True)


def test_a_failure_leaves_what_was_there(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    export_folder(store, out)
    before = {name: (out / name).read_bytes() for name in files_in(out)}

    def fails(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    for place in (out, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            export_folder(store, place, overwrite=True, progress=fails)
    assert {name: (out / name).read_bytes() for name in files_in(out)} == before

    renamed: list[str] = []
    original = whole_folder.os.rename

    def full(source: Any, target: Any) -> None:
        renamed.append(str(target))
        if len(renamed) == 2:  # the old one is aside, the new one not there yet
            raise OSError(28, "No space left on device")
        original(source, target)

    monkeypatch.setattr(whole_folder.os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        export_folder(store, out, indices=[5], overwrite=True)
    assert {name: (out / name).read_bytes() for name in files_in(out)} == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]  # nothing half-written beside it


def test_what_the_store_does_not_hold_is_refused_before_anything_is_written(store: Store, tmp_path: Path):
    for write in (export_folder, export_file):
        for given, words in [
            ({"indices": [3, 4, 6]}, "has no feature 4, 6; it has 4 of its 4,096 features"),
            ({"indices": []}, "no feature is chosen"),
            ({"name": "other"}, "no dictionary named 'other'"),
            ({"analysis": "other"}, "no analysis named 'other'"),
            ({"indices": range(10, 4000)}, "and 3,985 more; it has 4"),
        ]:
            with pytest.raises(ValueError, match=words):
                write(store, tmp_path / "out.html", **given)
    assert not (tmp_path / "out.html").exists()
    assert list(tmp_path.glob(".out*")) == []


# One file


def test_one_file_holds_everything_and_lets_only_that_run(store: Store, tmp_path: Path):
    file = tmp_path / "few.html"
    written = export_file(store, file, indices=[5, 3])
    text = file.read_text()
    assert written.path == file
    assert written.num_bytes == file.stat().st_size == len(text.encode())
    assert [path.name for path in tmp_path.iterdir() if "few" in path.name] == ["few.html"]
    assert re.findall(r'<article class="card" id="feature-(\d+)"', text) == ["3", "5"]
    assert "inline:" not in text
    for address in re.findall(r'<[^>]* (?:href|src)="([^"]*)"', text):
        assert address.startswith(("#", "?", "data:image/svg+xml;base64,"))
        if address.startswith("#"):
            assert f'id="{address[1:]}"' in text
    assert re.findall(r'class="c-index"><a href="#feature-(\d+)"', text) == ["3", "5"]

    policy = unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1])
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert (len(scripts), len(styles)) == (1, 1)
    for kind, content in (("script-src", scripts[0]), ("style-src-elem", styles[0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
    assert app_script() in scripts[0]
    island = re.search(r'<script type="application/json" id="rows">(.*?)</script>', text, re.DOTALL)[1]
    export_folder(store, tmp_path / "same", indices=[5, 3])
    assert json.loads(island) == rows_in(tmp_path / "same")
    assert text.rindex("</article>") < text.index("<script>")


def test_one_file_has_bounds(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export, "MOST_IN_ONE_FILE", 3)
    with pytest.raises(ValueError, match="4 features are too many for one file, which can have 3"):
        export_file(store, tmp_path / "a.html")
    size = export_file(store, tmp_path / "b.html", indices=[3, 5, 7]).num_bytes
    monkeypatch.setattr(export, "MOST_BYTES_IN_ONE_FILE", size)
    export_file(store, tmp_path / "c.html", indices=[3, 5, 7])
    monkeypatch.setattr(export, "MOST_BYTES_IN_ONE_FILE", size - 1)
    with pytest.raises(ValueError, match=r"make a page of 0\.\d MB, and one file can have"):
        export_file(store, tmp_path / "d.html", indices=[3, 5, 7])
    assert not (tmp_path / "a.html").exists()
    assert not (tmp_path / "d.html").exists()


def test_one_file_replaces_only_an_export(store: Store, tmp_path: Path):
    file = tmp_path / "few.html"
    export_file(store, file, indices=[3])
    with pytest.raises(FileExistsError, match="--overwrite replaces an earlier export"):
        export_file(store, file, indices=[5])
    export_file(store, file, indices=[5], overwrite=True)
    assert 'id="feature-5"' in file.read_text()
    file.write_text("<!doctype html><p>mine")
    with pytest.raises(FileExistsError, match="no earlier export"):
        export_file(store, file, indices=[5], overwrite=True)
    assert file.read_text() == "<!doctype html><p>mine"
    with pytest.raises(FileExistsError, match="is a folder"):
        export_file(store, tmp_path, indices=[5], overwrite=True)


def test_addresses_of_files():
    deep, start = FileLinks("../", {3}), FileLinks()
    assert (deep.home(), deep.features("a/b", analysis="x"), deep.asset("app/app.css")) == (
        "../index.html", "../index.html", "../app.css",
    )  # fmt: skip
    assert (deep.feature("a/b", 3, context="5"), deep.feature("a/b", 4)) == ("3.html", None)
    assert (start.home(), start.feature("a/b", 4), start.asset("look.css")) == ("index.html", "f/4.html", "look.css")
    assert deep.assets == {"app/app.css"}
