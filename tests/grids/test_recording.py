# SPDX-License-Identifier: Apache-2.0
"""Who may end a run by failing: all of a round, and no newcomer by itself."""

from __future__ import annotations

import logging

import pytest
from flwr.app import Error, Message, RecordDict

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.errors import RoundError
from atlas_flwr.grids.recording import RecordingGrid
from atlas_flwr.testing import local_grid
from tests.matrix_clients import client_app


@pytest.fixture(autouse=True)
def a_run():
    """Within which messages can be made."""
    with local_grid(client_app(), 1):
        yield


class Answering:
    """A grid whose nodes answer, but for some."""

    def __init__(self, *failing):
        self.failing = failing

    def send_and_receive(self, messages, *, timeout=None):
        for message in messages:
            if message.metadata.dst_node_id in self.failing:
                yield Message(Error(0, "out of paper"), reply_to=message)
            else:
                yield Message(RecordDict(), reply_to=message)


def ask(grid, kind, *nodes):
    out = [Message(RecordDict(), node, kind) for node in nodes]
    return grid.send_and_receive(out)


def test_a_newcomer_that_cannot_answer_what_others_have_ends_no_run(caplog):
    told = []
    grid = RecordingGrid(Answering(3), Roster(ask=False), told.append)
    ask(grid, "query.fingerprint", 1, 2)
    with caplog.at_level(logging.WARNING):
        ask(grid, "query.fingerprint", 3)
    assert told[-1].failed == 1
    assert "1 of 1 clients FAILED: client 3: out of paper" in caplog.text


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_resumed_run_ends_without_a_round_and_not_for_a_question(kind):
    grid = RecordingGrid(Answering(3), Roster(ask=False), lambda _: None, resumed=True)
    ask(grid, "query.fingerprint", 3)
    with pytest.raises(RoundError, match="none of 1 clients"):
        ask(grid, kind, 3)


@pytest.mark.parametrize("kind", ["train", "evaluate", "query.fingerprint"])
def test_where_nobody_has_answered_the_run_ends(kind):
    grid = RecordingGrid(Answering(3), Roster(ask=False), lambda _: None)
    ask(grid, "query.describe", 1)
    with pytest.raises(RoundError, match="none of 1 clients"):
        ask(grid, kind, 3)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_nor_does_a_round_go_on_without_anybody_since_one_before_went_well(kind):
    grid = RecordingGrid(Answering(3), Roster(ask=False), lambda _: None)
    ask(grid, kind, 1, 3)
    with pytest.raises(RoundError, match="none of 1 clients"):
        ask(grid, kind, 3)
