# SPDX-License-Identifier: Apache-2.0
r"""FedProx's pull towards the round's starting point (arXiv 1812.06127, eq. 2).

To a step's loss it adds :math:`\mu / 2 \, \|w - w^t\|^2` over the trained parameters,
:math:`w^t` being their values at the start of the round. Flower's ``FedProx`` sends mu.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_flwr.options import Problem, option
from atlas_flwr.remedies.base import ClientHooks, Remedy, RoundContext

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.data import Batch
    from atlas_flwr.train.model import ClientModel
    from atlas_flwr.train.step import Step, StepLoss

__all__ = ["Proximal", "ProximalKeys", "ProximalTerm"]

PROXIMAL_MU = "proximal-mu"  # entry of the messages of Flower's FedProx


@dataclass(frozen=True)
class ProximalKeys:
    """Keys of the run config."""

    proximal_mu: float = option(
        0.1,
        "FedProx's pull towards the round's starting point. Try 0.001 to 1; large "
        "values stop learning.",
        minimum=0,
        only=("fedprox",),
    )


class Proximal(Remedy):
    """Adds FedProx's term where the server sends its weight."""

    name = "proximal-mu"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want a pull in FedProx: without, it is FedAvg."""
        if config.strategy == "fedprox" and config.proximal_mu == 0:
            yield Problem(
                ("strategy", "proximal-mu"),
                "proximal-mu=0.0: fedprox without its pull is fedavg; set it above 0, "
                "or strategy='fedavg'",
            )

    def client(self, now: RoundContext) -> ClientHooks:
        """Add the term, if the message gives it a weight."""
        mu = float(str(now.entries.get(PROXIMAL_MU, 0.0)))
        return ProximalTerm(mu) if mu else ClientHooks()


class ProximalTerm(ClientHooks):
    """Adds mu / 2 ||w - w_t||^2.

    Parameters
    ----------
    mu : float
        Its weight.
    """

    def __init__(self, mu: float) -> None:
        self.mu = mu

    def begin(self, adapted: ClientModel, batches: Sequence[Batch]) -> None:
        """Remember the trained parameters."""
        self.now = [p for p in adapted.model.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.now]

    def step(self, step: Step, proceed: Callable[[Step], StepLoss]) -> StepLoss:
        """Add the term."""
        import torch

        pairs = zip(self.now, self.start, strict=True)
        squares = [((p - p0) ** 2).sum() for p, p0 in pairs]
        return proceed(step).plus(self.mu / 2 * torch.stack(squares).sum())
