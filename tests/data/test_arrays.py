from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atlas_flwr.data.readers import arrays
from atlas_flwr.data.readers.arrays import BrokenArrayError, array_entries

_TEXTS = st.text(st.sampled_from('[]{}",:\\ \né\u2028😀1e'), max_size=8)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3)
    ),
    max_leaves=8,
)


def _cut(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


def _read(text: str, size: int) -> list[Any]:
    return list(array_entries(_cut(text, size), json.JSONDecoder().raw_decode))


def _whole(text: str) -> list[Any] | None:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, list) else None


@given(
    entries=st.lists(_VALUES, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    is_ascii=st.booleans(),
    size=st.integers(1, 30),
)
def test_entries_read_one_by_one_are_those_of_the_whole(
    entries: list[Any], indent: int | None, is_ascii: bool, size: int
) -> None:
    text = json.dumps(entries, indent=indent, ensure_ascii=is_ascii)
    assert _read(f" \r\n{text}\n\t", size) == json.loads(text)


@given(
    st.text(st.sampled_from('[[]]{}"",:1.e-\\u0 \n'), max_size=20), st.integers(1, 9)
)
@example("[12, 1.5e3]", 1)
@example("[1,]", 1)
@example("[,1]", 1)
@example("[1 2]", 2)
@example("[1]]", 3)
def test_text_is_refused_just_where_the_whole_is(text: str, size: int) -> None:
    expected = _whole(text)
    if expected is None:
        with pytest.raises(BrokenArrayError):
            _read(text, size)
    else:
        assert _read(text, size) == expected


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_fault_is_told_by_its_entry_and_its_line(size: int) -> None:
    text = '[\n{"a": 1},\n{"a":\n 2\n "b": 3},\n{"a": 4}]'
    with pytest.raises(BrokenArrayError, match="entry 2, line 5: Expecting ','"):
        _read(text, size)


def test_a_bracket_that_never_closes_does_not_take_a_file_into_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arrays, "LONGEST", 1000)
    pieces = _cut('[{"a": 1},\n[' + '{"a": 2},' * 10_000, 100)
    read = array_entries(pieces, json.JSONDecoder().raw_decode)
    assert next(read) == {"a": 1}
    with pytest.raises(BrokenArrayError, match="entry 2, line 2: has more than 1,000"):
        next(read)
    assert sum(map(len, pieces)) > 80_000
