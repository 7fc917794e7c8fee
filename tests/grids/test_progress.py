"""Progress is told as replies arrive, whatever grid waits for them."""

from __future__ import annotations

import time

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.grids.progress import ProgressGrid
from atlas_flwr.grids.quorum import QuorumGrid
from atlas_flwr.testing import LocalGrid, local_grid

app = ClientApp()


@app.train()
def train(message, context):
    return Message(RecordDict(), reply_to=message)


class SlowGrid(LocalGrid):
    """Give back one reply a look."""

    def pull_messages(self, message_ids):
        return super().pull_messages(list(message_ids)[:1])


def messages(grid):
    content = RecordDict({"config": ConfigRecord()})
    return [Message(content, n, MessageType.TRAIN) for n in grid.get_node_ids()]


@pytest.fixture
def slow():
    lost = {1_007}
    with local_grid(
        app,
        4,
        intercept=lambda m: "lost" if m.metadata.dst_node_id in lost else "deliver",
    ) as grid:
        yield SlowGrid(grid.app, grid.contexts, grid.intercept)


def test_every_reply_is_counted_and_passed_on(slow):
    seen = []
    grid = ProgressGrid(slow, seen.append, poll_seconds=0)
    for number in (1, 2):
        replies = list(grid.send_and_receive(messages(grid)))
        assert len(replies) == 4
        found, seen[:] = list(seen), []
        assert [f.came for f in found] == [0, 1, 2, 3, 4]
        assert {(f.kind, f.sent, f.number) for f in found} == {("train", 4, number)}
        assert found[-1].failed == 1


def test_a_round_that_does_not_wait_for_all_is_counted_too(slow):
    seen = []
    grid = QuorumGrid(ProgressGrid(slow, seen.append), 0.5, poll_seconds=0)
    list(grid.send_and_receive(messages(grid)))
    assert max(f.came for f in seen) >= 2
    assert seen[-1].sent == 4


def test_replies_that_never_come_are_waited_for_until_the_timeout():
    with local_grid(app, 2, intercept=lambda message: "drop") as inner:
        grid = ProgressGrid(inner, lambda flight: None, poll_seconds=0.01)
        began = time.monotonic()
        assert list(grid.send_and_receive(messages(grid), timeout=0.1)) == []
        assert time.monotonic() - began >= 0.1


def test_who_asks_for_nodes_is_heard(slow):
    connected = []
    list(ProgressGrid(slow, lambda f: None, connected.append).get_node_ids())
    assert connected == [4]
