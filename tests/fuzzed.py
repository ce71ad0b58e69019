"""Files of JSON with something wrong in them, for tests of readers."""

from __future__ import annotations

import json

from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**30, -1, 0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def altered(draw: st.DrawFn, whole: bytes) -> bytes:
    """``whole`` with some bytes replaced, a value of its JSON replaced or removed, or other bytes altogether."""
    how = draw(st.sampled_from(["bytes", "json", "json", "other"]))
    if how == "other":
        return draw(st.binary(max_size=200))
    if how == "bytes":
        start = draw(st.integers(0, len(whole)))
        return whole[:start] + draw(st.binary(max_size=9)) + whole[start + draw(st.integers(0, 30)) :]
    data = json.loads(whole)
    where, steps = data, draw(st.integers(1, 6))
    for _ in range(steps):
        if not isinstance(where, dict | list) or not where:
            break
        key = draw(st.sampled_from(list(where) if isinstance(where, dict) else range(len(where))))
        if not isinstance(where[key], dict | list) or draw(st.integers(0, 3)) == 0:
            if draw(st.booleans()):
                where[key] = draw(JSON)
            else:
                del where[key]
            break
        where = where[key]
    return json.dumps(data).encode()
