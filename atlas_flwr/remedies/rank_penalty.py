# SPDX-License-Identifier: Apache-2.0
"""Ranks that shrink while they are trained: HetLoRA's self-pruning (arXiv 2401.06432).

See :mod:`atlas_flwr.lora.pruning` for the term and the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from atlas_flwr.options import Problem, option
from atlas_flwr.remedies.base import ClientHooks, Remedy, RoundContext

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.data import Batch
    from atlas_flwr.lora import AdapterState
    from atlas_flwr.train.model import ClientModel
    from atlas_flwr.train.step import Step, StepLoss

__all__ = ["RankPenalty", "RankPenaltyKeys"]


@dataclass(frozen=True)
class RankPenaltyKeys:
    """Keys of the run config."""

    rank_decay: float = option(
        1.0,
        "HetLoRA's gamma: a client's layer whose directions beyond this share of its "
        "rank have shrunk in a round loses them for good; 1 prunes nothing. Try 0.5 to "
        "0.99, with a rank-penalty.",
        above=0,
        maximum=1,
        only=("hetlora",),
    )
    rank_penalty: float = option(
        0.0,
        "HetLoRA's lambda: weight, in a client's loss, of the size of the directions "
        "that rank-decay would drop. Try 0.001 to 0.1; large values empty them at the "
        "loss's cost.",
        minimum=0,
        only=("hetlora",),
    )


class RankPenalty(Remedy):
    """Shrinks the last directions of each layer, and drops those that have shrunk."""

    name = "rank-decay"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want directions to drop where there is a penalty on them."""
        if config.rank_penalty > 0 and config.rank_decay == 1:
            yield Problem(
                ("rank-penalty", "rank-decay"),
                f"rank-penalty={config.rank_penalty}: with rank-decay=1.0 there is "
                "nothing to prune or to penalise; set rank-decay below 1, or "
                "rank-penalty=0.0",
            )

    def client(self, now: RoundContext) -> ClientHooks:
        """Penalise and prune, if ranks may shrink."""
        config = now.config
        if config.rank_decay == 1:
            return ClientHooks()
        return _Shrinking(config.rank_decay, config.rank_penalty)


class _Shrinking(ClientHooks):
    def __init__(self, decay: float, penalty: float) -> None:
        self.decay = decay
        self.penalty = penalty

    def begin(self, adapted: ClientModel, batches: Sequence[Batch]) -> None:
        self.adapted = adapted
        self.start = adapted.state()

    def step(self, step: Step, proceed: Callable[[Step], StepLoss]) -> StepLoss:
        found = proceed(step)
        if not self.penalty:
            return found
        from atlas_flwr.lora import excess

        return found.plus(self.penalty * excess(self.adapted.attached(), self.decay))

    def trained(self, state: AdapterState) -> AdapterState:
        from atlas_flwr.lora import pruned

        left = pruned(self.start.factors, state.factors, self.decay)
        return replace(state, factors=left)
