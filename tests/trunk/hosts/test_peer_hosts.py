# SPDX-License-Identifier: Apache-2.0
"""Hosts that are gone, or hang, are lost; those that refuse something are not."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from atlas_flwr.budget.chains import Link
from atlas_flwr.errors import (
    ConfigError,
    SessionError,
    TrunkBusy,
    TrunkError,
    TrunkLost,
)
from atlas_flwr.lora import AdapterState
from atlas_flwr.split import SplitPlan
from atlas_flwr.trunk import Endpoint, SessionSpec
from atlas_flwr.trunk.hosts.peer_hosts import PeerHosts

LINK = Link("a", 1, 4)
FOLDS = AdapterState(origin="7")


class Trunk:
    """What a host answers, and to the question whether it lives."""

    def __init__(self, alive=None):
        self.alive = alive

    def ping(self):
        if self.alive:
            raise self.alive


class Told:
    def __init__(self):
        self.gone = []

    def lost(self, server_round, host, reason):
        self.gone.append((server_round, host, reason))


def hosts(trunk, ended=None):
    @contextmanager
    def start(link):
        if isinstance(trunk, Exception):
            raise trunk
        yield Endpoint(trunk, "local://a")
        if ended is not None:
            ended.append(link)

    return PeerHosts(start, Told())


def asked(found, error):
    with found.minding("a"):
        raise error


def test_a_host_that_hangs_is_lost_when_it_does_not_say_that_it_lives():
    ended = []
    found = hosts(Trunk(TrunkError("no answer to a ping")), ended)
    found.at(LINK)
    with pytest.raises(TrunkLost, match="no answer in 600 s"):
        asked(found, TrunkError("no answer in 600 s"))
    assert found.watcher.gone == [(0, "a", "no answer to a ping")]
    assert ended == [LINK]
    with pytest.raises(TrunkLost, match="host a is lost"):
        found.at(LINK)


@pytest.mark.parametrize("error", [TrunkError("too large"), SessionError("closed")])
def test_a_host_that_refuses_and_lives_is_not_lost(error):
    found = hosts(Trunk())
    found.at(LINK)
    with pytest.raises(TrunkError, match=str(error)):
        asked(found, error)
    assert found.at(LINK).address == "local://a"
    assert not found.lost


@pytest.mark.parametrize("error", [TrunkLost("off"), ConfigError(["another model"])])
def test_a_host_that_cannot_be_taken_is_lost_with_the_reason(error):
    found = hosts(error)
    found.start_all([LINK])
    assert [host for _, host, _ in found.watcher.gone] == ["a"]
    assert str(error).strip() in found.lost["a"]


def test_a_host_that_is_to_hold_other_blocks_is_started_anew():
    ended = []
    found = hosts(Trunk(), ended)
    first = found.at(LINK)
    assert found.at(LINK) is first
    assert found.at(Link("a", 1, 3)) is not first
    assert ended == [LINK]
    found.stop()
    assert ended == [LINK, Link("a", 1, 3)]


class Holding(Trunk):
    """Notes what it is given to hold, and to forget."""

    def __init__(self):
        super().__init__()
        self.given, self.forgotten = [], []

    def share(self, name, products):
        self.given.append(name)

    def unshare(self, name):
        self.forgotten.append(name)


def test_a_host_is_given_what_its_sessions_fold_once_and_again_when_started_anew():
    trunk = Holding()
    found, spec = hosts(trunk), SessionSpec(SplitPlan(1, 1), FOLDS, folds={"layer": 1})
    found.share("7", {})
    for link, times in ((LINK, 1), (LINK, 1), (Link("a", 2, 4), 2)):
        found.at(link)
        found.give_shared("a", spec)
        assert trunk.given == ["7"] * times
    found.give_shared("a", SessionSpec(SplitPlan(1, 1), FOLDS))
    assert trunk.given == ["7"] * 2
    found.unshare("7")
    found.unshare("7")
    assert trunk.forgotten == ["7"]


@pytest.mark.parametrize("ask", [PeerHosts.stats, PeerHosts.check])
def test_what_a_trunk_that_was_replaced_meanwhile_does_not_answer_loses_no_host(ask):
    """As where ``/metrics`` is read while the run starts it with other blocks."""

    class Replaced(Trunk):
        def stats(self):
            found.at(Link("a", 1, 3))
            raise TrunkError("the channel was closed")

        ping = stats

    found = hosts(Replaced())
    found.at(LINK)
    ask(found)
    assert not found.lost
    assert found.running("a") is not None


@pytest.mark.parametrize("ask", [PeerHosts.stats, PeerHosts.check])
def test_a_host_that_is_too_busy_to_answer_lives(ask):
    class Busy(Trunk):
        def stats(self):
            raise TrunkBusy("as many calls as it bears")

        ping = stats

    ended = []
    found = hosts(Busy(), ended)
    found.at(LINK)
    ask(found)
    assert not found.lost
    assert not ended
