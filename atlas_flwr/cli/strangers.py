# SPDX-License-Identifier: Apache-2.0
"""Texts of a task that are no client's own: those that an attacker may have of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from atlas_flwr.errors import DataError

if TYPE_CHECKING:
    from atlas_flwr.config import RunConfig
    from atlas_flwr.data import Batch, Collator, Example
    from atlas_flwr.privacy import Defence, Recording, Truth

__all__ = ["Name", "texts_of_others", "told_of"]

Name = tuple[int, ...]


def told_of(config: RunConfig, found: Sequence[Recording]) -> frozenset[Name]:
    """Return the names of the texts that a run has recorded."""
    return frozenset(
        _name(config.task_of(int(recording.client)), text)
        for recording in found
        for text in recording.truths
    )


def texts_of_others(
    task: str,
    collate: Collator,
    told: frozenset[Name],
    defence: Defence,
    *,
    seed: int,
    prompt: bool = False,
) -> Iterator[Sequence[Batch]]:
    """Yield a task's texts but those that were recorded, one after the other.

    Parameters
    ----------
    task : str
        Its name.
    collate : Collator
        Its own.
    told : frozenset[tuple[int, ...]]
        See :func:`told_of`.
    defence : Defence
        What clients do to their texts: as changed by it they are looked for, too.
    seed : int
        Of their order.
    prompt : bool
        Whether batches are made without the label.

    Yields
    ------
    Sequence[Batch]
        A text, each of its pieces in a batch.

    Raises
    ------
    DataError
        If there is none.
    """
    from atlas_flwr.cli.labelled import OWN_SECRET
    from atlas_flwr.data import load_task, make_shard

    found = load_task(task)
    shard = make_shard(0, 1, [found], seed=seed)
    classes = len(found.labels)
    hidden = defence.examples(shard.train, classes, OWN_SECRET, learned=False)
    some = False
    for example, changed in zip(shard.train, hidden, strict=True):
        made = _pieces(collate, example, prompt)
        other = made if changed == example else _pieces(collate, changed, prompt)
        if told.isdisjoint(_known_by(task, [*made, *other])):
            some = True
            yield made
    if not some:
        raise DataError(
            f"task {task}: all of its texts are the clients' own, and none is left "
            "that an attacker could have; name tasks that have more (--known)"
        )


def _pieces(collate: Collator, example: Example, prompt: bool) -> list[Batch]:
    """Collate a text as clients do: a completion in the pieces that it is cut into."""
    from atlas_flwr.data.completions import CompletionCollator

    cut = collate.cut(example) if isinstance(collate, CompletionCollator) else None
    return [collate([piece], prompt=prompt) for piece in cut or [example]]


def _known_by(task: str, batches: Sequence[Batch]) -> Iterator[Name]:
    from atlas_flwr.privacy.recorder import truth_of

    return (_name(task, truth_of(batch, 0)) for batch in batches)


def _name(task: str, text: Truth) -> Name:
    """Return what a text is recognised by: its prompt, whatever was answered.

    A completion has no prompt, as all of it is learned: it is its own name.
    """
    from atlas_flwr.data import load_task

    return tuple(text.ids.tolist() if load_task(task).completes else text.prompt)
