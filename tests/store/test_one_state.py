"""Several questions that see one state of the store."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from sqlalchemy import event

from saescope.store import NotInStoreError, Store


def _in_a_thread(work: object) -> None:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_all_questions_see_the_state_of_the_first(store: Store, store_address: str, make: SimpleNamespace) -> None:
    store.write(make.dictionary(), make.analysis(), [make.feature(1, density=0.5)], [], [])

    def write() -> None:
        with Store.open(store_address) as other:
            other.tag("tiny", 1, "new")
            other.write(make.dictionary(), make.analysis("later"), [make.feature(2)], [], [])
            other.write(make.dictionary("more"), make.analysis(), [make.feature(3)], [], [])

    seen: list[object] = []
    with store.one_state():
        assert store.tags("tiny") == {}
        _in_a_thread(write)
        assert store.tags("tiny") == {}
        assert store.analysis("tiny").name == "default"
        assert [each.index for each in store.features().features] == [1]
        assert store.page(None, 1).tags == ()
        with store.one_state():
            assert store.count("tiny") == 1
        assert [each.name for each in store.dictionaries()] == ["tiny"]
        with pytest.raises(NotInStoreError, match="tiny"):
            store.dictionary("more")
        _in_a_thread(lambda: seen.extend([store.tags("tiny"), store.analysis("tiny").name]))
    assert seen == [{"new": 1}, "later"]  # the state belongs to its thread
    assert store.tags("tiny") == {"new": 1}
    assert store.page("tiny", 1, analysis="default").tags == ("new",)
    assert [each.name for each in store.dictionaries()] == ["more", "tiny"]


def test_a_dictionary_is_looked_for_once(store: Store, make: SimpleNamespace) -> None:
    store.write(make.dictionary(), make.analysis(), [make.feature(1)], [], [])
    store.write(make.dictionary(), make.analysis("later"), [make.feature(2)], [], [])
    asked: list[str] = []
    event.listen(store._engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    with store.one_state():
        for _ in range(3):
            assert [each.index for each in store.features("tiny").features] == [2]
            assert [each.index for each in store.features("tiny", analysis="default").features] == [1]
            assert store.tags("tiny") == {}
    assert sum("from dictionary" in statement for statement in asked) == 1
    asked.clear()
    assert store.tags("tiny") == store.tags("tiny") == {}
    assert sum("from dictionary" in statement for statement in asked) == 2


def test_an_error_inside_ends_the_state(store: Store, make: SimpleNamespace) -> None:
    with pytest.raises(NotInStoreError), store.one_state():
        store.dictionary("tiny")
    store.write(make.dictionary(), make.analysis(), [make.feature(1)], [], [])
    assert store.dictionary("tiny").name == "tiny"
