from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from flwr.app import ConfigRecord, MessageType
from flwr.serverapp.strategy import FedAvg

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.cohort.sampling import sample
from atlas_flwr.errors import RoundError
from atlas_flwr.grids.delegation import DelegatingGrid
from atlas_flwr.grids.quorum import QuorumGrid
from atlas_flwr.grids.recording import RecordingGrid
from atlas_flwr.testing import local_grid
from tests.matrix_clients import KEYS, client_app, initial, trained

SLOW = 1_000 + 7 * 3  # the node of client 3


class SlowNode(DelegatingGrid):
    """Holds one node's training replies back until later rounds' messages go out."""

    def __init__(self, grid, lag=1):
        super().__init__(grid)
        self.pushed, self.lag = 0, lag
        self.held: dict[str, int] = {}

    def push_messages(self, messages):
        out = list(messages)
        self.pushed += 1
        ids = list(self.grid.push_messages(out))
        for message, name in zip(out, ids, strict=True):
            is_train = message.metadata.message_type == MessageType.TRAIN
            if is_train and message.metadata.dst_node_id == SLOW:
                self.held[name] = self.pushed
        return ids

    def pull_messages(self, message_ids):
        now, lag = self.pushed, self.lag
        free = [i for i in message_ids if now - self.held.get(i, now - lag) >= lag]
        return self.grid.pull_messages(free)


def played(rounds, **settings):
    strategy = FedAvg(fraction_evaluate=0.0)
    with local_grid(client_app(), 4) as grid:
        around = QuorumGrid(SlowNode(grid), poll_seconds=0.001, **settings)
        result = strategy.start(around, initial(), num_rounds=rounds)
    return result.arrays[KEYS[2]].numpy()


def dense(start, client):
    """A client's dense array after training from ``start``."""
    arrays = initial()
    arrays[KEYS[2]] = type(arrays[KEYS[2]])(start.astype(np.float32))
    return trained(arrays, client, client % 2)[KEYS[2]].numpy()


def average(values, weights):
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def test_a_round_goes_on_without_the_slowest():
    zero = np.zeros(3)
    wanted = average([dense(zero, c) for c in (0, 1, 2)], [10, 11, 12])
    np.testing.assert_allclose(played(1, quorum=0.75), wanted, rtol=1e-5)


@pytest.mark.parametrize("keep_late", [False, True])
def test_a_late_reply_is_dropped_or_discounted(keep_late):
    zero = np.zeros(3)
    first = average([dense(zero, c) for c in (0, 1, 2)], [10, 11, 12])
    values, weights = [dense(first, c) for c in (0, 1, 2)], [10.0, 11.0, 12.0]
    if keep_late:
        values.append(dense(zero, 3))
        weights.append(13 / math.sqrt(2))
    found = played(2, quorum=0.75, keep_late=keep_late)
    np.testing.assert_allclose(found, average(values, weights), rtol=1e-5)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("lag", [1, 3])
def test_a_late_replys_weight_is_fedasyncs_polynomial_until_the_cutoff(exponent, lag):
    settings = {"exponent": exponent, "cutoff": 3, "keep_late": True}
    weights = late_weights(lag, **settings)
    assert weights == pytest.approx([13 * (1 + lag) ** -exponent])
    assert late_weights(4, **settings) == []


def late_weights(lag, **settings):
    """Weights of client 3's first reply, which comes so many rounds late."""
    found = []
    with local_grid(client_app(), 4) as grid:
        slow = SlowNode(grid, lag)
        around = QuorumGrid(slow, 0.75, poll_seconds=0.001, **settings)
        for number in range(1, 7):
            strategy = FedAvg(fraction_evaluate=0.0)
            messages = list(
                strategy.configure_train(number, initial(), ConfigRecord(), grid)
            )
            late = around.busy()
            if number > 1:
                messages = [m for m in messages if m.metadata.dst_node_id != SLOW]
            assert late == ({SLOW} if 1 < number <= 1 + min(lag, 3) else set())
            found += [
                reply.content["metrics"]["num-examples"]
                for reply in around.send_and_receive(messages)
                if reply.metadata.src_node_id == SLOW
            ]
    return found


def test_waiting_ends_with_the_timeout():
    with local_grid(client_app(), 4, intercept=lambda message: "drop") as grid:
        around = QuorumGrid(grid, 0.5, poll_seconds=0.001)
        FedAvg(fraction_evaluate=0.0).start(
            around, initial(), num_rounds=1, timeout=0.05
        )


def test_where_all_who_are_there_are_late_they_are_asked_anew():
    """With nobody to ask no late reply would be looked for, to the end of the run."""
    with local_grid(client_app(), 4, intercept=lambda message: "drop") as grid:
        around = QuorumGrid(grid, 0.5, poll_seconds=0.001, keep_late=True)
        roster = Roster(ask=False, busy=around.busy, give_up=around.give_up)
        strategy = FedAvg(fraction_evaluate=0.0)
        messages = strategy.configure_train(1, initial(), ConfigRecord(), grid)
        around.send_and_receive(messages, timeout=0.01)
        everyone = list(grid.get_node_ids())
        assert around.busy() == set(everyone)
        size = 1.0, 1, 1
        assert not sample(around, roster, size, 0, "evaluate", 1)
        assert sample(around, roster, size, 0, "train", 2) == everyone
        assert not around.busy()


@pytest.mark.parametrize("quorum", [0.0, -1.0, 1.1, float("nan")])
def test_an_impossible_quorum_is_refused(quorum):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        QuorumGrid(None, quorum)


def test_replies_that_are_errors_do_not_make_a_quorum():
    broken = {1_000, 1_007}

    def intercept(message):
        return "broken" if message.metadata.dst_node_id in broken else "deliver"

    strategy = FedAvg(fraction_evaluate=0.0)
    with local_grid(client_app(), 4, intercept=intercept) as grid:
        around = QuorumGrid(grid, 0.5, poll_seconds=0.001)
        messages = strategy.configure_train(1, initial(), ConfigRecord(), grid)
        replies = list(around.send_and_receive(messages, timeout=60))
    assert sum(reply.has_content() for reply in replies) == 2


def test_all_replies_being_errors_nobody_waits_for_more():
    with local_grid(client_app(), 4, intercept=lambda message: "broken") as grid:
        strategy = FedAvg(fraction_evaluate=0.0)
        messages = strategy.configure_train(1, initial(), ConfigRecord(), grid)
        around = QuorumGrid(grid, 0.5, poll_seconds=0.001)
        assert len(list(around.send_and_receive(messages))) == 4


@pytest.mark.parametrize(
    ("share", "count"), [(0.28, 7), (0.29, 8), (1.0, 25), (1e-12, 1)]
)
def test_a_share_that_is_a_whole_number_of_clients_is_that_number(share, count):
    with local_grid(client_app(), 25) as grid:
        held = OneByOne(grid)
        strategy = FedAvg(fraction_evaluate=0.0)
        messages = strategy.configure_train(1, initial(), ConfigRecord(), grid)
        around = QuorumGrid(held, share, poll_seconds=0.0)
        assert len(list(around.send_and_receive(messages))) == count


class OneByOne(DelegatingGrid):
    """Gives one reply at a time."""

    def pull_messages(self, message_ids):
        return self.grid.pull_messages(sorted(message_ids)[:1])


def recorded(intercept, **settings):
    """Two rounds round a slow node; return what was told of each."""
    told = []
    with local_grid(client_app(), 4, intercept=intercept) as grid:
        around = QuorumGrid(SlowNode(grid), 0.5, poll_seconds=0.001, **settings)
        recording = RecordingGrid(around, Roster(ask=False), told.append)
        for number in (1, 2):
            config = ConfigRecord({"round": number})
            strategy = FedAvg(fraction_evaluate=0.0)
            messages = strategy.configure_train(number, initial(), config, recording)
            recording.send_and_receive(messages, timeout=0.2)
    return told


def broken_in_round_two(*nodes):
    def intercept(message):
        number = next(iter(message.content.config_records.values()))["round"]
        hit = number == 2 and message.metadata.dst_node_id in nodes
        return "out of paper" if hit else "deliver"

    return intercept


def test_who_is_late_has_not_failed(caplog):
    with caplog.at_level(logging.WARNING):
        told = recorded(lambda message: "deliver")
    assert [(seen.failed, seen.late) for seen in told] == [(0, 1), (0, 1)]
    assert "FAILED" not in caplog.text


@pytest.mark.parametrize("keep_late", [False, True])
def test_who_is_late_and_then_fails_is_told_and_has_failed_no_later_round(
    keep_late, caplog
):
    def intercept(message):
        number = next(iter(message.content.config_records.values()))["round"]
        slow = message.metadata.dst_node_id == SLOW
        return "out of paper" if slow and number == 1 else "deliver"

    with caplog.at_level(logging.WARNING):
        first, second = recorded(intercept, keep_late=keep_late)
    assert (first.failed, first.late, first.late_reasons) == (0, 1, [])
    assert (second.failed, second.late, second.overdue) == (0, 1, 0)
    assert second.late_reasons == [(SLOW, "late: out of paper")]
    assert f"train: client {SLOW} FAILED, late: out of paper" in caplog.text
    assert "clients FAILED" not in caplog.text


def test_a_worker_that_dies_late_ends_a_run_as_one_that_dies_in_time():
    def intercept(message):
        slow = message.metadata.dst_node_id == SLOW
        return "ActorDiedError: it died" if slow else "deliver"

    with pytest.raises(RoundError, match="worker of the simulation has died"):
        recorded(intercept)


def test_an_old_rounds_reply_does_not_stand_in_for_one_that_failed(caplog):
    broken = broken_in_round_two(1_000, 1_007)
    with caplog.at_level(logging.WARNING):
        first, second = recorded(broken, keep_late=True)
    assert (first.failed, first.late, first.overdue) == (0, 1, 0)
    # One of four was valid, one is slow, and one reply of the first round came.
    assert (second.failed, second.overdue) == (3, 1)
    assert sum(reply.has_content() for reply in second.replies) == 2
    assert "3 of 4 clients FAILED: client 1000: out of paper; " in caplog.text


def test_an_old_rounds_reply_does_not_save_a_round_in_which_all_failed():
    broken = broken_in_round_two(1_000, 1_007, 1_014, SLOW)
    with pytest.raises(RoundError, match="none of 4 clients gave a valid reply"):
        recorded(broken, keep_late=True)
