# SPDX-License-Identifier: Apache-2.0
"""Peers that carry the trunk leave a run the numbers that one central trunk does."""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from atlas_flwr.cli.trunk import serve
from atlas_flwr.config import load_config
from atlas_flwr.errors import TrunkError, TrunkLost
from atlas_flwr.server_apps import trunk as starting
from atlas_flwr.trunk import Endpoint
from atlas_flwr.trunk.hosts.checking import CheckedTrunk
from atlas_flwr.trunk.transports import grpc_channel
from atlas_flwr.trunk.transports.access import Access
from atlas_flwr.trunk.transports.local import LoopbackTrunk
from tests.golden.record import digest
from tests.server_apps.test_run import BASE, run

# Too little for the tiny model's trunk, enough for one of its blocks with 3 guests.
CHAINED = "5MB"
# Room for one guest on each of two hosts.
NARROW = "5200000B,0"


def carried(folder, **changes):
    given = {"peer_memory": "1GiB,0", "num_rounds": 1, "cut": "1/1", **changes}
    return run(folder, trunk="peers", **given)


def told(folder, event):
    lines = map(json.loads, folder.metrics_path.read_text().splitlines())
    return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def central(tmp_path_factory):
    folder = tmp_path_factory.mktemp("central")
    return digest(run(folder, trunk="local", num_rounds=1, cut="1/1").path)


def test_a_run_that_peers_carry_learns_the_bits_of_one_central_trunk(tmp_path, central):
    found = carried(
        tmp_path,
        peer_memory="1GiB,1GiB,0,0",
        peer_links="100Mbit/s,1Mbit/s,100Mbit/s,100Mbit/s",
        device_order="cycle",
    )
    assert digest(found.path) == central
    for pairing in told(found, "peers-paired"):
        hosts = {c: way.partition("[")[0] for c, way in pairing["ways"].items()}
        assert hosts == {"0": "0", "1": "1", "2": "0", "3": "0"}


def test_chains_of_peers_and_the_server_for_whom_they_lack_room_learn_the_same_bits(
    tmp_path, central
):
    found = carried(tmp_path, peer_memory=CHAINED, peer_fallback="server")
    assert digest(found.path) == central
    for pairing in told(found, "peers-paired"):
        ways = sorted(len(way.split()) for way in pairing["ways"].values())
        assert ways == [1, 4, 4, 4]


@pytest.mark.slow
def test_peers_in_direct_chains_learn_the_bits_of_one_central_trunk(tmp_path, central):
    lent = {"peer_memory": CHAINED, "peer_fallback": "server"}
    found = carried(tmp_path, peer_chains="direct", **lent)
    assert digest(found.path) == central
    assert not told(found, "peer-moved")
    for pairing in told(found, "peers-paired"):
        ways = sorted(len(way.split()) for way in pairing["ways"].values())
        assert ways[-1] > 1


@pytest.mark.slow
@pytest.mark.parametrize("chains", ["relay", "direct"])
def test_a_vanilla_run_over_chains_learns_the_bits_of_one_central_trunk(
    tmp_path, chains
):
    near = run(tmp_path / "near", trunk="local", split="vanilla")
    far = carried(
        tmp_path / "far",
        split="vanilla",
        peer_chains=chains,
        num_rounds=2,
        cut="auto",
        peer_memory="5MB,1GiB",
    )
    assert digest(far.path) == digest(near.path)


class Mortal:
    """A peer's engine until it dies; then nothing answers."""

    def __init__(self, engine):
        self.engine, self.dead = engine, False

    def __getattr__(self, name):
        if self.dead:
            raise TrunkLost("it was killed")
        return getattr(self.engine, name)


@pytest.fixture
def kill_at(monkeypatch):
    """Kill peers: by the number of the call, which one of those that run then."""
    peers, calls = {}, []
    plan = {}
    start, exchange = starting._local_trunk, LoopbackTrunk.exchange

    @contextmanager
    def mortal(source, name):
        with start(source, name) as found:
            peers[name] = Mortal(found.host)
            yield Endpoint(peers[name], found.address)

    def counted(self, request):
        calls.append(request.verb)
        mine = next(p for p in peers.values() if p.engine is self.service.engine)
        if plan.get(len(calls)) == "whoever is called":
            mine.dead = True
        if mine.dead:
            raise TrunkLost("it was killed")
        return exchange(self, request)

    monkeypatch.setattr(starting, "_local_trunk", mortal)
    monkeypatch.setattr(LoopbackTrunk, "exchange", counted)

    def kill(*at):
        plan.update(dict.fromkeys(at, "whoever is called"))
        return calls

    return kill


@pytest.mark.slow
def test_a_run_outlives_the_one_peer_that_carried_everybody(tmp_path, central, kill_at):
    kill_at(37)  # the first call of training, by all of whom none can go on
    lent = {"peer_memory": "1GiB,0,0,0", "peer_fallback": "server"}
    found = carried(tmp_path, **lent)
    assert digest(found.path) == central
    assert len(told(found, "peer-moved")) == 4


# A round's calls: 4 of an evaluation, 32 of fingerprints, 16 of training, 4 again.
@pytest.mark.parametrize(
    ("calls", "fallback"),
    [
        ((46,), "none"),
        pytest.param((39, 46), "server", marks=pytest.mark.slow),
        pytest.param((7,), "none", marks=pytest.mark.slow),
        pytest.param((54,), "none", marks=pytest.mark.slow),
    ],
)
def test_guests_of_peers_that_die_move_and_leave_the_numbers_as_they_are(
    tmp_path, central, kill_at, calls, fallback
):
    kill_at(*calls)
    found = carried(tmp_path, peer_fallback=fallback)
    assert digest(found.path) == central
    lost = [event["host"] for event in told(found, "peer-lost")]
    moves = [event["way"].partition("[")[0] for event in told(found, "peer-moved")]
    assert len(lost) == len(calls)
    assert moves
    assert moves[-1] not in lost
    assert (moves[-1] == "server") == (fallback == "server")


@pytest.mark.slow
@pytest.mark.parametrize("call", [30, 150, 181])
def test_a_link_of_a_chain_that_dies_sends_its_guests_to_the_server(
    tmp_path, central, kill_at, call
):
    kill_at(call)
    found = carried(tmp_path, peer_memory=CHAINED, peer_fallback="server")
    assert digest(found.path) == central
    assert len(told(found, "peer-lost")) == 1
    moves = told(found, "peer-moved")
    assert {move["way"] for move in moves} == {"server[1-4]"}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["flora", "hetlora", "mira", "splitlora"])
def test_every_method_learns_the_bits_of_one_central_trunk(tmp_path, strategy):
    given = {"strategy": strategy, "num_rounds": 2, "cut": "1/1"}
    given |= {"mixing": 0.1} if strategy == "mira" else {}
    near = run(tmp_path / "near", trunk="local", **given)
    lent = {"peer_memory": "9MB,3MB,3MB,3MB", "peer_fallback": "server"}
    far = carried(tmp_path / "far", **given, **lent)
    assert digest(far.path / "adapters") == digest(near.path / "adapters")


def test_spot_checks_find_nothing_wrong_with_sound_hosts_and_change_no_bit(
    tmp_path, central, monkeypatch
):
    compared, settle = [], CheckedTrunk.settle

    def counted(self):
        settle(self)
        compared.append((self._drawn is None, self.checked))

    monkeypatch.setattr(CheckedTrunk, "settle", counted)
    found = carried(tmp_path, peer_checks=1.0)
    assert digest(found.path) == central
    training = [checked for trains, checked in compared if trains]
    assert len(training) == 4
    assert {*training} == {2}
    assert all(checked == 1 for trains, checked in compared if not trains)
    assert not told(found, "peer-moved")


def spoil_weights(engine):
    for weight in engine.base.trunk.parameters():
        weight.data.mul_(1.1)


def hand_over_others(engine):
    copied = engine.adapters

    def others(token):
        state = copied(token)
        factors = {n: replace(f, B=-f.B) for n, f in state.factors.items()}
        return replace(state, factors=factors)

    engine.adapters = others


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [spoil_weights, hand_over_others])
def test_a_host_that_is_off_is_left_by_those_who_check_it(tmp_path, monkeypatch, spoil):
    start, seen = starting._local_trunk, []

    @contextmanager
    def spoilt(source, name):
        with start(source, name) as found:
            seen.append(name)
            if len(seen) == 1:  # that of client 0
                spoil(found.host)
            yield found

    monkeypatch.setattr(starting, "_local_trunk", spoilt)
    lent = {"peer_memory": "1GiB,1GiB,0,0", "device_order": "cycle"}
    found = carried(tmp_path, peer_checks=1.0, **lent)
    assert seen[0].endswith("-0")
    moved = {event["way"].partition("[")[0] for event in told(found, "peer-moved")}
    assert moved == {"1"}
    trained = {event["client"] for event in told(found, "client-trained")}
    assert trained == {"1", "2", "3"}  # 0 has itself for a host


@pytest.mark.slow
def test_a_resumed_run_seats_the_same_clients_as_an_unbroken_one(tmp_path):
    narrow = {"peer_memory": NARROW}
    whole = carried(tmp_path / "whole", num_rounds=3, **narrow)
    first = carried(tmp_path / "first", num_rounds=1, **narrow)
    keys = {"resume": str(first.path), "num_rounds": 3}
    resumed = carried(tmp_path / "first", **narrow, **keys)
    seats = [
        [(p["what"], p["ways"]) for p in told(f, "peers-paired")]
        for f in (whole, resumed)
    ]
    assert seats[0] == seats[1]
    assert digest(resumed.path / "adapters") == digest(whole.path / "adapters")


@pytest.mark.slow
def test_a_guest_that_does_not_reach_its_host_is_given_another_for_good(
    tmp_path, central
):
    tried = []

    def intercept(message):
        node, records = message.metadata.dst_node_id, message.content.config_records
        address = str(next(iter(records.values())).get("trunk-address", ""))
        if node != 1000 or not address:
            return "deliver"
        tried.append((message.metadata.message_type, address))
        return "no route to host" if address == tried[0][1] else "deliver"

    lent = {"peer_memory": "0,1GiB,0,1GiB", "device_order": "cycle"}
    found = carried(tmp_path, intercept=intercept, **lent)
    assert digest(found.path) == central
    training = [address for kind, address in tried if kind == "train"]
    assert training[-1] != tried[0][1]
    assert tried[-1] == ("evaluate", training[-1])
    assert not told(found, "peer-lost")


@pytest.mark.slow
def test_a_client_that_fails_by_itself_is_tried_once_more_and_no_host_is_lost(tmp_path):
    tried = []

    def intercept(message):
        mine = message.metadata.dst_node_id == 1000
        if not mine or message.metadata.message_type != "train":
            return "deliver"
        tried.append(message)
        return "out of memory"

    found = carried(tmp_path, intercept=intercept, peer_memory="0,1GiB", nodes=4)
    assert len(tried) <= 2
    assert not told(found, "peer-lost")
    failures = [event["failures"] for event in told(found, "round-ended")]
    assert failures == [0, 1]


@pytest.mark.slow
def test_clients_for_whom_nobody_has_room_sit_out_by_turns(tmp_path):
    found = carried(tmp_path, peer_memory=NARROW, num_rounds=2)
    paired = told(found, "peers-paired")
    first, second = (
        {*p["alone"]} for p in paired if p["what"] == "evaluate" and p["round"]
    )
    assert len(first) == len(second) == 2
    assert first.isdisjoint(second)


def test_a_guest_whose_peer_dies_fails_where_nobody_else_has_room(tmp_path, kill_at):
    kill_at(2 + 16 + 2)
    found = carried(tmp_path, peer_memory=NARROW)
    assert [event["way"] for event in told(found, "peer-moved")] == [""]
    assert [event["failures"] for event in told(found, "round-ended")] == [0, 1]


@pytest.mark.parametrize(
    ("lent", "said"),
    [
        ("", "no client lends memory to the trunk"),
        ("1MB,0", "2 peers lend 2 MiB in all, and no peer, nor several"),
    ],
)
def test_too_little_lent_is_said_with_what_is_needed(tmp_path, lent, said):
    with pytest.raises(TrunkError, match=said):
        carried(tmp_path, peer_memory=lent)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A trunk that a client serves beside its SuperNode; yield its access file."""
    ended = []
    monkeypatch.setattr(signal, "signal", lambda _, handler: ended.append(handler))
    config = load_config({**BASE, "trunk": "grpc"})
    folder = tmp_path / "trunk"
    thread = threading.Thread(target=serve, args=(config, folder, None), daemon=True)
    thread.start()
    while not (folder / "access.json").exists():
        assert thread.is_alive()
        time.sleep(0.05)
    yield str(folder / "access.json")
    ended[0](0, None)
    thread.join(20)
    assert not thread.is_alive()


def test_a_node_that_serves_a_trunk_over_tls_carries_it_for_two_others(
    tmp_path, central, served
):
    north = {"trust": "north"}
    nodes = [
        {"trunk-memory": "1GiB", "trunk-access": served, "trust": "north+lab"},
        north,
        north,
        {"trunk-memory": "1GiB", "trust": "south"},  # in this process
    ]
    found = carried(tmp_path, peer_memory="", node_configs=nodes, codec="raw")
    assert digest(found.path) == central
    for pairing in told(found, "peers-paired"):
        hosts = {c: way.partition("[")[0] for c, way in pairing["ways"].items()}
        assert hosts == {"0": "0", "1": "0", "2": "0", "3": "3"}
    assert "secret" not in (found.path / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_node_whose_trunk_cannot_be_dialled_is_lost_and_others_carry(
    tmp_path, central, monkeypatch
):
    monkeypatch.setattr(grpc_channel, "OWNED", 0.5)
    access = Access("grpc://127.0.0.1:1", "", "s" * 32)
    access.write(tmp_path / "access.json")
    nodes = [{"trunk-access": str(tmp_path / "access.json")}, {}, {}, {}]
    found = carried(tmp_path, node_configs=nodes, device_order="cycle")
    assert digest(found.path) == central
    (lost,) = told(found, "peer-lost")
    assert lost["host"] == "0"
    assert "nothing answers at grpc://127.0.0.1:1" in lost["reason"]


@pytest.mark.parametrize("said", ["{", "[]", '{"address": "grpcs://a.example.org:1"}'])
def test_what_cannot_be_read_of_a_nodes_trunk_loses_that_host_and_not_the_run(said):
    with pytest.raises(TrunkLost, match="client 3 says of its trunk cannot be read"):
        starting._told("3", said)
