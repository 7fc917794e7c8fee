# SPDX-License-Identifier: Apache-2.0
"""A round's messages where the server gets a sum for each cluster, and no update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import WARNING

from flwr.app import Message

from atlas_flwr.aggregation import Contribution
from atlas_flwr.cohort.exchange import Exchange
from atlas_flwr.errors import AtlasError, RoundError
from atlas_flwr.log import log
from atlas_flwr.ordering import by_number
from atlas_flwr.protocol.replies import records_of
from atlas_flwr.protocol.sketches import FEWEST_SKETCHED, SketchPlan
from atlas_flwr.protocol.sums import SECURE
from atlas_flwr.seeds import derive_seed

__all__ = ["SecureExchange"]

_WAY_OUT = (
    f"set min-cluster-size={FEWEST_SKETCHED}, which joins small clusters to others, or "
    "fewer clusters (num-clusters, clustering='none'), or have more clients take part "
    "in a round (fraction-train)"
)


@dataclass
class SecureExchange(Exchange):
    """Messages that ask clusters for sums, and what the sums bring.

    Parameters
    ----------
    seed : int
        Of the run.
    """

    seed: int = 0
    _plans: dict[str, SketchPlan] = field(default_factory=dict)
    _groups: dict[int, str] = field(default_factory=dict)  # by node
    _sitting_out: frozenset[str] = frozenset()

    def planned(
        self, server_round: int, messages: Sequence[Message], groups: Sequence[str]
    ) -> list[Message]:
        """Ask clusters for sums; leave out clients of those that are too small.

        Parameters
        ----------
        server_round : int
            The probes are drawn anew in each.
        messages : Sequence[Message]
            To train.
        groups : Sequence[str]
            The cluster of each message's client.

        Raises
        ------
        RoundError
            If all clusters are too small.
        """
        clusters: dict[str, list[Message]] = {}
        for message, group in zip(messages, groups, strict=True):
            clusters.setdefault(group, []).append(message)
        small = {g for g, found in clusters.items() if len(found) < FEWEST_SKETCHED}
        self._tell(server_round, small, {g: len(m) for g, m in clusters.items()})
        self._plans, self._groups = {}, {}
        for group in sorted(set(clusters) - small, key=by_number):
            members = clusters[group]
            seed = derive_seed(self.seed, "secure sum", server_round, group)
            scaling = self.adapters.scaling
            plan = SketchPlan(group, seed, len(members), scaling)
            self._plans[group] = plan
            for message in members:
                self._groups[message.metadata.dst_node_id] = group
                message.content[SECURE] = plan.to_record()
        return [m for m in messages if m.metadata.dst_node_id in self._groups]

    def _tell(self, server_round: int, small: set[str], sizes: dict[str, int]) -> None:
        told = ", ".join(
            f"{group} (of {sizes[group]})" for group in sorted(small, key=by_number)
        )
        if small and len(small) == len(sizes):
            raise RoundError(
                f"round {server_round}: a secure sum is of {FEWEST_SKETCHED} clients "
                f"at least, and every cluster has fewer: {told}; {_WAY_OUT}"
            )
        if small - self._sitting_out:
            log(
                WARNING,
                "round %d: too small for a secure sum of %d clients or more, and so "
                "without training: clusters %s; %s",
                server_round,
                FEWEST_SKETCHED,
                told,
                _WAY_OUT,
            )
        self._sitting_out = frozenset(small)

    def _contribution(self, message: Message) -> Contribution:
        """Read what came for a cluster: its sum."""
        node = message.metadata.src_node_id
        record = message.content.config_records.get(SECURE)
        if record is None:
            raise AtlasError(
                f"{self._sender(node)} answered with its update in plain: start the "
                "strategy with SecureGrid(grid, strategy)"
            )
        group = self._groups[node]
        sender = f"the secure sum of cluster {group}"
        weighted_by = self.record_keys.weighted_by_key
        arrays, _, weight = records_of(message, sender, weighted_by)
        sent = self.sent(node)
        rounding = float(str(record["rounding"]))
        state = self._plans[group].rebuilt(arrays, sent, rounding)
        nodes = record["nodes"]
        assert isinstance(nodes, list)
        members = [self.roster.client(int(n)) for n in nodes]
        return Contribution(members[0], weight, state, sent, members=members)
