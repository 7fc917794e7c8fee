from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.budget import AdaptedLayer, MemoryEstimate, allocate
from atlas_flwr.errors import BudgetError

SHAPES = {"q": (6, 4), "up": (12, 4)}
BLOCKS = 4
LAYERS = [
    AdaptedLayer(f"{block}.{name}", block, shape)
    for block in range(BLOCKS)
    for name, shape in SHAPES.items()
]
CHOICES = (1, 2)
BASE, BLOCK = 1000, 400


def peak(head, ranks):
    """A memory model that is easy to add up."""
    own = sum(16 * r * sum(SHAPES[n.split(".")[1]]) for n, r in ranks.items())
    return MemoryEstimate(BASE + BLOCK * (head + 1), own, 0, 0)


def chosen(memory, importance, **changes):
    given_ = {
        "choices": CHOICES,
        "heads": (1, 2),
        "tail": 1,
        "num_layers": BLOCKS,
        "trunk_memory": 600,
    }
    return allocate(LAYERS, importance, memory, peak, **{**given_, **changes})


importances = st.lists(
    st.floats(0.01, 1), min_size=len(LAYERS), max_size=len(LAYERS)
).map(lambda w: {layer.name: x for layer, x in zip(LAYERS, w, strict=True)})
budgets = st.integers(peak(1, {}).total, 6000)


def gain(ranks, importance):
    return sum(importance[name] * math.log1p(r) for name, r in ranks.items())


def best(memory, importance):
    """The most gain, by trying all cuts, and all ranks on each side."""

    def most(layers, fits):
        names = [layer.name for layer in layers]
        ways = itertools.product((0, *CHOICES), repeat=len(names))
        tried = (dict(zip(names, way, strict=True)) for way in ways)
        return max(gain(ranks, importance) for ranks in tried if fits(ranks))

    totals = []
    for head in (1, 2):
        if peak(head, {}).total > memory:
            continue
        mine = [x for x in LAYERS if not head <= x.block < BLOCKS - 1]
        theirs = [x for x in LAYERS if x not in mine]
        cost = {x.name: x.adapter_bytes(1) for x in theirs}
        totals.append(
            most(mine, lambda r, h=head: peak(h, r).total <= memory)
            + most(theirs, lambda r, c=cost: sum(c[n] * k for n, k in r.items()) <= 600)
        )
    return max(totals)


@given(budgets, importances)
@settings(max_examples=15)
def test_the_gain_is_that_of_trying_everything(memory, importance):
    found = chosen(memory, importance)
    assert found.gain == pytest.approx(best(memory, importance))
    assert gain(found.ranks, importance) == pytest.approx(found.gain)


@given(budgets, importances)
def test_no_budget_is_passed(memory, importance):
    found = chosen(memory, importance)
    own = {
        x.name: found.ranks[x.name]
        for x in LAYERS
        if not found.head <= x.block < BLOCKS - 1
    }
    assert found.estimate.total == peak(found.head, own).total <= memory
    served = [x for x in LAYERS if x.name not in own]
    assert sum(x.adapter_bytes(found.ranks[x.name]) for x in served) <= 600


@given(budgets, budgets, importances)
def test_more_memory_never_gains_less(a, b, importance):
    less, more = (chosen(memory, importance).gain for memory in sorted((a, b)))
    assert less <= more * (1 + 1e-9)


def test_the_most_important_layers_are_served_first():
    importance = {x.name: 0.01 for x in LAYERS} | {"0.up": 0.9}
    memory = peak(1, {}).total + 16 * 2 * 16  # room for rank 2 of one large layer
    found = chosen(memory, importance, heads=(1,))
    assert found.ranks["0.up"] == 2
    assert found.ranks["0.q"] == found.ranks["3.q"] == found.ranks["3.up"] == 0


def test_with_room_for_all_the_head_is_the_deepest_and_every_rank_the_largest():
    found = chosen(None, {x.name: 1.0 for x in LAYERS}, trunk_memory=None)
    assert found.head == 2
    assert set(found.ranks.values()) == {max(CHOICES)}


@given(st.integers(0, peak(1, {}).total - 1))
def test_a_device_too_small_is_told_the_smallest_budget_that_works(memory):
    with pytest.raises(BudgetError, match=r"takes 0\.0 MiB; give it at least that"):
        chosen(memory, {})
    assert chosen(peak(1, {}).total, {}).head == 1


def test_a_memory_model_that_is_more_than_its_parts_is_still_obeyed():
    def steep(head, ranks):
        plain = peak(head, ranks)
        extra = 100 * max(sum(map(bool, ranks.values())) - 1, 0)
        return MemoryEstimate(plain.weights, plain.adapters, extra, 0)

    importance = {x.name: 1.0 for x in LAYERS}
    for memory in range(1800, 4000, 150):
        found = allocate(
            LAYERS,
            importance,
            memory,
            steep,
            choices=CHOICES,
            heads=(1,),
            tail=1,
            num_layers=BLOCKS,
        )
        assert found.estimate.total <= memory


@pytest.mark.parametrize("check", [0, 1000, 1400, 2600])
def test_a_memory_model_that_is_the_larger_of_two_peaks_is_obeyed(check):
    """A check of the host hides what a layer alone adds to a step."""

    def hiding(head, ranks):
        plain = peak(head, ranks)
        step = 400 + 600 * sum(map(bool, ranks.values()))
        return MemoryEstimate(plain.weights, plain.adapters, max(step, check), 0)

    importance = {x.name: 1.0 for x in LAYERS}
    least, gains = hiding(1, {}).total, []
    for memory in range(least, least + 2500, 7):
        found = allocate(
            LAYERS,
            importance,
            memory,
            hiding,
            choices=(1, 2, 4),
            heads=(1,),
            tail=1,
            num_layers=BLOCKS,
        )
        assert found.estimate.total <= memory
        gains.append(found.gain)
    assert gains[-1] > gains[0]
