# SPDX-License-Identifier: Apache-2.0
"""FedAvg in each true cluster: what clustering could reach, were it told the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from atlas_flwr._arguments import with_fixed
from atlas_flwr.config import SINGLE_REPLIES
from atlas_flwr.strategies.atlas import Atlas

__all__ = ["OracleFedAvg"]


class OracleFedAvg(Atlas):
    """Average factors among clients that say they have the same task.

    Not a method but a yardstick: a client's profile tells its task only where that is
    known beforehand, in experiments. Takes Atlas's arguments but ``clustering``;
    ``aggregation`` is ``"mean"`` by default, as FedAvg's.
    """

    single_replies = SINGLE_REPLIES["oracle"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        defaults = {"fingerprints": "gradients", "aggregation": "mean"}
        fixed = {"clustering": "none"}
        super().__init__(*args, **with_fixed("OracleFedAvg", kwargs, fixed, defaults))
        self._numbers: dict[str, int] = {}

    @property
    def clusters(self) -> dict[str, int]:
        """The true tasks, numbered in order of the clients that were met."""
        tasks = {client: p.task for client, p in self.roster.fleet.items()}
        for task in tasks.values():
            self._numbers.setdefault(task, len(self._numbers))
        return {client: self._numbers[task] for client, task in tasks.items()}

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, object]]:
        """Return what a resumed run needs: others may answer first in it."""
        arrays, values = super().state()
        return arrays, {**values, "task-numbers": dict(self._numbers)}

    def restore(
        self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        """Take up what :meth:`state` returned."""
        super().restore(arrays, values)
        self._numbers = dict(values.get("task-numbers", {}))  # not in older ones

    @property
    def parts(self) -> bool:
        """Whether clients may get unlike arrays: those of each task."""
        return True

    def _group(self, client: str) -> str | None:
        return str(self.clusters[client]) if client in self.clusters else None
