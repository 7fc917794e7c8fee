# SPDX-License-Identifier: Apache-2.0
"""Test prompts of a run's client, as that client was scored on."""

from __future__ import annotations

from dataclasses import dataclass
from logging import WARNING
from typing import Any

from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.client_apps.same_texts import check_dealt
from atlas_flwr.client_apps.store import ClientStore
from atlas_flwr.config import RunConfig
from atlas_flwr.data import ModelSource, Shard
from atlas_flwr.data.collation import collator_of
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.errors import DataError
from atlas_flwr.log import log

__all__ = ["HeldOut", "dealt_again", "held_out"]


@dataclass(frozen=True)
class HeldOut:
    """A prompt that its client never trained on.

    Attributes
    ----------
    text : str
        The prompt.
    reference : str
        What stands behind it in the data.
    ids : list[int]
        The prompt's tokens.
    """

    text: str
    reference: str
    ids: list[int]


def dealt_again(run_id: str, config: RunConfig, client: int, clients: int) -> Shard:
    """Deal a client's texts as a run did, and warn where nothing tells whether it did.

    Parameters
    ----------
    run_id : str
        The run's.
    config : RunConfig
        Its configuration, on this machine.
    client, clients : int
        Which of how many the texts are dealt to.

    Raises
    ------
    DataError
        If they cannot be read here, or are not those that the client remembers.
    """
    shard = Identity(client, clients, None).shard(config)
    if not check_dealt(shard, ClientStore.of(run_id, client)):
        log(
            WARNING,
            "client %d: its texts are dealt again from %s as it is now, and this "
            "machine remembers none of that client's to tell whether it has changed; "
            "if it has, what was trained on may be among the tests",
            client,
            shard.task.reading.where,
        )
    return shard


def held_out(
    run_id: str,
    config: RunConfig,
    source: ModelSource,
    tokenizer: Any,
    client: int,
    clients: int,
    count: int,
) -> list[HeldOut]:
    """Deal a client's texts again, and take its first test prompts.

    Parameters
    ----------
    run_id : str
        The run's.
    config : RunConfig
        Its configuration, on this machine.
    source : ModelSource
        Its model.
    tokenizer : PreTrainedTokenizer
        The model's.
    client, clients : int
        Which of how many.
    count : int
        How many prompts; fewer, if the client has no more.

    Raises
    ------
    DataError
        If the client's task has no prompts that text answers, or its texts are not
        what they were, see :func:`dealt_again`.
    """
    shard = dealt_again(run_id, config, client, clients)
    task = shard.task
    if not task.answers:
        what = "is plain text" if task.completes else "has classes"
        raise DataError(
            f"client {client} has task {task.name}, which {what}, without prompts that "
            "text answers; choose another client, or give a file with --prompts"
        )
    collate = collator_of(source, tokenizer, task, config.max_length)
    assert isinstance(collate, GenerationCollator)
    return [
        HeldOut(example.text, example.answer, collate.prompt(example))
        for example in shard.test[:count]
    ]
