# SPDX-License-Identifier: Apache-2.0
"""Fetch and check all that a run needs, before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from atlas_flwr.data.batches import CausalCollator
from atlas_flwr.data.models import ModelSource, resolve_model, tokenizer_of
from atlas_flwr.data.tasks import Task, load_examples, load_task
from atlas_flwr.errors import DataError

__all__ = ["prepare"]


def prepare(
    model: str, tasks: Sequence[str], *, max_length: int = 48, progress: bool = True
) -> tuple[ModelSource, list[Task]]:
    """Download, convert and check a model and tasks; what is there already is quick.

    Parameters
    ----------
    model : str
        See :func:`atlas_flwr.data.resolve_model`.
    tasks : Sequence[str]
        See :func:`atlas_flwr.data.load_task`.
    max_length : int
        Longest prompt.
    progress : bool
        Show bars.

    Raises
    ------
    DataError
        If something cannot be had, or does not fit together.
    """
    loaded = [load_task(name) for name in tasks]
    for task in loaded:
        load_examples(task)
    source = resolve_model(model, progress)
    _check_length(source, max_length)
    tokenizer = tokenizer_of(source)
    if source.kind == "causal":
        for task in loaded:
            CausalCollator(tokenizer, task, max_length)
    return source, loaded


def _check_length(source: ModelSource, max_length: int) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.path)
    positions = getattr(config, "max_position_embeddings", None) or max_length
    if max_length > positions:
        raise DataError(
            f"max-length={max_length}, but model {source.name} knows {positions} "
            f"positions; set max-length to {positions} or less"
        )
