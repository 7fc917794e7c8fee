# SPDX-License-Identifier: Apache-2.0
"""A trunk elsewhere that forgets a session: answers go on, and nothing stays open."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest

from atlas_flwr.data import tokenizer_of
from atlas_flwr.errors import TrunkLost
from atlas_flwr.serving import Chosen, Conversation, Decoding, Prompts, served
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk.transports.access import Access
from atlas_flwr.trunk.transports.grpc_channel import GrpcChannel
from tests.serving.conftest import random_state
from tests.serving.test_verbs import trunk_elsewhere

PLAN = SplitPlan(2, 1)


@contextmanager
def served_far(folder, path):
    """Serve the run's trunk elsewhere; yield its engine, a model, and its tokenizer."""
    with trunk_elsewhere(folder, path) as engine:
        config = folder.config()
        files = ModelFiles.of(config)
        picked = Chosen("cluster 0", random_state(0), PLAN, ())
        given = files, files.outline(), config, picked, PLAN, Access.read(path)
        with served(*given) as found:
            yield engine, found, tokenizer_of(files.source)


def conversation(found, tokenizer):
    return Conversation(found.model, Prompts(tokenizer, []), Decoding(max_new_tokens=6))


def silent(piece):
    pass


def all_forgotten(engine):
    """Let a trunk forget its sessions, as it does those that are idle."""
    tokens = [*engine._table._sessions]
    for token in tokens:
        engine.close(token)
    return len(tokens)


def test_a_chat_goes_on_where_its_trunk_has_forgotten_the_session(folder, tmp_path):
    questions = ["hello", " and then", " why"]
    with served_far(folder, tmp_path / "access.json") as (engine, found, tokenizer):
        talk = conversation(found, tokenizer)
        said = [talk.ask(question, silent) for question in questions]
        once = found.meter.total_up
        talk.reset()
        again = []
        for question in questions:
            again.append(talk.ask(question, silent))
            assert all_forgotten(engine) == 1
        assert again == said
        assert found.meter.total_up > 2.5 * once  # what had crossed crosses again
        talk.reset()  # there is nothing left that the trunk could forget
        assert engine.stats().sessions == 0


def test_a_trunk_that_was_started_anew_answers_no_chat_that_began_before(
    folder, tmp_path
):
    """It may hold another model, which is looked at when a chat begins."""
    with served_far(folder, tmp_path / "access.json") as (engine, found, tokenizer):
        talk = conversation(found, tokenizer)
        talk.ask("hello", silent)
        all_forgotten(engine)
        found.host.served = replace(found.host.served, start="another")
        with pytest.raises(TrunkLost, match="was started anew"):
            talk.ask("more", silent)


def test_a_model_that_is_done_leaves_no_connection_open(folder, tmp_path, monkeypatch):
    closed, close = [], GrpcChannel.close

    def noted(channel):
        closed.append(channel.service)
        close(channel)

    monkeypatch.setattr(GrpcChannel, "close", noted)
    with served_far(folder, tmp_path / "access.json"):
        assert not closed
    assert closed == ["atlas.Trunk", "atlas.TrunkOwner"]
