# SPDX-License-Identifier: Apache-2.0
"""Test prompts of a run's client, as that client was scored on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import RunConfig
from atlas_flwr.data import ModelSource
from atlas_flwr.data.collation import collator_of
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.errors import DataError

__all__ = ["HeldOut", "held_out"]


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


def held_out(
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
    config : RunConfig
        The run's.
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
        If the client's task has no prompts that text answers, or cannot be read here.
    """
    shard = Identity(client, clients, None).shard(config)
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
