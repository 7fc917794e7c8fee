# SPDX-License-Identifier: Apache-2.0
"""What a host hands over for a client that is late is judged by what that computed."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.budget import Guest, Host
from atlas_flwr.cohort.exchange import Exchange
from atlas_flwr.cohort.roster import Roster
from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.errors import RoundError
from atlas_flwr.lora import AdapterState, LoraFactors, Scaling
from atlas_flwr.protocol import keys
from atlas_flwr.protocol.computed import computed_record
from atlas_flwr.protocol.layout import Layout, write_state
from atlas_flwr.protocol.profile import Assigned
from atlas_flwr.split import SplitPlan
from atlas_flwr.testing import local_grid
from atlas_flwr.trunk import Endpoint
from atlas_flwr.trunk.hosts.departures import Computed
from atlas_flwr.trunk.hosts.peer_hosts import PeerHosts
from atlas_flwr.trunk.hosts.peer_model import PeerModel
from atlas_flwr.trunk.hosts.peers import Peers
from atlas_flwr.types import OptimizerSpec

NODE, PLAN, BLOCKS = 7, SplitPlan(1, 1), 4
WORDS = SimpleNamespace(
    arrayrecord_key="arrays",
    configrecord_key="config",
    weighted_by_key="num-examples",
)


@pytest.fixture(autouse=True)
def run():
    """Messages are made in a run."""
    with local_grid(ClientApp(), 0):
        yield


def learned(seed):
    torch.manual_seed(seed)
    factors = {
        f"blocks.{n}.q": LoraFactors(torch.randn(2, 5), torch.randn(4, 2), 1.0)
        for n in range(BLOCKS)
    }
    return AdapterState(factors)


def block_of(name):
    return int(name.split(".")[1])


class Served:
    """A host that hands over what it is told to."""

    def open(self, spec):
        self.begun = self.hands = spec.state
        return "its-token"

    def adapters(self, token):
        return self.hands

    def close(self, token):
        pass

    def ping(self):
        pass


class Late:
    """A client whose round has ended without it, and its host."""

    def __init__(self):
        self.host, self.moves = Served(), []
        watcher = SimpleNamespace(
            paired=lambda *_: None,
            lost=lambda *_: None,
            moved=lambda *given: self.moves.append(given),
        )

        @contextmanager
        def start(link):
            yield Endpoint(self.host, "local://it")

        model = PeerModel(PLAN.trunk_range(BLOCKS), BLOCKS, block_of, lambda *_: 1)
        peers = Peers(PeerHosts(start, watcher), model)
        self.sessions = TrunkSessions(peers, "", OptimizerSpec(), block_of, BLOCKS)
        self.sent, self.trained = learned(0), learned(1)
        scaling = Scaling(2.0)
        arrays = SimpleNamespace(layout=Layout.of(write_state(self.sent), scaling))
        adapters = SimpleNamespace(arrays=arrays, scaling=scaling, held=lambda _: None)
        roster = Roster(ask=False, busy=lambda: {NODE})
        roster.learn(None, [NODE])
        self.exchange = Exchange(roster, adapters, self.sessions, WORDS)
        guests = [Guest(str(NODE))]
        self.sessions.admit("train", 1, guests, [Host("host", 1)])
        plan = Assigned(2, PLAN)
        given = MessageType.TRAIN, 1, NODE, self.sent, plan, ConfigRecord()
        self.message = self.exchange.message(*given)
        self.on_trunk = self.sessions.on_trunk(PLAN, self.trained)
        self.exchange.begin()
        self.exchange.end_sessions()

    def reply(self, *, checked=True):
        mine = self.sessions.on_client(PLAN, self.trained)
        content = RecordDict(
            {
                "arrays": self.exchange.adapters.arrays.layout.write(mine),
                "metrics": MetricRecord({"num-examples": 3}),
            }
        )
        if checked:
            own = Computed.of(self.host.begun, self.on_trunk, 0.07)
            content[keys.COMPUTED] = computed_record(own)
        return Message(content, reply_to=self.message)


def test_a_late_clients_round_counts_with_what_its_sound_host_hands_over():
    late = Late()
    late.host.hands = late.on_trunk
    ((_, found),) = late.exchange.accept([late.reply()])
    assert found.late
    assert found.state.layers == late.trained.layers
    for name, factors in late.trained.factors.items():
        torch.testing.assert_close(found.state.factors[name].delta(), factors.delta())


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda late: late.host.begun, "adapters off by 1 of what they change"),
        (lambda late: AdapterState(), r"handed over blocks.1.q.A of shape None"),
    ],
)
def test_what_a_late_clients_host_hands_over_otherwise_is_refused_and_nobody_moves(
    lie, said
):
    late = Late()
    late.host.hands = lie(late)
    with pytest.raises(RoundError, match=said) as told:
        late.exchange.accept([late.reply()])
    assert f"client {NODE}" in str(told.value)
    assert not late.moves


def test_a_late_client_that_did_not_check_is_believed_as_in_time():
    late = Late()
    (accepted,) = late.exchange.accept([late.reply(checked=False)])
    assert accepted[1].late
