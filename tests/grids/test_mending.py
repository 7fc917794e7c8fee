# SPDX-License-Identifier: Apache-2.0
"""Messages that are sent again are sent to the new place, and their bytes counted."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.grids.delegation import DelegatingGrid
from atlas_flwr.grids.mending import MendingGrid
from atlas_flwr.grids.quorum import QuorumGrid
from atlas_flwr.grids.recording import RecordingGrid, content_bytes
from atlas_flwr.protocol.doors import doors_of, way_to
from atlas_flwr.testing import local_grid
from atlas_flwr.trunk.host import Door
from tests.grids.test_quorum import SLOW, SlowNode
from tests.matrix_clients import client_app, initial


class Wire(DelegatingGrid):
    """Counts all that goes, as it goes."""

    def __init__(self, grid):
        super().__init__(grid)
        self.down, self.up, self.doors = 0, 0, []

    def send_and_receive(self, messages, *, timeout=None):
        out = list(messages)
        replies = list(self.grid.send_and_receive(out, timeout=timeout))
        self.down += sum(content_bytes(m.content) for m in out)
        self.up += sum(content_bytes(r.content) for r in replies if r.has_content())
        for message in out:
            (entries,) = message.content.config_records.values()
            self.doors.append([door.token for door in doors_of(entries)])
        return replies


class Moving:
    """Moves sessions once: of clients that failed, or all."""

    def __init__(self, everybody):
        self.everybody, self.moved = everybody, set()

    def mend(self, tokens, *, failed):
        (token,) = tokens
        if token.endswith("-anew") or not (failed or self.everybody):
            return []
        return [Door("local://another", f"{token}-anew")]


def exchanged(everybody):
    """Let four clients train, of whom the first fails once; return what was counted."""
    tried, told = [], []

    def intercept(message):
        first = message.metadata.dst_node_id == 1_000 and 1_000 not in tried
        tried.append(message.metadata.dst_node_id)
        return "no route to host" if first else "deliver"

    with local_grid(client_app(), 4, intercept=intercept) as grid:
        wire = Wire(grid)
        mending = MendingGrid(wire, Moving(everybody))
        recording = RecordingGrid(mending, Roster(ask=False), told.append)
        way = ConfigRecord({"round": 1, **way_to([Door("local://one", "token")])})
        strategy = FedAvg(fraction_evaluate=0.0)
        messages = strategy.configure_train(1, initial(), way, recording)
        replies = recording.send_and_receive(messages)
    assert not any(reply.has_error() for reply in replies)
    (seen,) = told
    return seen, wire


def test_a_message_that_is_sent_again_is_counted_as_often_as_it_went():
    for everybody, again in ((False, 1), (True, 4)):
        seen, wire = exchanged(everybody)
        assert wire.doors == [["token"]] * 4 + [["token-anew"]] * again
        assert (seen.bytes_down, seen.bytes_up) == (wire.down, wire.up)
        assert (seen.sent, seen.failed) == (4, 0)


def test_messages_that_are_sent_again_make_no_round_of_their_own(caplog):
    """Who is late in a round is late once, whoever has moved in it meanwhile."""
    told, tried = [], []

    def intercept(message):
        first = message.metadata.dst_node_id == 1_000 and 1_000 not in tried
        tried.append(message.metadata.dst_node_id)
        return "no route to host" if first else "deliver"

    with local_grid(client_app(), 4, intercept=intercept) as grid:
        settings = {"keep_late": True, "poll_seconds": 0.001}
        quorum = QuorumGrid(SlowNode(grid, lag=2), 0.5, **settings)
        mending = MendingGrid(quorum, Moving(everybody=False))
        recording = RecordingGrid(mending, Roster(ask=False), told.append)
        for number in (1, 2):
            way = way_to([Door("local://one", f"token-{number}")])
            config = ConfigRecord({"round": number, **way})
            strategy = FedAvg(fraction_evaluate=0.0)
            messages = strategy.configure_train(number, initial(), config, recording)
            free = [m for m in messages if m.metadata.dst_node_id not in quorum.busy()]
            assert len(free) == 5 - number
            replies = list(recording.send_and_receive(free))
    first, second = told
    assert first.bytes_down > second.bytes_down  # one went twice
    assert [(seen.failed, seen.late, seen.overdue) for seen in told] == [
        (0, 1, 0),
        (0, 0, 1),
    ]
    assert "FAILED" not in caplog.text
    (late,) = (r for r in replies if r.metadata.src_node_id == SLOW)
    weight = late.content["metrics"]["num-examples"]
    assert weight == pytest.approx(13 * 2**-0.5)
