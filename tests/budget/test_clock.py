# SPDX-License-Identifier: Apache-2.0
"""The simulated clock against closed forms and bounds that hold for every order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.budget.clock import Traveller, TrunkRate, simulate
from atlas_flwr.budget.queues import QUEUES
from atlas_flwr.errors import BudgetError

queues = st.sampled_from(sorted(QUEUES))
times = st.integers(0, 20).map(float)
travellers = st.lists(
    st.builds(
        Traveller,
        head=times,
        tail=st.none() | times,
        link=times,
        rows=st.integers(1, 4),
        steps=st.integers(1, 4),
        cluster=st.sampled_from("ab"),
    ),
    min_size=1,
    max_size=6,
)


@given(travellers)
def test_a_client_alone_takes_the_sum_of_its_stages(clients):
    client, rate = clients[0], TrunkRate(row=3.0, start=1.0)
    one = client.outside + 3.0 * client.rows
    assert simulate([client], [rate]).seconds == pytest.approx(client.steps * one)


@given(travellers, queues, st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_no_order_ends_before_the_longest_path_or_the_trunks_work(
    clients, queue, parts, joined, at_once
):
    rate = TrunkRate(2.0, sessions_per_pass=joined, passes_at_once=at_once)
    found = simulate(clients, [rate], queue=QUEUES[queue], parts=parts)
    work = sum(2.0 * c.rows * c.steps for c in clients)
    assert sum(found.busy) == pytest.approx(work)  # nothing is lost or done twice
    assert found.seconds >= work / at_once - 1e-6
    assert found.seconds <= work + sum(c.outside * c.steps for c in clients) + 1e-6
    for client, end in zip(clients, found.ends, strict=True):
        each_way = client.link * (1 if client.tail is None else 2)
        own = max(each_way, client.head + (client.tail or 0.0))
        if parts == 1:
            own = client.outside + 2.0 * client.rows
        assert end >= client.steps * own - 1e-6


def test_with_the_longest_path_first_a_slow_client_waits_for_nobody():
    """Nine others keep the trunk busy for 9 forward passes of 1 s before it, or not."""
    others = [Traveller(0.0, 0.0, 0.0)] * 9
    slow = Traveller(0.0, 100.0, 0.0)
    ends = {
        name: simulate([*others, slow], [TrunkRate(3.0)], queue=QUEUES[name]).seconds
        for name in ("fifo", "longest-path")
    }
    assert ends == {"fifo": 9 + 1 + 100 + 2, "longest-path": 1 + 100 + 2}


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_parts_follow_each_other_through_the_stages_as_in_a_flow_shop(parts):
    """Two stages of L seconds in m parts: (2 + m - 1) L / m."""
    found = simulate([Traveller(0.0, None, link=12.0)], [TrunkRate(0.0)], parts=parts)
    assert found.seconds == pytest.approx((2 + parts - 1) * 12.0 / parts)


@pytest.mark.parametrize("tail", [None, 0.0])
def test_a_step_spread_over_trunks_takes_the_sum_of_their_passes(tail):
    client = Traveller(3.0, tail, 5.0, trunks=(2, 0))
    rates = [TrunkRate(6.0), TrunkRate(100.0), TrunkRate(9.0)]
    found = simulate([client], rates)
    assert found.seconds == pytest.approx(client.outside + 6.0 + 9.0)
    assert found.busy == pytest.approx([6.0, 0.0, 9.0])


def test_a_pass_takes_its_launches_or_its_work_whichever_is_longer():
    rate = TrunkRate(3.0, start=5.0)
    assert [rate.seconds("forward", rows) for rows in (1, 5, 6)] == [5.0, 5.0, 6.0]
    assert [rate.seconds("whole", rows) for rows in (1, 4)] == [10.0, 12.0]


@pytest.mark.parametrize(("joined", "passes"), [(1, 8), (2, 4), (4, 2), (64, 2)])
def test_calls_that_wait_share_passes(joined, passes):
    clients = [Traveller(0.0, 0.0, 0.0, rows=2)] * 4
    rate = TrunkRate(0.1, start=5.0, sessions_per_pass=joined)
    found = simulate(clients, [rate])
    assert found.passes == passes
    assert found.seconds == pytest.approx(passes * 5.0)


def test_two_trunks_halve_what_their_clients_wait_for():
    clients = [Traveller(0.0, 0.0, 0.0, trunks=(k % 2,)) for k in range(8)]
    found = simulate(clients, [TrunkRate(3.0)] * 2)
    assert (found.seconds, found.busy) == (12.0, [12.0, 12.0])


def test_a_fair_trunk_lets_a_small_cluster_through_first():
    crowd = [Traveller(0.0, 0.0, 0.0, steps=4, cluster="crowd")] * 9
    lone = Traveller(0.0, 0.0, 0.0, steps=4, cluster="lone")
    ends = {
        name: simulate([*crowd, lone], [TrunkRate(3.0)], queue=QUEUES[name]).ends[-1]
        for name in ("fifo", "fair")
    }
    assert ends["fair"] < ends["fifo"] / 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: simulate([], [TrunkRate(1.0)]),
        lambda: simulate([Traveller(0, 0, 0)], [TrunkRate(1.0)], parts=0),
        lambda: simulate([Traveller(0, 0, 0, trunks=(1,))], [TrunkRate(1.0)]),
        lambda: Traveller(-1, 0, 0),
        lambda: Traveller(0, 0, 0, steps=0),
        lambda: Traveller(0, 0, 0, trunks=()),
        lambda: Traveller(0, 0, 0, trunks=(0, 1), links=(1.0, 1.0)),
        lambda: Traveller(0, 0, 0, trunks=(0, 1), seams=(-1.0,)),
        lambda: TrunkRate(-1.0),
        lambda: TrunkRate(1.0, sessions_per_pass=0),
    ],
)
def test_what_cannot_be_simulated_is_refused(make):
    with pytest.raises(BudgetError, match=r"at least|of which 1|must be 1, one less"):
        make()


@pytest.mark.parametrize("tail", [None, 2.0])
def test_a_relayed_chain_crosses_each_link_twice_as_often_as_a_trunk_alone(tail):
    client = Traveller(3.0, tail, 5.0, trunks=(0, 1, 2), links=(7.0, 11.0))
    rates = [TrunkRate(6.0), TrunkRate(9.0), TrunkRate(12.0)]
    found = simulate([client], rates)
    # A vanilla model ends in the last trunk: one crossing there each way.
    links = 4 * (5.0 + 7.0 + 11.0) if tail else 4 * (5.0 + 7.0) + 2 * 11.0
    assert found.seconds == pytest.approx(3.0 + (tail or 0.0) + 27.0 + links)


@pytest.mark.parametrize("tail", [None, 2.0])
def test_a_direct_chain_crosses_its_clients_link_as_often_as_a_trunk_alone(tail):
    trunks, seams = (0, 1, 2), (13.0, 17.0)
    client = Traveller(3.0, tail, 5.0, trunks=trunks, links=(7.0, 11.0), seams=seams)
    rates = [TrunkRate(6.0), TrunkRate(9.0), TrunkRate(12.0)]
    found = simulate([client], rates)
    ends = 2 * 5.0 + (2 * 11.0 if tail else 0.0)
    expected = 3.0 + (tail or 0.0) + 27.0 + ends + 2 * (13.0 + 17.0)
    assert found.seconds == pytest.approx(expected)
