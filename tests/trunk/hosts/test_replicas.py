# SPDX-License-Identifier: Apache-2.0
"""Where sessions go, what replicas are told, and what is forgotten with one."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import pytest

from atlas_flwr.budget import Guest
from atlas_flwr.budget.chains import Link
from atlas_flwr.errors import SessionError, TrunkBusy, TrunkLost
from atlas_flwr.lora import AdapterState
from atlas_flwr.split import SplitPlan
from atlas_flwr.trunk import Endpoint, SessionSpec, TrunkHost
from atlas_flwr.trunk.host import Introducing
from atlas_flwr.trunk.hosts.peer_hosts import PeerHosts
from atlas_flwr.trunk.hosts.replicas import Replicas

PLAN = SplitPlan(1, 1)


class Trunk:
    """Writes down what it is asked, while it lives."""

    def __init__(self, name):
        self.name, self.alive, self.asked, self.count = name, True, [], 0

    def _ask(self, *what):
        if not self.alive:
            raise TrunkLost(f"{self.name} is off")
        self.asked.append(what)

    def open(self, spec):
        self._ask("open", spec.client)
        self.count += 1
        return f"{self.name}/{self.count}"

    def share(self, name, products):
        self._ask("share", name)

    def unshare(self, name):
        self._ask("unshare", name)

    def adapters(self, token):
        self._ask("adapters", token)
        return AdapterState()

    def close(self, token):
        self._ask("close", token)

    def ping(self):
        self._ask("ping")


class Told:
    def __init__(self):
        self.gone, self.moves = [], []

    def lost(self, server_round, host, reason):
        self.gone.append(host)

    def started(self, server_round, replica):
        pass

    def seated(self, what, seats):
        self.seats = dict(seats)

    def moved(self, server_round, seats):
        self.moves.append(dict(seats))


@pytest.fixture
def made():
    """Return what makes replicas; they write their trunks down in ``.trunks``."""

    def make(count=2, restarts=0):
        trunks = []

        @contextmanager
        def start(link):
            trunks.append(Trunk(f"t{len(trunks)}"))
            yield Endpoint(trunks[-1], f"local://{trunks[-1].name}")

        told = Told()
        links = [Link(f"r{k}", 1, 3) for k in range(count)]
        found = Replicas(PeerHosts(start, told), links, restarts)
        found.start()
        found.trunks = trunks
        return found

    return make


def admit(replicas, clusters, number=1):
    guests = [Guest(client, cluster=label) for client, label in clusters.items()]
    return replicas.admit("train", number, guests, [])


def spec(client, **more):
    return SessionSpec(PLAN, client=client, **more)


def folding(client):
    return spec(client, state=AdapterState(origin="sum"), folds={"q": 2})


def at(replicas, token):
    (door,) = replicas.doors(token)
    return door.address.removeprefix("local://")


def test_replicas_are_a_host_and_introduce(made):
    assert isinstance(made(), TrunkHost)
    assert isinstance(made(), Introducing)


def test_a_clusters_sessions_are_at_one_replica(made):
    replicas = made()
    clusters = {"a": 0, "b": 1, "c": 0, "d": 1}
    assert set(admit(replicas, clusters)) == clusters.keys()
    places = {c: at(replicas, replicas.open(spec(c))) for c in clusters}
    assert places["a"] == places["c"] != places["b"] == places["d"]


def test_sessions_that_share_adapters_are_together_whatever_their_cluster(made):
    replicas = made()
    admit(replicas, {"a": 0, "b": 1})
    tokens = [replicas.open(spec(c, shared="all")) for c in "ab"]
    assert len({at(replicas, token) for token in tokens}) == 1


def test_products_are_given_to_the_replicas_that_need_them_once(made):
    replicas = made()
    admit(replicas, {"a": 0, "b": 0, "c": 1})
    replicas.share("sum", {})
    for client in "ab":
        replicas.open(folding(client))
    replicas.open(spec("c"))
    replicas.unshare("sum")
    told = [[what for what in t.asked if "sum" in what] for t in replicas.trunks]
    assert sorted(told) == [[], [("share", "sum"), ("unshare", "sum")]]


def test_a_replica_that_is_started_again_is_given_products_again(made):
    replicas = made(restarts=1)
    admit(replicas, {"a": 0, "b": 1})
    replicas.share("sum", {})
    tokens = [replicas.open(folding(c)) for c in "ab"]
    replicas.trunks[0].alive = False
    assert replicas.mend(tokens[:1], failed=True) == []  # no door of that name
    (door,) = replicas.mend([replicas.doors(tokens[0])[0].token], failed=True)
    assert door.address == "local://t1"
    admit(replicas, {"a": 0, "b": 1}, 2)
    replicas.open(folding("a"))
    replicas.open(folding("b"))
    assert [t.asked.count(("share", "sum")) for t in replicas.trunks] == [1, 1, 1]


def test_clients_of_a_living_replica_stay_and_go_on(made):
    replicas = made(3)
    admit(replicas, {"a": 0, "b": 1, "c": 2, "d": 2})
    tokens = {c: replicas.open(spec(c)) for c in "abcd"}
    before = {c: replicas.doors(tokens[c]) for c in "abcd"}
    dead = at(replicas, tokens["c"])
    replicas.trunks[int(dead[1:])].alive = False
    mended = {c: replicas.mend([before[c][0].token], failed=False) for c in "abcd"}
    assert not mended["a"]
    assert not mended["b"]
    assert {c: replicas.doors(tokens[c]) for c in "ab"} == {c: before[c] for c in "ab"}
    new = [mended[c][0].address for c in "cd"]
    assert len(set(new)) == 2  # both that are left take one
    assert len(replicas.hosts.watcher.moves) == 1


def test_when_all_are_lost_every_session_begins_again_at_one_that_was_started(made):
    replicas = made(restarts=2)
    admit(replicas, {"a": 0, "b": 1})
    tokens = [replicas.open(spec(c)) for c in "ab"]
    doors = [replicas.doors(token)[0].token for token in tokens]
    for trunk in replicas.trunks:
        trunk.alive = False
    replicas.hosts.check()
    for token, door in zip(tokens, doors, strict=True):
        assert replicas.mend([door], failed=True)
        assert at(replicas, token) in {"t2", "t3"}
        assert replicas.adapters(token) == AdapterState()


def test_a_client_for_whom_no_other_replica_has_room_fails_alone(made):
    replicas = made()
    admit(replicas, {"a": 0, "b": 1})
    doors = [replicas.doors(replicas.open(spec(c)))[0].token for c in "ab"]
    replicas.trunks[0].alive = False
    replicas.trunks[1].open = mock.Mock(side_effect=TrunkBusy("no memory"))
    assert [replicas.mend([door], failed=True) for door in doors] == [[], []]
    replicas.ping()


def test_without_restarts_all_being_lost_is_said(made):
    replicas = made()
    admit(replicas, {"a": 0, "b": 1})
    token = replicas.open(spec("a"))
    for trunk in replicas.trunks:
        trunk.alive = False
    assert replicas.mend([replicas.doors(token)[0].token], failed=True) == []
    with pytest.raises(TrunkLost, match="is off"):
        replicas.adapters(token)
    with pytest.raises(TrunkLost, match="all 2 replicas of the trunk are lost"):
        replicas.ping()
    replicas.close(token)
    with pytest.raises(SessionError, match="not open"):
        replicas.adapters(token)


def test_one_being_lost_is_no_reason_to_end_a_run(made):
    replicas = made()
    replicas.trunks[0].alive = False
    replicas.ping()
    assert replicas.hosts.watcher.gone == ["r0"]
    admit(replicas, {"a": 0, "b": 1})
    assert set(replicas.hosts.watcher.seats.values()) == {"r1"}


def test_seats_outlive_a_run_and_names_that_are_gone_do_not(made):
    first, second, smaller = made(), made(), made(1)
    admit(first, {"a": 0, "b": 1})
    second.restore(first.state())
    admit(second, {"b": 1, "a": 0})
    assert second.hosts.watcher.seats == first.hosts.watcher.seats
    smaller.restore(first.state())
    assert at(smaller, smaller.open(spec("b"))) == "t0"
