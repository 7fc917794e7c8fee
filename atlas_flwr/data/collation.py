# SPDX-License-Identifier: Apache-2.0
"""Which collator makes batches of a task's examples for a model."""

from __future__ import annotations

from typing import Any

from atlas_flwr.data.batches import CausalCollator, ClassifierCollator, Collator
from atlas_flwr.data.completions import CompletionCollator
from atlas_flwr.data.models import ModelSource
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.data.tasks import Task
from atlas_flwr.errors import DataError

__all__ = ["collator_of"]


def collator_of(
    source: ModelSource, tokenizer: Any, task: Task, max_length: int
) -> Collator:
    """Return what makes batches of a task's examples for a model.

    Parameters
    ----------
    source : ModelSource
        Says whether the model writes or classifies.
    tokenizer : PreTrainedTokenizer
        The model's.
    task : Task
        Says whether it is answered by text or by a class.
    max_length : int
        See the collators.

    Raises
    ------
    DataError
        If the model cannot do the task, or its tokenizer does not suit it.
    """
    if source.kind != "causal":
        if task.writes:
            raise DataError(
                f"task {task.name} is to be answered by text, and model {source.name} "
                "is a classifier, which writes none; take a causal model, such as "
                "smollm2"
            )
        return ClassifierCollator(tokenizer, task, max_length)
    if task.completes:
        return CompletionCollator(tokenizer, task, max_length)
    make = GenerationCollator if task.writes else CausalCollator
    return make(tokenizer, task, max_length)
