# SPDX-License-Identifier: Apache-2.0
"""Pairings are the best of all that there are, and nobody is shown to a stranger."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.budget import Guest, Host, Prices, pair, ways_of
from atlas_flwr.budget.chains import Link, chained
from atlas_flwr.errors import BudgetError
from atlas_flwr.server_apps.peers import LAST_PRICE

BLOCKS = range(1, 5)
PRICES = Prices(hop=0.5, outside=20.0, moved=2.0, alone=1000.0)
EVEN = 4.0


def need(blocks, guests):
    """A hundred bytes a block, ten of each guest in it, and five to begin with."""
    return 5 + blocks * (100 + 10 * guests) if guests else 0


GROUPS = st.sampled_from([frozenset({""}), frozenset("a"), frozenset("b")])
LINKS = st.sampled_from([math.inf, 16.0, 4.0, 1.0])
CLUSTERS = st.sampled_from([None, 0, 1])
hosts = st.lists(
    st.builds(
        Host,
        client=st.sampled_from("0123"),
        memory=st.integers(0, 600),
        trust=GROUPS,
        cluster=CLUSTERS,
        speed=st.sampled_from([0.5, 1.0, 4.0]),
        link=LINKS,
    ),
    max_size=4,
    unique_by=lambda host: host.client,
)
guests = st.lists(
    st.builds(
        Guest,
        client=st.sampled_from("01234"),
        trust=GROUPS,
        cluster=CLUSTERS,
        link=LINKS,
        waited=st.integers(0, 2),
    ),
    max_size=5,
    unique_by=lambda guest: guest.client,
)


def cost_of(chosen, found, parties, before, direct):
    """The objective, written down as it is stated: sums over guests and ways."""
    cost = 0.0
    for guest, way in zip(found, chosen, strict=True):
        if way is None:
            cost += PRICES.alone * (1 + guest.waited)
            continue
        others = [parties[k.host] for k in way if k.host != guest.client]
        if any(not guest.trust & host.trust for host in others):
            return None
        cost += PRICES.hop * len(others)
        # Where hosts hand on to each other, a run of them is as one.
        runs = itertools.groupby(k.host == guest.client for k in way)
        strange = sum(not is_own for is_own, _ in runs)
        cost += EVEN / guest.link * (strange if direct else len(others))
        cost -= sum(EVEN / parties[k.host].link for k in way if k.host == guest.client)
        strange = {h.cluster for h in others if h.cluster is not None}
        if guest.cluster is not None and strange - {guest.cluster}:
            cost += PRICES.outside
        if guest.client in before and before[guest.client] != way:
            cost += PRICES.moved
    for way in {w for w in chosen if w is not None}:
        shares = [(k.stop - k.first) / len(BLOCKS) / parties[k.host].speed for k in way]
        links = [EVEN / parties[k.host].link for k in way]
        cost += sum(shares + links) * chosen.count(way) ** 2
    return cost


@given(guests, hosts, st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_pairing_is_the_best_of_all_that_fit(found, lending, chance, direct):
    ways = ways_of(lending, BLOCKS, need)
    parties = {host.client: host for host in lending}
    before = {
        g.client: chance.choice([*ways])
        for g in found
        if ways and chance.choice("01") == "1"
    }
    priced = {"prices": PRICES, "even": EVEN, "direct": direct}
    pairing = pair(found, lending, ways, before=before, **priced)
    everything = itertools.product([*ways, None], repeat=len(found))
    fitting = [
        c for c in everything if all(c.count(w) <= most for w, most in ways.items())
    ]
    costs = [cost_of(c, found, parties, before, direct) for c in fitting]
    best = min(c for c in costs if c is not None)
    chosen = tuple(pairing.ways.get(guest.client) for guest in found)
    assert chosen in fitting
    assert cost_of(chosen, found, parties, before, direct) == pytest.approx(best)
    assert pairing.cost == pytest.approx(best)
    again = pair(found, lending, ways, before=pairing.ways, **priced)
    assert again.ways == pairing.ways


@given(hosts)
@settings(max_examples=150, deadline=None)
def test_ways_hold_all_blocks_in_order_and_fit_into_what_is_lent(lending):
    memory = {host.client: host.memory for host in lending}
    ways = ways_of(lending, BLOCKS, need)
    assert len({k.host for w in ways for k in w}) == sum(len(w) for w in ways)
    for way, most in ways.items():
        assert [b for link in way for b in link.blocks] == [*BLOCKS]
        assert all(need(len(k.blocks), most) <= memory[k.host] for k in way)
        assert any(need(len(k.blocks), most + 1) > memory[k.host] for k in way)
    for host in lending:
        alone = need(len(BLOCKS), 1) <= host.memory
        assert ((Link(host.client, 1, 5),) in ways) == alone


def test_small_hosts_make_one_chain_in_their_cluster_and_across_if_need_be():
    sizes = {"a": need(3, 2), "b": need(1, 9), "c": need(1, 9)}
    assert chained(sizes, BLOCKS, need) == {(Link("a", 1, 4), Link("b", 4, 5)): 2}
    apart = [
        Host(c, m, cluster=k)
        for (c, m), k in zip(sizes.items(), (0, 1, 1), strict=True)
    ]
    assert [*ways_of(apart, BLOCKS, need)] == [(Link("a", 1, 4), Link("b", 4, 5))]


def test_chains_grow_longer_where_that_makes_room_and_only_then():
    sizes = dict.fromkeys("abcd", need(1, 30))
    short = chained(sizes, BLOCKS, need, 2)
    assert {len(way): most for way, most in short.items()} == {2: 10}
    assert len(short) == 2
    ((way, most),) = chained(sizes, BLOCKS, need, 25).items()
    assert (len(way), most) == (4, 30)


def lend(*names, memory=10_000, **about):
    return [Host(name, memory, **about) for name in names]


def paired(found, lending, **given):
    return pair(found, lending, ways_of(lending, BLOCKS, need), **given)


def test_equal_hosts_carry_equal_loads_and_themselves_first():
    found = paired([Guest(str(n)) for n in range(9)], lend("0", "1", "2"))
    carried = [way[0].host for way in found.ways.values()]
    assert sorted(carried) == [*"000111222"]
    assert all(found.ways[name][0].host == name for name in "012")


def test_a_host_on_a_slow_link_carries_itself_alone():
    near, far = Host("n", 10_000, link=100.0), Host("f", 10_000, link=1.0)
    fleet = [Guest(name, link=1.0 if name == "f" else 100.0) for name in "nfabcd"]
    found = paired(fleet, [near, far], even=10.0)
    carried = {guest: way[0].host for guest, way in found.ways.items()}
    assert carried == {**dict.fromkeys("nabcd", "n"), "f": "f"}
    blind = paired(fleet, [near, far])
    assert [w[0].host for w in blind.ways.values()].count("f") == 3


def test_a_slow_link_makes_no_guest_sit_out_or_go_to_a_last_resort():
    last = Host("server", 10**9, price=LAST_PRICE)
    slow = [Guest(name, link=1.0) for name in "abcdef"]
    found = paired(slow, [*lend("h", link=1.0), last], even=1e4)
    assert {way[0].host for way in found.ways.values()} == {"h"}


def test_a_guest_stays_in_its_cluster_while_there_is_room_and_leaves_it_for_want():
    narrow = Host("h", need(4, 1), cluster=0)
    wide = Host("w", 10_000, cluster=1)
    one = paired([Guest("g", cluster=0)], [narrow, wide])
    assert one.ways["g"][0].host == "h"
    two = paired([Guest("g", cluster=0), Guest("f", cluster=0)], [narrow, wide])
    assert sorted(way[0].host for way in two.ways.values()) == ["h", "w"]


def test_nobody_is_shown_to_a_stranger_and_a_last_resort_is_one():
    kin, other = frozenset({"a"}), frozenset({"b"})
    last = Host("server", 10**9, trust=frozenset({"", "a"}), price=100.0)
    lending = [*lend("h", trust=other), last]
    found = paired([Guest("g", kin), Guest("f", other), Guest("e", other)], lending)
    assert {g: way[0].host for g, way in found.ways.items()} == {
        "g": "server",
        "f": "h",
        "e": "h",
    }
    assert paired([Guest("g", kin)], lend("h", trust=other)).alone == ["g"]


def test_those_who_sat_out_take_turns_where_there_is_too_little_room():
    waited, seated = dict.fromkeys("abc", 0), []
    for _ in range(6):
        found = paired(
            [Guest(name, waited=waited[name]) for name in "abc"],
            lend("h", memory=need(4, 1)),
        )
        seated += found.ways
        waited = {n: waited[n] + 1 if n in found.alone else 0 for n in waited}
    assert sorted(seated) == [*"aabbcc"]


def test_a_hundred_clients_find_a_place_each_where_a_third_hosts():
    lending = lend(*(str(n) for n in range(0, 99, 3)), memory=need(4, 4))
    found = paired([Guest(str(n)) for n in range(100)], lending)
    assert not found.alone
    carried = [way[0].host for way in found.ways.values()]
    assert {carried.count(host.client) for host in lending} <= {3, 4}


def test_prices_below_zero_are_refused():
    with pytest.raises(BudgetError, match="price moved=-1"):
        Prices(moved=-1)
