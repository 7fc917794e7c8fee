# SPDX-License-Identifier: Apache-2.0
"""A client's texts are those that it began a run with: its own disk remembers a digest.

What its task puts around them is in the digest, too: the template, the classes' words.
Nothing of it leaves the client. A digest that the server knew would let it try which of
several guesses the texts are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.data import Example, Shard, Task
from atlas_flwr.errors import DataError
from atlas_flwr.remedies.base import Store

__all__ = ["check_dealt", "check_texts"]

NAME, POOLED = "texts", "pooled-texts"


def check_texts(shards: Iterable[Shard], store: Callable[[], Store]) -> None:
    """Refuse texts that are not those of the client's first round.

    Those of pinned packages cannot change, and nothing is kept of them.

    Parameters
    ----------
    shards : Iterable[Shard]
        What the client trains on.
    store : Callable[[], Store]
        Opens what it remembers of the run.

    Raises
    ------
    DataError
        Naming the sources.
    """
    given = list(shards)
    name = NAME if len(given) == 1 else POOLED
    own = [shard for shard in given if _may_change(shard)]
    if not own:
        return
    digest, kept = _digest(own), store()
    found = kept.load(name, before=1)
    if found is None:
        kept.save(name, 0, {name: digest})
    elif not np.array_equal(found[name], digest):
        places = ", ".join(sorted({shard.task.reading.where for shard in own}))
        raise DataError(
            "the client's texts are not those that it began the run with: since then "
            f"{places} has changed, or the task file of it. Put it back as it was, or "
            "start a new run"
        )


def check_dealt(shard: Shard, store: Store) -> bool:
    """Refuse texts, dealt again after a run, that are not those of its client.

    Else a text that the client was trained on may be among its tests now.

    Parameters
    ----------
    shard : Shard
        What was dealt.
    store : Store
        What the client remembers of the run.

    Returns
    -------
    bool
        Whether that is known: nothing is remembered on another machine.

    Raises
    ------
    DataError
        Naming the source.
    """
    if not _may_change(shard):
        return True
    found = store.load(NAME, before=1)
    if found is None:
        return False
    if not np.array_equal(found[NAME], _digest([shard])):
        raise DataError(
            "the client's texts, dealt again, are not those that it was trained and "
            f"scored on: since then {shard.task.reading.where} has changed, or the "
            "task file of it, and what it was trained on may be among its tests now. "
            "Put it back as it was"
        )
    return True


def _may_change(shard: Shard) -> bool:
    return not shard.task.reading.package


def _digest(shards: Iterable[Shard]) -> NDArray[np.uint8]:
    found = blake2b(digest_size=32)
    for shard in shards:
        found.update(_written(_around(shard.task)))
        for part in (shard.train, shard.test):
            found.update(b"%d texts" % len(part))
            for example in part:
                found.update(_written(_said(example)))
    return np.frombuffer(found.digest(), dtype=np.uint8)


def _around(task: Task) -> tuple[object, ...]:
    """Return what a task's file puts around each text, and has learned of it."""
    learned = task.kind, task.template, task.labels
    return *learned, task.chat, task.system, task.learn


def _said(example: Example) -> tuple[object, ...]:
    said = example.text, example.label, example.answer
    return *said, example.turns, example.tokens


def _written(value: tuple[object, ...]) -> bytes:
    return repr(value).encode("utf-8", "surrogatepass")
