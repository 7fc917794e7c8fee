# SPDX-License-Identifier: Apache-2.0
"""Where text and weights come from, and how they become batches."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.data.batches import (
        Batch,
        CausalCollator,
        ClassifierCollator,
        Collator,
    )
    from atlas_flwr.data.cache import cache_folder
    from atlas_flwr.data.drawing import by_length, in_order, sample_batches
    from atlas_flwr.data.models import ModelSource, resolve_model, tokenizer_of
    from atlas_flwr.data.next_token import NextTokenCollator
    from atlas_flwr.data.preparation import prepare
    from atlas_flwr.data.shards import Shard, majority_accuracy, make_shard
    from atlas_flwr.data.tasks import (
        Example,
        Task,
        load_examples,
        load_task,
        task_names,
    )

__all__ = [
    "Batch",
    "CausalCollator",
    "ClassifierCollator",
    "Collator",
    "Example",
    "ModelSource",
    "NextTokenCollator",
    "Shard",
    "Task",
    "by_length",
    "cache_folder",
    "in_order",
    "load_examples",
    "load_task",
    "majority_accuracy",
    "make_shard",
    "prepare",
    "resolve_model",
    "sample_batches",
    "task_names",
    "tokenizer_of",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Batch": "batches",
        "CausalCollator": "batches",
        "ClassifierCollator": "batches",
        "Collator": "batches",
        "Example": "tasks",
        "ModelSource": "models",
        "NextTokenCollator": "next_token",
        "Shard": "shards",
        "Task": "tasks",
        "by_length": "drawing",
        "cache_folder": "cache",
        "in_order": "drawing",
        "load_examples": "tasks",
        "load_task": "tasks",
        "majority_accuracy": "shards",
        "make_shard": "shards",
        "prepare": "preparation",
        "resolve_model": "models",
        "sample_batches": "drawing",
        "task_names": "tasks",
        "tokenizer_of": "models",
    },
)
