"""Rows of tokens stand side by side, with their ends in the last column."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.data.tokens import common_start, left_padded, token_ids

ROWS = st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=4)


@given(ROWS.filter(any))
def test_each_row_is_under_its_mask_and_filler_before_it(rows):
    ids, mask = left_padded(rows, 77)
    for row, line, known in zip(rows, ids.tolist(), mask.tolist(), strict=True):
        before = len(line) - len(row)
        assert line == [77] * before + row
        assert known == [0] * before + [1] * len(row)


@given(st.text("ab"), st.text("ab"))
def test_a_common_start_is_the_longest(one, other):
    a, b = list(map(ord, one)), list(map(ord, other))
    shared = common_start(a, b)
    assert a[:shared] == b[:shared]
    assert a[shared : shared + 1] != b[shared : shared + 1] or not a[shared:]


def test_a_text_alone_has_nothing_around_it(tiny_tokenizer):
    assert tiny_tokenizer.decode(token_ids(tiny_tokenizer, "Grün.")) == "Grün."
    assert token_ids(tiny_tokenizer, "") == []
