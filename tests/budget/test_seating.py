# SPDX-License-Identifier: Apache-2.0
"""Clusters stay together, replicas are balanced, and nobody moves without need."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.budget import seated

CLIENTS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.none() | st.integers(0, 5),
    min_size=1,
    max_size=24,
)
REPLICAS = st.integers(1, 6).map(lambda count: [f"r{k}" for k in range(count)])


def parties(clusters):
    found = {}
    for client, cluster in clusters.items():
        found.setdefault(client if cluster is None else cluster, set()).add(client)
    return list(found.values())


def loads(seats, replicas):
    found = Counter(seats.values())
    return [found[name] for name in replicas]


@given(CLIENTS, REPLICAS)
def test_every_client_has_a_replica_and_none_idles_while_clients_wait(clusters, names):
    seats = seated(clusters, names)
    assert seats.keys() == clusters.keys()
    used = set(seats.values())
    assert used <= set(names)
    assert len(used) == min(len(names), len(clusters))


@given(CLIENTS, REPLICAS)
def test_a_cluster_is_at_one_replica_or_has_several_to_itself(clusters, names):
    seats = seated(clusters, names)
    found = parties(clusters)
    for party in found:
        hosts = {seats[client] for client in party}
        others = {seats[client] for client in clusters if client not in party}
        assert len(hosts) == 1 or hosts.isdisjoint(others)
        assert len(hosts) == 1 or len(found) < len(names)


@given(CLIENTS, REPLICAS)
def test_nobody_moves_in_a_round_like_the_one_before(clusters, names):
    seats = seated(clusters, names)
    assert seated(clusters, names, seats) == seats


@given(CLIENTS, REPLICAS, st.data())
def test_what_was_before_makes_no_replica_fuller(clusters, names, data):
    place = st.sampled_from([*names, "gone"])
    before = data.draw(st.dictionaries(st.sampled_from([*clusters]), place))
    kept, fresh = seated(clusters, names, before), seated(clusters, names)
    assert max(loads(kept, names)) <= max(loads(fresh, names))


def spread(sizes, ways):
    return [way for size, way in zip(sizes, ways, strict=True) for _ in range(size)]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_the_fullest_replica_is_within_a_third_of_the_best_there_is(sizes, count):
    names = [f"r{k}" for k in range(count)]
    clusters = {f"{k}/{n}": k for k, size in enumerate(sizes) for n in range(size)}
    found = max(loads(seated(clusters, names), names))
    if len(sizes) < count:
        return  # divided; the test above says how
    best = min(
        max(loads(dict(zip(clusters, spread(sizes, ways), strict=True)), range(count)))
        for ways in product(range(count), repeat=len(sizes))
    )
    assert found <= best * (4 / 3 - 1 / (3 * count)) + 1e-9


def test_a_party_stays_when_another_grows():
    clusters = {**{f"a{k}": 0 for k in range(4)}, **{f"b{k}": 1 for k in range(3)}}
    before = {**dict.fromkeys((c for c in clusters if c[0] == "a"), "y"), "b0": "x"}
    seats = seated({**clusters, "b3": 1, "b4": 1}, ["x", "y"], before)
    assert {seats["a0"], seats["a3"]} == {"y"}
    assert {seats["b0"], seats["b4"]} == {"x"}


@pytest.mark.parametrize(("count", "wanted"), [(2, [3, 3]), (4, [1, 1, 2, 2])])
def test_one_cluster_is_divided_over_the_replicas(count, wanted):
    names = [f"r{k}" for k in range(count)]
    seats = seated({str(k): 0 for k in range(6)}, names)
    assert sorted(loads(seats, names)) == wanted
