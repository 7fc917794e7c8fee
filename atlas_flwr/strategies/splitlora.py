# SPDX-License-Identifier: Apache-2.0
"""SplitLoRA: split clients, the mean of A and of B every I rounds (arXiv 2407.00952).

Eq. 7-9: after I rounds the server averages the clients' factors A and B apart, which is
not the average of their products; until then everybody goes on from its own. On the
server's side there is either an adapter for each client, averaged with the others
(SFL-V1), or one that all clients' steps train in turn and nobody averages (SFL-V2:
``TrunkSessions(shared=True)``). The paper's third way, one pass over the stacked data
of all clients, is ``TrunkSessions(shared=True, merge=K)``: the one adapter steps on the
mean of K batches' gradients, all taken at the same adapters, which is the gradient of
the stacked batch (as in MergeSFL, arXiv 2311.13348, for equal sizes). In the paper each
client gives one batch; here they are the next K, whoever's, since clients of a
simulation do not all run at once and nobody waits for anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from atlas_flwr._arguments import with_fixed
from atlas_flwr.aggregation import Contribution
from atlas_flwr.cohort.grouping import grouped
from atlas_flwr.cohort.trunk_sessions import ALL
from atlas_flwr.config import SINGLE_REPLIES
from atlas_flwr.lora import AdapterState
from atlas_flwr.strategies.atlas import Atlas

__all__ = ["SplitLora"]


class SplitLora(Atlas):
    """Mean of factors, every ``interval`` rounds.

    Takes Atlas's arguments but ``clustering`` and ``aggregation``, and

    Parameters
    ----------
    interval : int
        I: rounds between aggregations.
    """

    single_replies = SINGLE_REPLIES["splitlora"]

    def __init__(self, *args: Any, interval: int = 1, **kwargs: Any) -> None:
        if interval < 1:
            raise ValueError(f"interval={interval}; it must be at least 1 round")
        fixed = {"clustering": "none", "aggregation": "mean"}
        preset = {"fingerprints": "gradients"}
        super().__init__(*args, **with_fixed("SplitLora", kwargs, fixed, preset))
        self.interval = interval
        if self.sessions is None and interval == 1:
            self.single_replies = ""  # whole clients, averaged in each round

    @property
    def parts(self) -> bool:
        """Whether clients may get unlike arrays: each its own between aggregations."""
        return self.interval > 1

    def _group(self, client: str) -> str | None:
        return client if client in self.adapters.groups else ALL

    def _combine(self, server_round: int, parts: Sequence[Contribution]) -> None:
        groups = self.adapters.groups
        if server_round % self.interval:
            if ALL in groups:  # whoever goes on alone begins with it
                for part in parts:
                    groups.setdefault(part.client, groups[ALL])
            self.adapters.aggregate({part.client: [part] for part in parts})
            if (common := self._common(parts)).factors:
                self.adapters.give(common, ALL)  # it goes on, whoever opens it next
            return
        # One alone is behind nobody, however late: its group is what it was sent.
        parts = [replace(p, late=p.late and p.client not in groups) for p in parts]
        parts += self._alone(parts)
        together = grouped(parts, lambda client: ALL, self.discovery.least)
        if together:
            # What all held stays: layers of whoever is not here, and what is late
            # is added to it.
            self.adapters.groups = {g: s for g, s in groups.items() if g == ALL}
            self.adapters.aggregate(together)

    def _common(self, parts: Sequence[Contribution]) -> AdapterState:
        """Return the adapter that all train in turn, as the last of them left it."""
        last = parts[-1].state
        return self.sessions.common(last) if self.sessions else AdapterState()

    def _alone(self, parts: Sequence[Contribution]) -> list[Contribution]:
        """Return what others learned since the last aggregation, and are not here."""
        came, common = {ALL, *(part.client for part in parts)}, self._common(parts)
        found = (self.adapters.of(g) for g in self.adapters.groups if g not in came)
        return [replace(part, state=part.state.merged(common)) for part in found]
