# SPDX-License-Identifier: Apache-2.0
"""A client's answers to some of its test prompts: their scores, and samples to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr.app import ConfigRecord

from atlas_flwr.config import RunConfig
from atlas_flwr.data import Example, Task
from atlas_flwr.data.preparation import known_positions
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.protocol import keys
from atlas_flwr.train.answers import Decoding, answered
from atlas_flwr.train.scores import mean_scores

__all__ = ["answers_record", "is_scored"]


def is_scored(config: RunConfig, task: Task, round: int) -> bool:
    """Tell whether a task's answers are written in a round: in the first and last."""
    wanted = bool(task.scores) or bool(config.share_samples and task.answers)
    return bool(config.score_examples) and wanted and round in (0, config.num_rounds)


def answers_record(
    model: Any,
    tokenizer: Any,
    task: Task,
    collate: GenerationCollator,
    examples: Sequence[Example],
    config: RunConfig,
) -> ConfigRecord:
    """Answer the first prompts, greedily; return scores, and as many texts as may go.

    Parameters
    ----------
    model : nn.Module
        A split model or a whole one, in evaluation mode.
    tokenizer : PreTrainedTokenizer
        Its own.
    task : Task
        Names the scores.
    collate : GenerationCollator
        Makes prompts.
    examples : Sequence[Example]
        Test examples.
    config : RunConfig
        Says how many are answered, how long an answer is, and how many are shared.
    """
    some = examples[: config.score_examples]
    written, most = _within(model, config.score_tokens)
    prompts = [collate.prompt(example)[-most:] for example in some]
    decoding = Decoding(max_new_tokens=written)
    found = answered(model, tokenizer, prompts, decoding, config.eval_batch_size)
    answers = [answer.text for answer in found]
    scores = mean_scores(task.scores, answers, [example.answer for example in some])
    shown = slice(config.share_samples)
    told: dict[str, list[str] | list[float]] = {
        keys.SCORE_NAMES: list(scores),
        keys.SCORE_VALUES: list(scores.values()),
        keys.PROMPTS: [example.text for example in some[shown]],
        keys.REFERENCES: [example.answer for example in some[shown]],
        keys.ANSWERS: answers[shown],
    }
    # Flower cannot count the bytes of an empty list.
    filled = {key: values for key, values in told.items() if values}
    return ConfigRecord({keys.SCORED: len(some), **filled})


def _within(model: Any, tokens: int) -> tuple[int, int]:
    """Return how many tokens are written, and how many of a prompt are read.

    Together they are within what the model knows: ``max-length`` is of training rows,
    whose answers are in them. A longer prompt loses its beginning; 0 is for all of it.
    """
    known = known_positions(model.config)
    if known is None:
        return tokens, 0
    left = known - int(getattr(model, "learned_positions", 0))
    written = min(tokens, left - 1)
    return written, left - written
