from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.budget import averaged, blended, distance, per_byte
from atlas_flwr.errors import BudgetError

SHAPES = {"a": (4, 4), "b": (12, 4)}
shares = st.fixed_dictionaries(
    {"a": st.floats(0, 1), "b": st.floats(0, 1), "c": st.floats(0.01, 1)}
).map(lambda d: {n: v / sum(d.values()) for n, v in d.items()})


def test_a_layer_twice_as_large_needs_twice_the_sensitivity():
    found = per_byte({"a": 1.0, "b": 2.0, "embedding": 9.0}, SHAPES)
    assert found == pytest.approx({"a": 0.5, "b": 0.5})


@pytest.mark.parametrize(
    "bad", [{}, {"a": 0.0}, {"a": float("nan")}, {"a": -1, "b": 9}]
)
def test_what_tells_nothing_is_refused(bad):
    with pytest.raises(BudgetError, match="did a backward pass reach the layers"):
        per_byte(bad, SHAPES)


@given(st.lists(shares, min_size=1, max_size=3))
def test_the_first_measurements_are_averaged_plainly(measured):
    mean = None
    for count, found in enumerate(measured, start=1):
        mean = blended(mean, found, count, floor=0.3)
    assert mean == pytest.approx(averaged(measured))


@given(st.lists(shares, min_size=2, max_size=4), st.data())
def test_a_member_counts_by_its_examples(members, data):
    sizes = st.lists(
        st.integers(1, 3), min_size=len(members), max_size=len(members)
    ).filter(lambda s: len(set(s)) > 1)
    examples = data.draw(sizes)
    each = [m for m, n in zip(members, examples, strict=True) for _ in range(n)]
    assert averaged(members, examples) == pytest.approx(averaged(each))
    assert averaged(members, [7.0] * len(members)) == averaged(members)


def test_later_ones_count_for_at_least_the_floor():
    assert blended({"a": 0.0}, {"a": 1.0}, count=100, floor=0.3) == {"a": 0.3}


@given(shares, shares, shares)
def test_the_distance_is_a_metric_within_one(x, y, z):
    assert distance(x, x) == 0
    assert distance(x, y) == distance(y, x) <= 1 + 1e-9
    assert distance(x, z) <= distance(x, y) + distance(y, z) + 1e-9
    assert distance({"a": 1.0}, {"b": 1.0}) == 1
