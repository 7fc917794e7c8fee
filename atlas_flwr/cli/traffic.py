# SPDX-License-Identifier: Apache-2.0
"""Whether the sizes of what a run's clients sent tell their tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_flwr.cli.recorded import PUBLIC
from atlas_flwr.cli.strangers import Name, texts_of_others, told_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_flwr.config import RunConfig
    from atlas_flwr.privacy import Recording, Score
    from atlas_flwr.privacy.attacks.base import TaskAttack

__all__ = ["task_scores"]

TEXTS = 300  # of each task that the attacker thinks possible


def task_scores(
    config: RunConfig,
    found: Sequence[Recording],
    attacks: Sequence[TaskAttack],
    seed: int,
) -> Iterator[Score]:
    """Guess the task of each client in each round, among the run's and some others.

    Parameters
    ----------
    config : RunConfig
        The run's.
    found : Sequence[Recording]
        What it recorded, of which only lengths are used.
    attacks : Sequence[TaskAttack]
        What to try.
    seed : int
        Of the texts that the attacker knows.
    """
    from atlas_flwr.privacy.attacks.base import TASK
    from atlas_flwr.privacy.scores import score
    from atlas_flwr.remedies.wire_defence import defence_of

    names = list(dict.fromkeys((*config.task_list, *PUBLIC)))
    lengths = _lengths(config, names, told_of(config, found), seed)
    truths = [[names.index(config.task_of(int(r.client)))] for r in found]
    for attack in attacks:
        guesses = [attack.guess(*_sizes(recording), lengths) for recording in found]
        yield score(
            [[names.index(guess)] for guess in guesses],
            truths,
            baseline=1 / len(names),
            seed=seed,
            attack=attack.name,
            adversary=str(attack.adversary),
            defence=str(defence_of(config)),
            cut=", ".join(sorted({str(recording.plan) for recording in found})),
            target=TASK,
        )


def _sizes(recording: Recording) -> tuple[NDArray[Any], int]:
    """Return the positions that crossed in each step, and a step's rows."""
    positions: Counter[int] = Counter()
    rows: Counter[int] = Counter()
    for seen in recording.observations:
        positions[seen.step] += len(seen.hidden)
        rows[seen.step] += 1
    return np.array(list(positions.values())), max(rows.values())


def _lengths(
    config: RunConfig, names: Sequence[str], told: frozenset[Name], seed: int
) -> Mapping[str, NDArray[Any]]:
    """Return, by task, how many positions texts of it send in training."""
    from atlas_flwr.data import load_task, resolve_model, tokenizer_of
    from atlas_flwr.data.collation import collator_of
    from atlas_flwr.remedies.wire_defence import defence_of

    source, defence = resolve_model(config.model, progress=False), defence_of(config)
    tokenizer: Any = tokenizer_of(source)
    lengths = {}
    for name in names:
        collate = collator_of(source, tokenizer, load_task(name), config.max_length)
        texts = texts_of_others(name, collate, told, defence, seed=seed)
        some = islice(texts, TEXTS)
        rows = [piece.input_ids.shape[1] for text in some for piece in text]
        if config.summary_positions:
            rows = [config.summary_positions + 1] * len(rows)
        lengths[name] = np.array(rows)
    return lengths
