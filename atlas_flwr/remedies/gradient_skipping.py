# SPDX-License-Identifier: Apache-2.0
"""Small gradients that do not cross the cut, after LAG (arXiv 1805.09965).

See :mod:`atlas_flwr.trunk.skipping`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_flwr.options import ADAPTER_STRATEGIES, Problem, option
from atlas_flwr.remedies.base import ClientHooks, Remedy, RoundContext

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.types import TrunkClient

__all__ = ["GradientSkipping", "SkippingKeys"]


@dataclass(frozen=True)
class SkippingKeys:
    """Keys of the run config."""

    skip_gradients: float = option(
        0.0,
        "Do not send a gradient over the cut whose size is below this share of the "
        "running mean of those before it; 0 sends all. Saves both ways of a backward "
        "pass, and a step of head and trunk. Try 0.5 to 0.9, and watch the loss.",
        minimum=0,
        maximum=1,
        only=ADAPTER_STRATEGIES,
    )


class GradientSkipping(Remedy):
    """Keeps small gradients on the client."""

    name = "skip-gradients"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want a message with a gradient where some are not to be sent."""
        if not config.skip_gradients > 0:
            return
        if config.split != "u-shaped":
            yield Problem(
                ("skip-gradients", "split"),
                f"skip-gradients={config.skip_gradients}: with split={config.split!r} "
                "no client sends a gradient; set split='u-shaped', or "
                "skip-gradients=0.0",
            )
        if config.auxiliary_steps:
            yield Problem(
                ("skip-gradients", "auxiliary-steps"),
                f"skip-gradients={config.skip_gradients} with auxiliary-steps="
                f"{config.auxiliary_steps}: the estimate is made from every gradient "
                "that crosses; set one of the two to 0",
            )

    def every_step_crosses(self, config: RunConfig) -> bool:
        """Tell whether no gradient may stay."""
        return not config.skip_gradients

    def client(self, now: RoundContext) -> ClientHooks:
        """Stand before the trunk, if there is a threshold."""
        config = now.config
        if not config.skip_gradients:
            return ClientHooks()
        return _Skipping(config.skip_gradients, config.local_steps)


class _Skipping(ClientHooks):
    def __init__(self, threshold: float, steps: int) -> None:
        self.threshold = threshold
        self.steps = steps

    def trunk(self, trunk: TrunkClient) -> TrunkClient:
        from atlas_flwr.trunk import SkippingTrunk

        self.skipping = SkippingTrunk(trunk, self.threshold, self.steps)
        return self.skipping

    def metrics(self) -> Mapping[str, int | float]:
        return {"skipped": self.skipping.skipped}
