"""Why a reply failed, in one line, however Flower and Ray put it."""

from __future__ import annotations

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.protocol.replies import reason_of
from atlas_flwr.testing import local_grid


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("DataError: the shard is empty", "DataError: the shard is empty"),
        (
            "<class 'ray.exceptions.ActorDiedError'>:<'The actor died.\n"
            "\tclass_name: ClientAppActor\n\tpid: 7\nThe actor is dead because'>",
            "ActorDiedError: The actor died.",
        ),
        (
            "<class 'ZeroDivisionError'>:<'division by zero'>",
            "ZeroDivisionError: division by zero",
        ),
    ],
)
def test_the_reason_of_a_failure_is_one_plain_line(given, told):
    with local_grid(ClientApp(), 1):
        asked = Message(RecordDict(), 7, "train")
        asked.metadata.__dict__["_message_id"] = "1"
        assert reason_of(Message(Error(2, given), reply_to=asked)) == told
