"""Dictionaries that are open, with their models: opened when first asked for, kept while they are used.

Only the thread of the queue opens and uses them; what goes on may be asked from everywhere. Dictionaries of one model share
it. One that was written anew where it lies is opened anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saescope.formats.reference import resolve
from saescope.interventions import Site
from saescope.store import DictionaryRecord, Store
from saescope.store.errors import NotInStoreError, StoreFailedError
from saescope.web.live import NoModelError
from saescope.web.whereabouts import Whereabouts

if TYPE_CHECKING:
    from saescope.dictionaries import Dictionary
    from saescope.models import LanguageModel

_LOG = logging.getLogger("saescope.web")


@dataclass(eq=False)
class Opened:
    """A dictionary with its model, and its place in the model as each analysis has it."""

    version: tuple[Any, ...]
    dictionary: Dictionary
    model: LanguageModel
    model_key: tuple[str, str]
    opens: bool
    """Whether windows of text begin with a token of their own."""
    sites: dict[tuple[str, str], Site] = field(default_factory=dict)


@dataclass(frozen=True)
class _Loading:
    name: str
    what: str
    since: float


class Shelf:
    """The open dictionaries of a store."""

    def __init__(
        self,
        store: Store,
        places: Whereabouts,
        *,
        num_open: int,
        device: str,
        load_model: Callable[..., LanguageModel],
        load_dictionary: Callable[..., Dictionary],
    ) -> None:
        """
        Args:
            num_open: dictionaries that stay open; a model stays as long as one of its dictionaries does.
        """
        self._store, self._places, self._num_open, self._device = store, places, num_open, device
        self._load_model, self._load_dictionary = load_model, load_dictionary
        self._lock = threading.Lock()  # of the three below
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._loading: _Loading | None = None
        self._failed: dict[str, str] = {}

    def clear(self) -> None:
        """Lets everything go."""
        with self._lock:
            self._opened.clear()

    def get(self, name: str) -> Opened | None:
        """A dictionary, if it is open."""
        with self._lock:
            return self._opened.get(name)

    def state(self, name: str) -> tuple[str, str]:
        """The state of a dictionary as `Live.state` names it, and words."""
        with self._lock:
            loading, failed, is_open = self._loading, self._failed.get(name), name in self._opened
        if loading is not None and loading.name == name:
            return "loading", f"Loading {loading.what}, {time.monotonic() - loading.since:.0f} s so far."
        if is_open:
            return "ready", "The model is loaded."
        if failed is not None:
            return "failed", failed
        return "cold", "The model will be loaded when it is first asked."

    def take(
        self, name: str, analysis: str | None, *, loading: Callable[[], AbstractContextManager[None]]
    ) -> tuple[Opened, Site]:
        """A dictionary in its model, with hook points and maxima of the analysis as it now stands.

        Args:
            loading: entered while something is loaded.

        Raises:
            NoModelError: it can not be opened; tried again the next time.
        """
        found = self._store.analysis(name, analysis)
        record = self._store.dictionary(name)
        with self._failing_in_words(record):
            opened = self._known(record)
            if opened is None:
                try:
                    with loading():
                        opened = self._load(record)
                finally:
                    with self._lock:
                        self._loading = None
            key = (found.name, found.created_at)
            if key not in opened.sites:
                site = Site.in_store(self._store, name, opened.dictionary, opened.model, analysis=found.name)
                others = {other: each for other, each in opened.sites.items() if other[0] != found.name}
                opened.sites = {key: site, **others}
        with self._lock:
            self._failed.pop(name, None)
            self._opened[name] = opened
            self._opened.move_to_end(name)
        return opened, opened.sites[key]

    def weights(self, name: str) -> Dictionary:
        """A dictionary without its model; one that is not open does not stay.

        Raises:
            NoModelError: as :meth:`take`.
        """
        record = self._store.dictionary(name)
        known = self.get(name)
        with self._failing_in_words(record):
            if known is not None and known.version == self._version(record):
                return known.dictionary
            try:
                return self._weights(record)
            finally:
                with self._lock:
                    self._loading = None

    @contextmanager
    def _failing_in_words(self, record: DictionaryRecord) -> Iterator[None]:
        try:
            yield
        except (NotInStoreError, StoreFailedError):
            raise
        except Exception as error:
            if not isinstance(error, ValueError | OSError | LookupError):
                _LOG.warning("opening %s failed", record.name, exc_info=error)
            words = f"{record.name} can not be opened here: {error or type(error).__name__}"
            with self._lock:
                self._failed[record.name] = words
            raise NoModelError(words) from error

    def _known(self, record: DictionaryRecord) -> Opened | None:
        """The open one; otherwise makes room."""
        version = self._version(record)
        with self._lock:
            known = self._opened.get(record.name)
            if known is not None and known.version == version:
                return known
            self._opened.pop(record.name, None)
            while len(self._opened) >= self._num_open:  # before the next one needs the memory
                self._opened.popitem(last=False)
        return None

    def _version(self, record: DictionaryRecord) -> tuple[Any, ...]:
        source, model = self._places.source(record), self._places.model(record)
        return source, _version_of(source), model, _version_of(model)

    def _load(self, record: DictionaryRecord) -> Opened:
        model = self._places.model(record)
        version = self._version(record)  # before it is read: what changes meanwhile is read again
        dictionary = self._weights(record)
        model_key = model, _dtype(dictionary.metadata)
        with self._lock:
            of_others = [each.model for each in self._opened.values() if each.model_key == model_key]
        if of_others:
            network = of_others[0]
        else:
            self._say(record.name, f"the model {model}")
            network = self._load_model(model, dtype=model_key[1], device=self._device)
        self._say(record.name, "the dictionary into the model")
        return Opened(version, dictionary, network, model_key, self._opens(record.name, dictionary, network))

    def _weights(self, record: DictionaryRecord) -> Dictionary:
        self._say(record.name, "the dictionary")
        source = self._places.source(record)
        path = Path(source).expanduser()
        files = resolve(path if path.exists() else source, store_paths=None)
        return self._load_dictionary(files, device=self._device)

    def _say(self, name: str, what: str) -> None:
        with self._lock:
            loading = self._loading
            since = loading.since if loading is not None and loading.name == name else time.monotonic()
            self._loading = _Loading(name, what, since)

    def _opens(self, name: str, dictionary: Dictionary, model: LanguageModel) -> bool:
        """Whether windows begin with an opening token: as the weights' metadata says, else as the stored windows do."""
        said = dictionary.metadata.get("prepend_bos")
        if isinstance(said, bool):
            return said
        for record in self._store.features(name, sort="num_firings", limit=1).features:
            examples = self._store.page(name, record.index).all_examples
            if examples:
                return all(example.window.token_ids[0] in model.special_token_ids for example in examples)
        return True


def _version_of(place: str) -> tuple[int, int] | None:
    """Changes when a folder or file is replaced; None of what is no path."""
    path = Path(place).expanduser()
    settings = (path / "cfg.json", path / "dictionary" / "cfg.json", path / "config.json")
    try:
        found = next((each for each in settings if each.is_file()), path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _dtype(metadata: Mapping[str, Any]) -> str:
    """In which numbers the model ran when the dictionary was trained, where that is known."""
    found: Any = metadata
    for key in ("saescope", "run", "model", "dtype"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else "float32"
