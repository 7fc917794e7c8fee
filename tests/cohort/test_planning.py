# SPDX-License-Identifier: Apache-2.0
"""Who counts as a client of the federation, and is asked to carry others."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.cohort.assigned import Assignments
from atlas_flwr.cohort.discovery import Discovery
from atlas_flwr.cohort.planning import RoundPlanner
from atlas_flwr.cohort.roster import Roster
from atlas_flwr.protocol.profile import Offer, Profile


class Sessions:
    """A trunk that tells who would carry it."""

    def admit(self, what, server_round, guests, hosts):
        self.hosts = [host.client for host in hosts]
        return [guest.client for guest in guests]


def planner_of(*clients, without=(), sessions=None):
    roster = Roster(without=without)
    for node, client in enumerate(clients):
        roster.profiles[node] = Profile(client, offer=Offer(memory=1))
    return RoundPlanner(roster, Discovery(), Assignments(), sessions)


def test_who_is_left_out_carries_nobody():
    sessions = Sessions()
    planner = planner_of("0", "1", "2", without=("1",), sessions=sessions)
    assert planner.admitted("train", 1, [0, 2]) == [0, 2]
    assert sessions.hosts == ["0", "2"]


@pytest.mark.parametrize(
    ("clients", "without"),
    [("01234", ()), ("012345", ("5",)), ("012340", ())],
    ids=["all", "but one", "one on two nodes"],
)
def test_clusters_are_made_anew_once_all_who_take_part_are_known(clients, without):
    planner = planner_of(*clients, without=without)
    rng = np.random.default_rng(0)
    for number, client in enumerate("01234", start=1):
        planner.discovery.add(client, rng.normal(size=4))
        if number == 3:
            planner.discovery.fit()
    assert planner.has_grown
    planner.discovery.fit()
    assert not planner.has_grown


def test_who_has_left_stands_in_for_nobody_who_is_not_known_yet():
    planner = planner_of(*"012349", without=("9",))
    rng = np.random.default_rng(0)
    for client in "0129":
        planner.discovery.add(client, rng.normal(size=4))
    planner.discovery.fit()
    planner.discovery.add("3", rng.normal(size=4))
    assert not planner.has_grown  # 5 are known, as many as take part, but not all
    planner.discovery.add("4", rng.normal(size=4))
    assert planner.has_grown
    planner.discovery.fit()
    assert not planner.has_grown
