# SPDX-License-Identifier: Apache-2.0
"""Clients of ATLAS that come after their round: counted less, once, or not at all."""

from __future__ import annotations

import logging

import pytest
from flwr.app import MessageType

from atlas_flwr.client_apps.app import app
from atlas_flwr.server_apps import trunk as starting
from atlas_flwr.server_apps.run import Run
from atlas_flwr.testing import local_grid
from tests.golden.record import digest
from tests.grids.test_quorum import SLOW, SlowNode
from tests.server_apps.test_failures import mortal_runs
from tests.server_apps.test_peers import told
from tests.server_apps.test_run import BASE, NODES


@pytest.fixture
def engines(monkeypatch):
    found, serve = [], starting.serve_local

    def seen(name, engine):
        found.append(engine)
        return serve(name, engine)

    monkeypatch.setattr(starting, "serve_local", seen)
    return found


def slowed(folder, lag, intercept=None, **changes):
    """Run with one client whose training replies come so many rounds late."""
    given = {"num-rounds": 3, "cut": "1/1", "quorum": 0.75, "num-clusters": 1}
    given |= {key.replace("_", "-"): value for key, value in changes.items()}
    config = {**BASE, **given, "runs-dir": str(folder)}
    with local_grid(app, NODES, config, intercept=intercept) as grid:
        begun = Run.begin(config, given)
        begun.execute(SlowNode(grid, lag))
    return begun.folder, grid.sent


def asked(sent, kind):
    """Rounds in which the slow client was asked for something."""
    return [
        next(iter(m.content.config_records.values()))["server-round"]
        for m in sent
        if m.metadata.dst_node_id == SLOW and m.metadata.message_type == kind
    ]


def test_a_split_clients_late_update_counts_once_and_less_and_its_session_ends(
    tmp_path, engines, caplog
):
    numbers = []
    with caplog.at_level(logging.WARNING):
        found, sent = slowed(tmp_path / "half", 1)
        other, _ = slowed(tmp_path / "whole", 1, staleness_exponent=0.0)
    assert "refused" not in caplog.text
    assert digest(found.path) != digest(other.path)
    for folder in (found, other):
        late = [e for e in told(folder, "client-trained") if e["client"] == "3"]
        assert [e["round"] for e in late] == [2]
        numbers.append(late[0]["num_examples"])
    assert numbers[0] == numbers[1]  # what it counts is another thing
    # Late in round 2 from round 1, it was not asked in 2, nor to evaluate before.
    assert asked(sent, MessageType.TRAIN) == [1, 3]
    assert asked(sent, MessageType.EVALUATE) == [0, 2]
    assert all(engine.stats().sessions <= 1 for engine in engines)


def test_a_client_that_fails_late_is_an_event_of_the_round_that_tells(tmp_path):
    def intercept(message):
        number = next(iter(message.content.config_records.values())).get("server-round")
        late = message.metadata.dst_node_id == SLOW and number == 1
        broken = late and message.metadata.message_type == MessageType.TRAIN
        return "out of paper" if broken else "deliver"

    found, _ = slowed(tmp_path, 1, intercept, num_rounds=2)
    failed = told(found, "client-failed")
    reasons = [(e["round"], e["client"], e["reason"]) for e in failed]
    assert reasons == [(2, "3", "late: out of paper")]
    ends = [(e["failures"], e["late"]) for e in told(found, "round-ended")]
    assert ends == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.slow
def test_past_the_cutoff_it_is_dropped_its_session_closed_and_it_is_asked_again(
    tmp_path, engines
):
    found, sent = slowed(tmp_path, 3, staleness_cutoff=1, num_rounds=4)
    assert not [e for e in told(found, "client-trained") if e["client"] == "3"]
    assert asked(sent, MessageType.TRAIN)[:2] == [1, 3]
    counted, _ = slowed(tmp_path, 1, run_name="counted")
    dropped, _ = slowed(tmp_path, 1, staleness_cutoff=0, run_name="dropped")
    assert digest(dropped.path) != digest(counted.path)


def test_who_was_late_when_the_trunk_was_lost_does_the_round_again_with_the_others(
    tmp_path, monkeypatch, caplog
):
    """What it has trained is lost with its session, and it would be refused."""
    intercept, found = mortal_runs(monkeypatch, (6,))
    with caplog.at_level(logging.WARNING):
        folder, sent = slowed(tmp_path, 30, intercept)
    assert len(found) == 2
    assert told(folder, "trunk-restarted")
    assert asked(sent, MessageType.TRAIN) == [1, 2]
    assert "refused" not in caplog.text
