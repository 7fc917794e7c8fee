from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.errors import PlanError
from atlas_flwr.split import SplitPlan

TAILS = st.one_of(st.none(), st.integers(1, 40))


@given(st.integers(1, 40), TAILS)
def test_a_plan_reads_back_what_it_writes(head, tail):
    plan = SplitPlan(head, tail)
    assert SplitPlan.parse(str(plan)) == plan


@given(st.integers(1, 40), TAILS, st.integers(1, 60))
def test_a_plan_is_refused_exactly_when_the_trunk_is_empty(head, tail, layers):
    plan = SplitPlan(head, tail)
    if head + (tail or 0) < layers:
        plan.check(layers)
        assert len(plan.trunk_range(layers)) == layers - head - (tail or 0)
    else:
        with pytest.raises(PlanError):
            plan.check(layers)


@pytest.mark.parametrize(("head", "tail"), [(0, 1), (-1, 1), (1, 0), (2, -3)])
def test_impossible_numbers_are_refused_at_once(head, tail):
    with pytest.raises(PlanError, match="at least 1"):
        SplitPlan(head, tail)


def test_the_refusal_names_the_legal_range():
    with pytest.raises(PlanError, match=r"head >= 1 and head \+ tail <= 4"):
        SplitPlan(3, 2).check(5)


@pytest.mark.parametrize(
    "text", ["", "2", "2/", "/1", "a/b", "2/1/1", "-1/2", "2/ 1", "²/1"]
)
def test_nonsense_is_no_cut(text):
    with pytest.raises(PlanError):
        SplitPlan.parse(text)
