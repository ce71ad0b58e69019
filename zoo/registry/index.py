"""What lists of models and picks need of every entry of a registry, and where the rest of it is in the file.

To read all of 10,000 entries takes seconds. Of an entry that comes from an index, the rest is read when it is asked
for. :mod:`zoo.registry.file` keeps the index of a valid registry in the cache.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from json.decoder import JSONDecoder, scanstring  # type: ignore[attr-defined]

from zoo.registry.entry import LISTED, Entry, Registry

LAYOUT = 1  # to be raised when an index is made in another way
_value = JSONDecoder().raw_decode
_space = re.compile(r"[ \t\n\r]*").match


def index_of(content: bytes) -> bytes:
    """The index of ``content``, a valid registry, as JSON."""
    text = content.decode("latin-1")  # a character is a byte; what is not ASCII is only passed over
    places = dict(_members(text, 0))
    index = {name: json.loads(content[slice(*places[name])]) for name in ("protocols", "datasets")}
    models = {}
    for name, place in _members(text, places["models"][0]):
        data = json.loads(content[slice(*place)])
        entry = Entry.from_dict(name, data)
        facts = {key: data[key] for key, default in LISTED.items() if getattr(entry, key) != default}
        facts["size"] = entry.size
        facts["accuracies"] = {
            protocol: [one.accuracy.value, one.accuracy.n, one.accuracy.ci95] for protocol, one in entry.results.items()
        }
        models[name] = [*place, facts]
    return json.dumps({**index, "models": models}).encode()


def registry_of(index: bytes, content: bytes) -> Registry:
    """The registry ``content``, of which this is the index as JSON.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: it is no index.
    """

    with _without_gc():
        data = json.loads(index)
        models = {
            name: Entry.listed(name, facts, partial(_rest, content, name, begin, end))
            for name, (begin, end, facts) in data["models"].items()
        }
    return Registry(protocols=data["protocols"], datasets=data["datasets"], models=models)


def _rest(content: bytes, name: str, begin: int, end: int) -> Entry:
    return Entry.from_dict(name, json.loads(content[begin:end]))


@contextmanager
def _without_gc() -> Iterator[None]:
    """Without the search for reference cycles, of which JSON has none: it takes a third of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _members(text: str, at: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The keys of the JSON object at ``at``, and where their values begin and end."""
    at = _past(text, _past(text, at) + 1)
    while text[at] != "}":
        key, at = scanstring(text, at + 1)
        begin = _past(text, _past(text, at) + 1)
        end = _value(text, begin)[1]
        yield key, (begin, end)
        at = _past(text, end)
        if text[at] == ",":
            at = _past(text, at + 1)


def _past(text: str, at: int) -> int:
    """Where the white space at ``at`` ends."""
    return _space(text, at).end()  # type: ignore[union-attr]
