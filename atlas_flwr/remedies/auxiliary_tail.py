# SPDX-License-Identifier: Apache-2.0
"""Steps that do not wait for the trunk: an auxiliary tail estimates its gradient.

After FSL-SAGE (arXiv 2505.23182); see :mod:`atlas_flwr.train.auxiliary`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_flwr.options import ADAPTER_STRATEGIES, Problem, option
from atlas_flwr.remedies.base import ClientHooks, Remedy, RoundContext
from atlas_flwr.seeds import derive_seed

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.data import Batch
    from atlas_flwr.train.model import ClientModel
    from atlas_flwr.train.step import Step, StepLoss

__all__ = ["AuxiliaryKeys", "AuxiliarySteps"]


@dataclass(frozen=True)
class AuxiliaryKeys:
    """Keys of the run config."""

    auxiliary_steps: int = option(
        0,
        "Steps estimated locally between two that cross the cut: the head follows an "
        "auxiliary tail's estimate of the trunk's gradient. Saves bytes and waiting.",
        minimum=0,
        only=ADAPTER_STRATEGIES,
    )


class AuxiliarySteps(Remedy):
    """Trains the head by an estimate in k steps of k + 1."""

    name = "auxiliary-steps"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want a head whose tail is beside it, and nothing that changes its rows."""
        count = config.auxiliary_steps
        if not count:
            return
        split = config.split if config.strategy in ADAPTER_STRATEGIES else "none"
        if split != "u-shaped":
            yield Problem(
                ("auxiliary-steps", "split"),
                f"auxiliary-steps={count} with split={split!r}: the "
                "estimate is for a head whose tail is on the client; set "
                "split='u-shaped', or auxiliary-steps=0",
            )
        if config.devices:
            yield Problem(
                ("auxiliary-steps", "devices"),
                f"auxiliary-steps={count} with devices={config.devices!r}: the memory "
                "model does not count what it takes; set auxiliary-steps=0, or "
                "devices=''",
            )
        if config.adapter != "lora":
            yield Problem(
                ("auxiliary-steps", "adapter"),
                f"auxiliary-steps={count}: works with LoRA only; set "
                "auxiliary-steps=0, or adapter='lora'",
            )
        if config.summary_positions:
            yield Problem(
                ("summary-positions", "auxiliary-steps"),
                f"summary-positions={config.summary_positions}: "
                f"auxiliary-steps={count} runs the tail on the text's own positions; "
                "set one of them to 0",
            )

    def every_step_crosses(self, config: RunConfig) -> bool:
        """Tell whether none is estimated."""
        return not config.auxiliary_steps

    def client(self, now: RoundContext) -> ClientHooks:
        """Estimate, if some steps are to be."""
        count = now.config.auxiliary_steps
        if not count:
            return ClientHooks()
        return _Estimating(
            count, derive_seed(now.config.seed, "bridge", now.round, now.client)
        )


class _Estimating(ClientHooks):
    def __init__(self, local_steps: int, seed: int) -> None:
        self.local_steps = local_steps
        self.seed = seed

    def begin(self, adapted: ClientModel, batches: Sequence[Batch]) -> None:
        from atlas_flwr.split import SplitModel
        from atlas_flwr.train.auxiliary import AuxiliaryTail

        assert isinstance(adapted.model, SplitModel)
        self.tail = AuxiliaryTail(adapted.model, self.local_steps, self.seed)

    def step(self, step: Step, proceed: Callable[[Step], StepLoss]) -> StepLoss:
        if self.tail.crosses(step.index):
            self.tail.heard(step.batch)
            return proceed(step)
        from atlas_flwr.train.step import StepLoss

        return StepLoss(self.tail.estimated_loss(step.batch), counted=False)
