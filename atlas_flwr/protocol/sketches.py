# SPDX-License-Identifier: Apache-2.0
"""What members of a cluster send into its secure sum: sketches of their products.

All were sent the same adapters, so that each direction that is summed is of all of
them. A seed comes with them, which makes everybody's sketches those of one sum
(:mod:`atlas_flwr.lora.sketched`). Arrays that are trained in full go in as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord

from atlas_flwr.lora import AdapterState, LoraFactors, Scaling
from atlas_flwr.lora.sketched import Probes, sketch_shapes
from atlas_flwr.protocol.layout import Layout
from atlas_flwr.protocol.replies import check_trained

__all__ = ["FEWEST_SKETCHED", "SketchPlan"]

# Of a sum of two, each of both knows the other's product.
FEWEST_SKETCHED = 3

_DENSE = "dense/"
_Arrays = dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]


@dataclass(frozen=True)
class SketchPlan:
    """How the members of one cluster sketch what they trained in one round.

    Attributes
    ----------
    group : str
        The cluster.
    seed : int
        Of the probes.
    members : int
        How many there are at most: the sum's rank is so many times a member's.
    scaling : Scaling
        LoRA's, on the members.
    """

    group: str
    seed: int
    members: int
    scaling: Scaling

    def to_record(self) -> ConfigRecord:
        """Write it, to go into a message."""
        return ConfigRecord(
            {
                "group": self.group,
                "seed": self.seed,
                "members": self.members,
                "alpha": self.scaling.alpha or 0.0,
                "use-rslora": self.scaling.use_rslora,
            }
        )

    @classmethod
    def from_record(cls, record: ConfigRecord) -> SketchPlan | None:
        """Read what :meth:`to_record` wrote; ``None`` where updates are summed."""
        if "seed" not in record:
            return None
        seed, members = int(str(record["seed"])), int(str(record["members"]))
        alpha = float(str(record["alpha"])) or None
        scaling = Scaling(alpha, bool(record["use-rslora"]))
        return cls(str(record["group"]), seed, members, scaling)

    def arrays(self, sent: ArrayRecord) -> _Arrays:
        """Return shape and dtype of each array that a member sends.

        Parameters
        ----------
        sent : ArrayRecord
            What all members are sent to train from.
        """
        state = Layout.of(sent, self.scaling).read(sent, "server")
        found: _Arrays = {
            f"{kind}/{name}": (size, np.dtype(np.float64))
            for name, factors in state.factors.items()
            for kind, size in self._shapes(factors).items()
        }
        dense = {f"{_DENSE}{k}": (v.shape, v.dtype) for k, v in state.dense.items()}
        return found | dense

    def sketched(self, sent: ArrayRecord, trained: ArrayRecord) -> ArrayRecord:
        """Sketch what a member trained.

        Raises
        ------
        AdapterError
            If it is not what was sent, trained: missing, of another shape or rank, or
            not finite.
        """
        layout = Layout.of(sent, self.scaling)
        state = layout.read(trained, "this client")
        check_trained("this client", state, layout.read(sent, "server"))
        found = {
            f"{kind}/{name}": Array(value.numpy())
            for name, factors in state.factors.items()
            for kind, value in self._probes(name, factors).sketched(factors).items()
        }
        dense = {f"{_DENSE}{key}": Array(value) for key, value in state.dense.items()}
        return ArrayRecord(found | dense)

    def rebuilt(
        self, means: ArrayRecord, sent: AdapterState, rounding: float
    ) -> AdapterState:
        """Return the weighted mean of the members' products, from that of sketches.

        Parameters
        ----------
        means : ArrayRecord
            Means of what :meth:`sketched` returned.
        sent : AdapterState
            What all members were sent.
        rounding : float
            How far each number of the means may be off.

        Raises
        ------
        AdapterError
            If members have not sketched alike.
        """
        factors = {}
        for name, start in sent.factors.items():
            sums = {
                kind: torch.from_numpy(means[f"{kind}/{name}"].numpy())
                for kind in self._shapes(start)
            }
            factors[name] = self._probes(name, start).rebuilt(sums, rounding)
        dense = {key: means[f"{_DENSE}{key}"].numpy() for key in sent.dense}
        return AdapterState(factors, dense)

    def _shapes(self, factors: LoraFactors) -> dict[str, tuple[int, int]]:
        return sketch_shapes(factors.shape, self.members * factors.rank)

    def _probes(self, name: str, factors: LoraFactors) -> Probes:
        rank = self.members * factors.rank
        return Probes.drawn(name, factors.shape, rank, self.seed)
