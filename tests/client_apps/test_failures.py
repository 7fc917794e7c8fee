"""What a client cannot do is told in a sentence; what nobody foresaw is raised."""

from __future__ import annotations

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.client_apps.app import app as our_app
from atlas_flwr.client_apps.failures import told_in_a_sentence
from atlas_flwr.errors import ConfigError, DataError
from atlas_flwr.testing import local_grid


def answered(app):
    with local_grid(app, 1) as grid:
        (context,) = grid.contexts.values()
        message = Message(RecordDict(), context.node_id, "train")
        message.metadata.__dict__["_message_id"] = "1"
        return app(message, context)


def raising(error):
    app = ClientApp(mods=[told_in_a_sentence])

    @app.train()
    def train(message, context):
        raise error

    return app


def test_an_error_of_ours_is_an_error_reply():
    reply = answered(raising(DataError("the shard is empty")))
    assert reply.has_error()
    assert reply.error.reason == "DataError: the shard is empty"


def test_what_is_wrong_with_a_node_is_not_called_the_runs():
    reply = answered(raising(ConfigError(["trunk-access='x' is none", "and more"])))
    assert reply.error.reason == "ConfigError: trunk-access='x' is none; and more"


def test_any_other_goes_on_to_flower_which_tells_it_in_full():
    with pytest.raises(ZeroDivisionError):
        answered(raising(ZeroDivisionError("division by zero")))


def test_our_own_app_answers_so():
    assert told_in_a_sentence in our_app._mods
