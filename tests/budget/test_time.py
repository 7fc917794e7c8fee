from __future__ import annotations

import pytest

from atlas_flwr.budget import Rates, step_time
from atlas_flwr.errors import BudgetError
from tests.budget.test_assignment import LLAMA

RATES = Rates(client_flops=1e9, trunk_flops=1e10, link_bits=1e6)


def test_the_parts_are_work_over_rate():
    found = step_time(LLAMA, RATES, head=2, tail=1, batch=4, length=16)
    block = 4 * 60_000 * 64 + 12 * 4 * 16**2 * 64
    assert found.client == pytest.approx(3 * block / 1e9)
    assert found.trunk == pytest.approx(9 * block / 1e10)
    assert found.link == pytest.approx(4 * 64 * 64 * 32 / 1e6)
    assert found.total == pytest.approx(found.client + found.trunk + found.link)


def test_a_vanilla_step_crosses_half_as_often():
    both = [
        step_time(LLAMA, RATES, head=2, tail=tail, batch=4, length=16).link
        for tail in (1, None)
    ]
    assert both[0] == 2 * both[1]


def test_a_deeper_head_moves_work_to_the_client():
    one, two = (
        step_time(LLAMA, RATES, head=h, tail=1, batch=4, length=16) for h in (1, 2)
    )
    assert one.client < two.client
    assert one.trunk > two.trunk


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_an_impossible_rate_is_refused(bad):
    with pytest.raises(BudgetError, match="trunk_flops"):
        Rates(1e9, bad, 1e6)
