# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: how answers are scored, and which are shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_flwr.options import Problem, option

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig

__all__ = ["ScoringConfig", "shown_are_written"]


@dataclass(frozen=True)
class ScoringConfig:
    """How answers of text are scored, and which are shown."""

    score_examples: int = option(
        8,
        "Test prompts that each client answers before the first round and after the "
        "last, where its task names `scores`; 0 for none. Each token is a round trip "
        "over the cut, so this costs more than it looks; 8 tell a large change alone.",
        minimum=0,
    )
    score_tokens: int = option(
        48,
        "Longest answer that is scored, in tokens. Where references are longer, scores "
        "that count what is missing stay low.",
        minimum=1,
    )
    share_samples: int = option(
        0,
        "Of these, so many prompts, references and answers of each client are SENT TO "
        "THE SERVER and shown in its report. They are the client's own test texts: "
        "leave it at 0 unless they may leave it.",
        minimum=0,
    )


def shown_are_written(config: RunConfig) -> Iterator[Problem]:
    """Want samples to be among the answers that are written."""
    if config.share_samples > config.score_examples:
        yield Problem(
            ("share-samples", "score-examples"),
            f"share-samples={config.share_samples}: only {config.score_examples} "
            "answers are written by each client; raise score-examples to as many",
        )
