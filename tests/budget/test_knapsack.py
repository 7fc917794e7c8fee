from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.budget.knapsack import Item, knapsack
from atlas_flwr.errors import BudgetError

options = st.lists(
    st.tuples(st.floats(0, 9), st.integers(0, 40)), min_size=1, max_size=4
)
items = st.lists(
    options.map(lambda o: Item(tuple(g for g, _ in o), tuple(c for _, c in o))),
    min_size=1,
    max_size=5,
)


def worth(found, chosen):
    gain = sum(i.gains[o] for i, o in zip(found, chosen, strict=True))
    return gain, sum(i.costs[o] for i, o in zip(found, chosen, strict=True))


@given(items, st.integers(0, 150))
@settings(max_examples=150)
def test_the_choice_is_the_best_of_all(found, capacity):
    ways = itertools.product(*(range(len(item.costs)) for item in found))
    fitting = [worth(found, way)[0] for way in ways if worth(found, way)[1] <= capacity]
    if not fitting:
        with pytest.raises(BudgetError, match="the cheapest options cost"):
            knapsack(found, capacity)
        return
    gain, cost = worth(found, knapsack(found, capacity))
    assert gain == pytest.approx(max(fitting))
    assert cost <= capacity


@given(items, st.integers(40, 200), st.integers(40, 200))
def test_more_capacity_never_gains_less(found, a, b):
    floor = sum(min(item.costs) for item in found)
    less, more = (worth(found, knapsack(found, floor + c))[0] for c in sorted((a, b)))
    assert less <= more + 1e-9


def test_a_coarse_table_stays_within_the_capacity_and_near_the_best():
    found = [Item((0.0, 1.0 + i / 7), (0, 10_000_019 + 97 * i)) for i in range(12)]
    gain, cost = worth(found, knapsack(found, 60_000_000))
    assert cost <= 60_000_000
    assert gain >= sum(1.0 + i / 7 for i in range(7, 12)) - 1e-9


@pytest.mark.parametrize("costs", [(), (1, 2), (-1,)])
def test_an_impossible_item_is_refused(costs):
    with pytest.raises(BudgetError, match="as many of the one as of the other"):
        Item((1.0,), costs)
