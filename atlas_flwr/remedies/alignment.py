# SPDX-License-Identifier: Apache-2.0
"""Alignment of what a client learns with the model that its round began with.

After FlexP-SFL (arXiv 2508.10349); see :mod:`atlas_flwr.train.alignment`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_flwr.options import ADAPTER_STRATEGIES, Problem, option
from atlas_flwr.remedies.base import ClientHooks, Remedy, RoundContext

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.data import Batch
    from atlas_flwr.train.model import ClientModel
    from atlas_flwr.train.step import Step, StepLoss

__all__ = ["Alignment", "AlignmentKeys"]


@dataclass(frozen=True)
class AlignmentKeys:
    """Keys of the run config."""

    align: float = option(
        0.0,
        "Weight of the KL divergence that holds a client's answers near those of the "
        "model that its round began with. Costs one more forward pass a step.",
        minimum=0,
    )


class Alignment(Remedy):
    """Adds the divergence from the round's start to each step's loss."""

    name = "align"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want the answers' probabilities on the client."""
        splits = config.strategy in ADAPTER_STRATEGIES
        if config.align and splits and config.split == "vanilla":
            yield Problem(
                ("align", "split"),
                f"align={config.align}: with split='vanilla' the loss is the trunk's; "
                "set split='u-shaped', or align=0.0",
            )

    def remembered_steps(self, config: RunConfig) -> int:
        """Return the batches of a round: the probabilities of each are kept."""
        return config.local_steps * config.accumulate if config.align else 0

    def client(self, now: RoundContext) -> ClientHooks:
        """Add the term, if it has a weight."""
        strength = now.config.align
        return _Aligned(strength) if strength else ClientHooks()


class _Aligned(ClientHooks):
    def __init__(self, strength: float) -> None:
        self.strength = strength

    def begin(self, adapted: ClientModel, batches: Sequence[Batch]) -> None:
        from atlas_flwr.train.alignment import StartingPoint

        self.start = StartingPoint.of(adapted.model, batches)

    def step(self, step: Step, proceed: Callable[[Step], StepLoss]) -> StepLoss:
        return proceed(step).plus(self.strength * self.start.divergence(step))
