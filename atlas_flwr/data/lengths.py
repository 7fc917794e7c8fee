# SPDX-License-Identifier: Apache-2.0
"""How many tokens a task's examples have, and what of them a limit cuts away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from logging import WARNING
from typing import Any

from atlas_flwr.data.examples import Example
from atlas_flwr.data.models import ModelSource, tokenizer_of
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.data.tasks import Task, load_examples, load_task
from atlas_flwr.log import log

__all__ = ["Lengths", "lengths_of", "warn_of_cuts"]

LOOKED_AT = 256  # examples, evenly from all: their tokens take some tenths of a second
NINE_TENTHS = 0.9


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts with their responses.

    Attributes
    ----------
    task : str
        Its name.
    whole : tuple[int, ...]
        Of each example that was looked at, the shortest first; at least one.
    limit : int
        ``max-length``.
    unlearned : int
        How many examples lose a part of what is learned to the limit.
    """

    task: str
    whole: tuple[int, ...]
    limit: int
    unlearned: int

    def __str__(self) -> str:
        """Say how long they are."""
        most = self.whole[min(int(len(self.whole) * NINE_TENTHS), len(self.whole) - 1)]
        half = self.whole[len(self.whole) // 2]
        return (
            f"half are within {half} tokens, nine of ten within {most}, all within "
            f"{self.whole[-1]}"
        )

    def warning(self) -> str:
        """Say what is cut away; nothing where nothing is."""
        cut = sum(length > self.limit for length in self.whole)
        if not cut:
            return ""
        lost = "they lose the beginning of the prompt"
        if self.unlearned:
            lost += f", and {self.unlearned} a part of the answer"
        return (
            f"task {self.task}: {cut} of {len(self.whole)} examples that were looked "
            f"at are longer than max-length={self.limit}: {lost}. Of all, {self}; "
            "raise max-length for what is to be kept"
        )


def lengths_of(tokenizer: Any, task: Task, limit: int) -> Lengths:
    """Count the tokens of some of the examples of a task with prompts and answers."""
    collate = GenerationCollator(tokenizer, task, limit)
    examples = load_examples(task)
    looked: Sequence[Example] = examples[:: -(-len(examples) // LOOKED_AT)]
    rows = [collate.whole(example) for example in looked]
    lost = [sum(row.learned) > sum(row.within(limit).learned) for row in rows]
    sizes = tuple(sorted(len(row.ids) for row in rows))
    return Lengths(task.name, sizes, limit, sum(lost))


def warn_of_cuts(source: ModelSource, names: Sequence[str], limit: int) -> None:
    """Log what a limit cuts away of the user's own tasks with prompts and answers.

    Once a run: by the ServerApp, whose log is there however the run was started.
    """
    tasks = map(load_task, names)
    own = [task for task in tasks if task.answers and not task.reading.package]
    tokenizer = tokenizer_of(source) if own else None
    for task in own:
        if why := lengths_of(tokenizer, task, limit).warning():
            log(WARNING, "%s", why)
