# SPDX-License-Identifier: Apache-2.0
"""Fetch and check all that a run needs, before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from logging import WARNING
from typing import Any

from atlas_flwr.data.collation import collator_of
from atlas_flwr.data.models import ModelSource, resolve_model, tokenizer_of
from atlas_flwr.data.owners import one_sided
from atlas_flwr.data.tasks import Task, load_examples, load_task, read_examples
from atlas_flwr.errors import DataError
from atlas_flwr.log import log

__all__ = ["prepare"]


def prepare(
    model: str,
    tasks: Sequence[str],
    *,
    max_length: int = 48,
    learned_positions: int = 0,
    progress: bool = True,
) -> tuple[ModelSource, list[Task]]:
    """Download, convert and check a model and tasks; what is there already is quick.

    Rows that are left out of a task of the user's are counted in the log.

    Parameters
    ----------
    model : str
        See :func:`atlas_flwr.data.resolve_model`.
    tasks : Sequence[str]
        See :func:`atlas_flwr.data.load_task`.
    max_length : int
        Longest prompt.
    learned_positions : int
        Positions around each text, a prompt's or a summary's.
    progress : bool
        Show bars.

    Raises
    ------
    DataError
        With everything that cannot be had, or does not fit together.
    """
    problems: list[str] = []
    loaded = _loaded(tasks, problems)
    source = _resolved(model, progress, problems)
    if source is not None:
        problems += _model_problems(source, loaded, max_length, learned_positions)
    if problems or source is None:
        raise DataError(*problems)
    return source, loaded


def _loaded(tasks: Sequence[str], problems: list[str]) -> list[Task]:
    loaded = []
    for name in tasks:
        try:
            task = load_task(name)
            left_out = read_examples(task).left_out
        except DataError as error:
            problems += error.problems
            continue
        loaded.append(task)
        if task.reading.client:
            found = load_examples(task)
            if why := one_sided(found, task.reading.client, task.name):
                log(WARNING, "%s", why)
        if left_out and not task.reading.package:
            what = "task %s: left out of %s: %s"
            log(WARNING, what, task.name, task.reading.where, "; ".join(left_out))
    return loaded


def _resolved(model: str, progress: bool, problems: list[str]) -> ModelSource | None:
    try:
        return resolve_model(model, progress)
    except DataError as error:
        problems += error.problems
        return None


def _model_problems(
    source: ModelSource, tasks: Sequence[Task], max_length: int, learned: int
) -> Iterator[str]:
    """Yield what is wrong with a model, its tokenizer, and its tasks with these."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.path)
    if getattr(config, "quantization_config", None):
        yield (
            f"model {source.name}: its weights are quantised, and cannot be cut or "
            "folded into; save it in float32 or bfloat16 (model.dequantize(), where "
            "Transformers can), and give that folder"
        )
    try:
        tokenizer = _tokenizer(source)
    except DataError as error:
        yield from error.problems
        return
    yield from _tokenizer_problems(source, config, tokenizer)
    words = 0
    for task in tasks:
        try:
            collate = collator_of(source, tokenizer, task, max_length)
        except DataError as error:
            yield from error.problems
        else:
            words = max(words, collate.longest_word)
    yield from _length_problems(source, config, max_length, words + learned)


def _tokenizer(source: ModelSource) -> Any:
    why = "it has no file with a vocabulary"
    try:
        tokenizer = tokenizer_of(source)
        reads = bool(tokenizer("a", add_special_tokens=False)["input_ids"])
    except (OSError, ValueError) as error:
        why, reads = str(error), False
    if not reads:  # Transformers makes an empty one where there is none
        raise DataError(
            f"model {source.name}: its tokenizer cannot be loaded ({why}); save it in "
            "the same folder with tokenizer.save_pretrained()"
        )
    return tokenizer


def _tokenizer_problems(
    source: ModelSource, config: Any, tokenizer: Any
) -> Iterator[str]:
    known = getattr(config.get_text_config(), "vocab_size", None)
    if known is not None and len(tokenizer) > known:
        yield (
            f"model {source.name}: its tokenizer has {len(tokenizer)} tokens, and its "
            f"embeddings {known}; resize these (model.resize_token_embeddings) and "
            "save both, or give the tokenizer that belongs to it"
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        yield (
            f"model {source.name}: its tokenizer has neither a pad token nor an end "
            "token to fill rows with; set tokenizer.pad_token and save it again"
        )
    elif source.kind == "classifier":
        yield from _padding_problems(source, config, tokenizer)


def _padding_problems(
    source: ModelSource, config: Any, tokenizer: Any
) -> Iterator[str]:
    """Want a token that texts are filled with, and a decoder to know it.

    An unsplit decoder classifies by the last token that is none of those.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    filler, known = tokenizer.pad_token_id, config.get_text_config().pad_token_id
    if filler is None:
        yield (
            f"model {source.name}: it classifies texts of several lengths at once, and "
            "its tokenizer has no pad token; set tokenizer.pad_token, "
            "model.config.pad_token_id to its number, and save both again"
        )
        return
    decodes = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not decodes or config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return
    if filler != known:
        yield (
            f"model {source.name}: it classifies by the last token before padding, "
            f"which its tokenizer makes of token {filler}, and its configuration takes "
            f"for token {known}; set model.config.pad_token_id to {filler}, and save "
            "it again"
        )


def known_positions(config: Any) -> int | None:
    """Return how many positions a model knows; ``None`` where it does not say."""
    text = config.get_text_config()
    limits = ("max_position_embeddings", "max_seq_len")  # MPT says the second
    return next((n for k in limits if (n := getattr(text, k, None))), None)


def _length_problems(
    source: ModelSource, config: Any, length: int, more: int
) -> Iterator[str]:
    """Tell of texts that, with what comes around them, are longer than is known."""
    positions = known_positions(config)
    if positions is None:
        return
    if source.kind == "classifier":
        positions -= _first_position(config)
    most = positions - more
    if length > most:
        beside = f", of which a label or learned positions take {more}" if more else ""
        yield (
            f"max-length={length}, but model {source.name} knows {positions} positions"
            f"{beside}; set max-length to {most} or less"
        )


def _first_position(config: Any) -> int:
    """Return the number of a text's first position: above 0 in RoBERTa and its kin."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(
            module, torch.nn.Embedding
        ):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
