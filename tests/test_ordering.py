"""Names that are numbers stand by their value, others behind them as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.ordering import by_number


@given(st.lists(st.integers(0, 10**30)), st.lists(st.text("abc-", max_size=3)))
def test_numbers_stand_by_value_and_texts_behind_them(numbers, texts):
    mixed = [*texts, *map(str, numbers)]
    assert sorted(mixed, key=by_number) == [*map(str, sorted(numbers)), *sorted(texts)]
