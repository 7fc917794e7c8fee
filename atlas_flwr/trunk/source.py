# SPDX-License-Identifier: Apache-2.0
"""What a trunk is loaded from, wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from atlas_flwr.split import SplitPlan
from atlas_flwr.split.cut import hollow_parts
from atlas_flwr.split.weight_loading import Filling
from atlas_flwr.trunk.engine.engine import TrunkEngine
from atlas_flwr.trunk.engine.table import Limits
from atlas_flwr.types import Side

__all__ = ["TrunkSource"]


@dataclass(frozen=True)
class TrunkSource:
    """A trunk that is still on disk; can be sent to where it is to run.

    Attributes
    ----------
    path : str
        A local folder or hub name.
    plan : SplitPlan
        Covers the trunks of all clients: the shortest head and tail.
    classes : int
        Outputs of a classifier; 0 for a causal language model.
    dtype : str
        E.g. ``"float32"``.
    device : str
        E.g. ``"cpu"``.
    seed : int
        Initialises what the checkpoint lacks.
    recompute : bool
        See :class:`~atlas_flwr.trunk.TrunkEngine`.
    limits : Limits
        See there.
    """

    path: str
    plan: SplitPlan
    classes: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    recompute: bool = False
    limits: Limits = field(default_factory=Limits)

    def engine(self, *, own_threads: bool = False) -> TrunkEngine:
        """Load the trunk, and nothing else of the model.

        Parameters
        ----------
        own_threads : bool
            See :class:`~atlas_flwr.trunk.TrunkEngine`.
        """
        filling = self.hollow()
        filling.fill()
        return TrunkEngine(
            filling.part,
            limits=self.limits,
            recompute=self.recompute,
            own_threads=own_threads,
        )

    def hollow(self) -> Filling:
        """Make the trunk without memory for its parameters, to be filled."""
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForSequenceClassification,
        )

        overrides = {"num_labels": self.classes} if self.classes else {}
        made = hollow_parts(
            self.path,
            self.plan,
            sides=(Side.TRUNK,),
            auto_class=(
                AutoModelForSequenceClassification
                if self.classes
                else AutoModelForCausalLM
            ),
            dtype=getattr(torch, self.dtype),
            device=self.device,
            config_overrides=overrides,
            seed=self.seed,
        )
        return made[Side.TRUNK]
