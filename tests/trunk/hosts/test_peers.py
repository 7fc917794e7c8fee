# SPDX-License-Identifier: Apache-2.0
"""A host that is killed at any call, of any link of a chain, changes no bit."""

from __future__ import annotations

import copy
import itertools
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch

from atlas_flwr.budget import Guest, Host
from atlas_flwr.errors import (
    ConfigError,
    SessionError,
    TrunkBusy,
    TrunkError,
    TrunkLost,
    WireError,
)
from atlas_flwr.lora import AdapterState
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import (
    Endpoint,
    Limits,
    SessionSpec,
    TrunkEngine,
    serve_local,
)
from atlas_flwr.trunk.credentials import Credentials
from atlas_flwr.trunk.hosts.chain import ChainTrunk, connect_all
from atlas_flwr.trunk.hosts.departures import Computed
from atlas_flwr.trunk.hosts.direct import DirectChain
from atlas_flwr.trunk.hosts.peer_hosts import PeerHosts
from atlas_flwr.trunk.hosts.peer_model import PeerModel
from atlas_flwr.trunk.hosts.peers import Peers
from atlas_flwr.trunk.transports.local import LoopbackTrunk
from atlas_flwr.trunk.transports.requests import Verb
from atlas_flwr.types import OptimizerSpec
from tests.families import batch, build
from tests.trunk.engine.test_parity import adapters

PLAN, LAYERS = SplitPlan(1, 1), 5
# Each of the first three holds one block, the last all of them.
CHAIN, SPARE = [Host(name, 11) for name in "abc"], Host("spare", 1000, price=1000.0)
PADS = ("", "right", "left")


class Mortal:
    """A host's engine until a call of one kind comes for the n-th time."""

    def __init__(self, engine, verb="", count=0):
        self.engine, self.verb, self.left, self.dead = engine, verb, count, False

    def __getattr__(self, name):
        if name == self.verb:
            self.left -= 1
            self.dead |= self.left < 0
        if self.dead:
            raise TrunkLost("it was killed")
        return getattr(self.engine, name)


class TwoFaced:
    """A host's engine that hands over what it is told to."""

    def __init__(self, engine):
        self.engine, self.change = engine, lambda state: state

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def adapters(self, token):
        return self.change(self.engine.adapters(token))


class Told:
    def __init__(self):
        self.gone, self.ways = [], []

    def paired(self, server_round, what, found):
        self.ways.append(found.ways)

    def lost(self, server_round, host, reason):
        self.gone.append(host)

    def moved(self, server_round, client, way):
        self.ways.append({client: way})


class Carried:
    """Peers of a tiny model, one of which dies."""

    def __init__(
        self, victim="", verb="", count=0, hosts=(*CHAIN, SPARE), direct=False
    ):
        torch.manual_seed(0)
        self.chain = DirectChain if direct else ChainTrunk
        self.model, self.told, self.hosts = build("llama"), Told(), hosts
        self.engines = {}
        blocks = PLAN.trunk_range(LAYERS)
        self.spec = SessionSpec(
            PLAN, adapters(self.model, blocks), OptimizerSpec(lr=0.02), client="guest"
        )

        @contextmanager
        def start(link):
            parts = self.parts(SplitPlan(link.first, LAYERS - link.stop))
            engine = TrunkEngine(parts.trunk, limits=Limits(sessions_per_pass=1))
            self.block_of = engine.base.info.block_of
            dies = (verb, count) if link.host == victim else ()
            mortal = TwoFaced(Mortal(engine, *dies))
            self.engines[link.host] = mortal
            with serve_local(f"peer-{link.host}", mortal) as address:
                yield Endpoint(mortal, address)

        place = PeerModel(blocks, LAYERS, self.block, lambda k, guests: 10 * k + guests)
        self.peers = Peers(PeerHosts(start, self.told), place, direct=direct)

    def parts(self, plan):
        return partition(copy.deepcopy(self.model), plan)  # which changes it

    def block(self, name):
        return self.block_of(name)

    def opened(self):
        self.peers.admit("train", 1, [Guest("guest")], self.hosts)
        return self.peers.open(self.spec)

    def train(self, doors):
        torch.manual_seed(1)  # of the batches
        parts = self.parts(PLAN)
        split = SplitModel(parts.head, parts.tail, connect_all(doors, chain=self.chain))
        for pad in PADS:
            split(**batch("llama", pad)).loss.backward()


@pytest.fixture(scope="module")
def expected():
    """What one trunk learns."""
    found = Carried(hosts=(SPARE,))
    token = found.opened()
    found.train(found.peers.doors(token))
    learned = found.peers.adapters(token).factors
    found.peers.hosts.stop()
    return learned


@pytest.fixture
def carried():
    """Make peers, and end them."""
    made = []

    def make(*given, **more):
        made.append(Carried(*given, **more))
        return made[-1]

    yield make
    for found in made:
        found.peers.hosts.stop()


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k].A, f.A) for k, f in expected.items())
    assert all(torch.equal(found[k].B, f.B) for k, f in expected.items())


# In a direct chain what a host is handed is looked at before it is kept.
DEATHS = [
    *itertools.product(["forward", "backward"], [False, True]),
    *[("check_open", True)],
]


@pytest.mark.parametrize(("verb", "direct"), DEATHS)
@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_a_guest_whose_link_dies_in_a_step_begins_again_to_the_bits_of_one_trunk(
    carried, expected, victim, verb, direct
):
    found = carried(victim, verb, count=1, direct=direct)
    token = found.opened()
    doors = found.peers.doors(token)
    assert len(doors) == len(CHAIN)
    with pytest.raises(TrunkError):
        found.train(doors)
    moved = found.peers.mend([doors[0].token], failed=True)
    assert found.told.gone == [victim]
    found.train(moved)
    same(found.peers.adapters(token).factors, expected)
    found.peers.close(token)


def test_hosts_that_do_not_reach_each_other_are_left_and_not_paired_with_it_again(
    carried, expected, monkeypatch
):
    found = carried(direct=True)
    token = found.opened()
    doors, exchange = found.peers.doors(token), LoopbackTrunk.exchange

    def cut_off(self, request):
        if request.verb is Verb.HAND and self.service.engine is found.engines["b"]:
            raise TrunkLost("no route to host")
        return exchange(self, request)

    monkeypatch.setattr(LoopbackTrunk, "exchange", cut_off)
    said = "local://peer-b, its neighbour in the chain, .* no route to host"
    with pytest.raises(TrunkError, match=said):
        found.train(doors)
    moved = found.peers.mend([doors[0].token], failed=True)
    assert not found.told.gone
    found.train(moved)
    same(found.peers.adapters(token).factors, expected)
    found.peers.close(token)
    found.peers.admit("train", 2, [Guest("guest")], found.hosts)
    assert [link.host for link in found.told.ways[-1]["guest"]] == ["spare"]


def test_hosts_of_a_direct_chain_that_ask_for_certificates_are_refused(
    carried, monkeypatch
):
    found = carried(direct=True)
    begun = PeerHosts.begin
    asks = Credentials(b"certificate", b"key")
    monkeypatch.setattr(
        PeerHosts, "begin", lambda *given: begun(*given)._replace(shown=asks)
    )
    with pytest.raises(ConfigError, match="hosts show each other none"):
        found.opened()


@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_a_link_that_dies_as_a_session_is_opened_is_replaced(carried, expected, victim):
    found = carried(victim, "open")
    token = found.opened()
    assert found.told.gone == [victim]
    assert [link.host for link in found.told.ways[-1]["guest"]] == ["spare"]
    found.train(found.peers.doors(token))
    same(found.peers.adapters(token).factors, expected)


def busy(*_):
    raise TrunkBusy("as many sessions as are allowed")


def test_a_session_that_a_link_has_no_room_for_is_held_by_no_other(carried):
    found = carried()
    found.peers.admit("train", 1, [Guest("guest")], found.hosts)
    found.engines["c"].open = busy
    with pytest.raises(TrunkBusy):
        found.peers.open(found.spec)
    assert [engine.stats().sessions for engine in found.engines.values()] == [0, 0, 0]


def test_of_many_hosts_those_of_a_session_alone_are_asked_whether_they_live(carried):
    """As often as there are messages, in every exchange."""
    names = [f"h{k}" for k in range(4)]
    found = carried(hosts=[Host(name, 31) for name in names])  # of a guest each
    guests = [Guest(f"g{k}") for k in range(4)]
    found.peers.admit("train", 1, guests, found.hosts)
    specs = [replace(found.spec, client=guest.client) for guest in guests]
    tokens = [found.peers.open(spec) for spec in specs]
    pings = [mock.Mock() for _ in names]
    for name, ping in zip(names, pings, strict=True):
        found.engines[name].ping = ping
    for token in tokens:
        (door,) = found.peers.doors(token)
        assert found.peers.mend([door.token], failed=False) == []
    assert [ping.call_count for ping in pings] == [1, 1, 1, 1]


@pytest.mark.parametrize("why", [TrunkBusy, TrunkLost])
def test_a_guest_for_whom_nobody_has_room_fails_alone(carried, why):
    found = carried("a", "forward")
    token = found.opened()
    doors, begin = found.peers.doors(token), found.peers.hosts.begin

    def full(link):
        endpoint = begin(link)
        endpoint.host.open = mock.Mock(side_effect=why("no room"))
        return endpoint

    found.peers.hosts.begin = full
    with pytest.raises(TrunkError):
        found.train(doors)
    assert found.peers.mend([doors[0].token], failed=True) == []
    for verb in (found.peers.adapters, found.peers.importance):
        with pytest.raises(SessionError):
            verb(token)


@pytest.mark.parametrize("verb", ["adapters", "importance"])
@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_what_a_link_has_learned_is_lost_with_it_and_said(carried, victim, verb):
    found = carried(victim, verb)
    token = found.opened()
    found.train(found.peers.doors(token))
    with pytest.raises(SessionError, match=f"learned is lost with host {victim}"):
        getattr(found.peers, verb)(token)
    assert found.told.gone == [victim]
    found.peers.close(token)
    found.peers.admit("train", 2, [Guest("guest")], found.hosts)
    assert [link.host for link in found.told.ways[-1]["guest"]] == ["spare"]


@pytest.mark.parametrize("victim", ["a", "b", "c"])
@pytest.mark.parametrize("verb", ["close", "stats", "ping"])
def test_a_link_that_dies_when_it_is_told_or_asked_of_itself_is_lost_alone(
    carried, expected, victim, verb
):
    found = carried(victim, verb)
    token = found.opened()
    found.train(found.peers.doors(token))
    same(found.peers.adapters(token).factors, expected)
    if verb == "ping":
        found.peers.ping()
    found.peers.close(token)
    found.peers.stats()
    assert found.told.gone == [victim]


def unlearned(state):
    return replace(
        state, factors={n: replace(f, B=f.B * 0) for n, f in state.factors.items()}
    )


def renamed(state):
    return replace(
        state, factors={f"{n}x": factors for n, factors in state.factors.items()}
    )


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("liar", ["a", "b", "c"])
def test_a_link_that_hands_over_other_adapters_than_its_guest_computed_is_left(
    carried, expected, liar, direct
):
    found = carried(direct=direct)
    token = found.opened()
    doors = found.peers.doors(token)
    found.train(doors)
    computed = Computed.of(found.spec.state, AdapterState(expected), 0.05)
    found.engines[liar].change = unlearned
    with pytest.raises(TrunkError, match="found the trunk's adapters off by"):
        found.peers.judge([doors[0].token], computed)
    moved = found.peers.mend([doors[0].token], failed=True)
    assert [link.host for link in found.told.ways[-1]["guest"]] == ["spare"]
    found.train(moved)
    found.peers.judge([moved[0].token], computed)
    same(found.peers.adapters(token).factors, expected)
    found.peers.admit("train", 2, [Guest("guest")], found.hosts)
    assert [link.host for link in found.told.ways[-1]["guest"]] == ["spare"]


def test_what_was_judged_is_what_is_taken_whatever_its_host_hands_over_later(
    carried, expected
):
    found = carried(hosts=(SPARE,))
    token = found.opened()
    found.train(found.peers.doors(token))
    computed = Computed.of(found.spec.state, AdapterState(expected), 0.05)
    found.peers.judge([token], computed)
    found.engines["spare"].change = unlearned
    same(found.peers.adapters(token).factors, expected)


def test_a_host_that_hands_over_layers_that_it_was_not_given_is_refused(carried):
    found = carried()
    token = found.opened()
    found.train(found.peers.doors(token))
    found.engines["b"].change = renamed
    with pytest.raises(SessionError, match="client guest: its host handed over"):
        found.peers.adapters(token)


def nonsense(*_):
    raise WireError("bytes that are no adapters")


@pytest.mark.parametrize("verb", ["adapters", "importance"])
def test_a_host_that_answers_with_nonsense_costs_its_guest_alone(carried, verb):
    found = carried()
    token = found.opened()
    found.train(found.peers.doors(token))
    setattr(found.engines["b"], verb, nonsense)
    with pytest.raises(SessionError, match="learned is lost with host b: bytes that"):
        getattr(found.peers, verb)(token)
    assert found.told.gone == ["b"]


@pytest.mark.parametrize("verb", ["ping", "stats", "close"])
def test_a_host_whose_word_of_itself_is_nonsense_is_lost_alone(carried, verb):
    found = carried()
    token = found.opened()
    setattr(found.engines["b"], verb, nonsense)
    found.peers.stats()
    found.peers.ping()
    found.peers.close(token)
    assert found.told.gone == ["b"]


def test_of_a_host_that_has_said_twice_what_it_lends_the_last_word_counts(carried):
    """As one whose node was started anew with another config."""
    found = carried(hosts=(replace(CHAIN[0], memory=1000), *CHAIN))
    doors = found.peers.doors(found.opened())
    assert len(doors) == len(CHAIN)
    alone = carried(hosts=(replace(CHAIN[0], memory=1000), CHAIN[0]))
    with pytest.raises(TrunkError, match="1 peers lend 0 MiB"):
        alone.opened()
