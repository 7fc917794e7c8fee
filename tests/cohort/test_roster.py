# SPDX-License-Identifier: Apache-2.0
"""Who is behind a node: a client may come back on another one, and as another."""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.cohort.sampling import sample
from atlas_flwr.protocol.profile import Profile
from atlas_flwr.testing import local_grid


def test_a_client_that_came_back_is_held_to_the_certificate_that_it_has_now():
    roster = Roster()
    assert roster.holder("3") == ""
    for node, holder in ((1, "CN=before"), (2, ""), (5, "CN=now")):
        client = "4" if node == 2 else "3"
        roster.profiles[node] = Profile(client, holder=holder)
    assert roster.holder("3") == "CN=now"
    assert roster.holder("4") == ""


def known(*clients, **more):
    """Nodes 1, 2... of these clients, who came in that order."""
    roster = Roster(**more)
    for node, client in enumerate(clients, start=1):
        roster.profiles[node] = Profile(client)
    return roster


class Connected:
    """A grid of some nodes."""

    def __init__(self, *nodes):
        self.nodes = nodes

    def get_node_ids(self):
        return self.nodes


def test_a_client_takes_part_once_on_the_node_that_it_came_to_last():
    """What it had before may still seem to be there, for a while."""
    roster = known("3", "4", "3", "10")
    assert roster.order([1, 2, 3, 4]) == roster.order([4, 3, 2, 1]) == [3, 2, 4]
    assert roster.order([1, 2]) == [1, 2]
    assert roster.fleet.keys() == {"3", "4", "10"}


def test_who_is_left_out_is_no_client_of_the_fleet():
    roster = known("3", "4", "10", without=("4",))
    assert roster.order([1, 2, 3]) == [1, 3]
    assert roster.fleet.keys() == {"3", "10"}


def test_who_is_late_on_a_node_that_it_had_before_is_not_asked_on_another():
    """Its session is one: what came late would be taken from the new one."""
    roster = known("3", "4", "3", busy=lambda: {1})
    size = (1.0, 1, 1)
    assert sample(Connected(2, 3), roster, size, 0, "train", 2) == [2]
    assert sample(Connected(2, 3), roster, size, 0, "evaluate", 2) == [2]


def test_where_all_are_late_on_nodes_that_they_had_before_they_are_asked_anew():
    busy = {1}
    roster = known("3", "3", busy=lambda: busy, give_up=busy.clear)
    assert sample(Connected(2), roster, (1.0, 1, 1), 0, "train", 2) == [2]


def test_a_client_that_comes_to_another_node_is_told_of(caplog):
    class Asked(Connected):
        def send_and_receive(self, messages, *, timeout=None):
            content = RecordDict({"profile": Profile("3").to_record()})
            return [Message(content, reply_to=message) for message in messages]

    roster = Roster()
    with local_grid(ClientApp(), 0):
        for node in (7, 8):
            roster.learn(Asked(node), [node])
    assert "client 3 is on node 8 now, and no more on node 7" in caplog.text
