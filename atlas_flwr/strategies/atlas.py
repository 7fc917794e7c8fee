# SPDX-License-Identifier: Apache-2.0
"""ATLAS: clients are clustered by task, given ranks and cuts, and aggregated exactly.

A round has four phases. *Discover*: one 64-number sketch a client, clustered with
k-means. *Configure*: each client gets a cut and a rank that its memory affords.
*Train*: it trains head and tail, the trunk runs in the server (split clients), or it
trains the whole model (unsplit clients). *Aggregate*: inside each cluster, adapters are
concatenated, never averaged factor by factor (see
:mod:`atlas_flwr.strategies.aggregation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import sample_nodes
from numpy.typing import NDArray

from atlas_flwr.errors import AdapterError, SessionError
from atlas_flwr.log import log
from atlas_flwr.lora import AdapterState
from atlas_flwr.report.events import Clustered, Event
from atlas_flwr.strategies.adapters import ClusterAdapters
from atlas_flwr.strategies.aggregation import AGGREGATIONS, Contribution
from atlas_flwr.strategies.discovery import CLUSTERINGS, Discovery
from atlas_flwr.strategies.fingerprints import ask_fingerprints
from atlas_flwr.strategies.replies import check_trained, records_of, update_sketch
from atlas_flwr.strategies.roster import Assigned, Profile, Roster
from atlas_flwr.strategies.sampling import draw, sample_size
from atlas_flwr.strategies.sessions import TrunkSessions

__all__ = ["Atlas"]

FINGERPRINTS = ("updates", "gradients")
MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]


class Atlas(FedAvg):
    """Clustered, rank-adaptive, concatenating aggregation of LoRA adapters.

    With FedAvg's arguments alone it takes FedAvg's place in an app whose clients
    exchange LoRA arrays (``<layer>.lora_A.weight`` and ``...lora_B.weight``) and train
    the whole model: it sketches their first updates, clusters them, and from then on
    sends each cluster its own adapters. :attr:`clusters` and :meth:`cluster_arrays`
    tell what was found; the arrays of the ``Result`` are those of all clients together.

    Parameters
    ----------
    fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, \
    min_available_nodes, weighted_by_key, arrayrecord_key, configrecord_key, \
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        As in :class:`flwr.serverapp.strategy.FedAvg`.
    lora_alpha : float, optional
        The clients' LoRA alpha (scale alpha / r); needed only where ranks differ.
    fingerprints : str
        ``"updates"``: sketch each client's first update, which asks nothing of it.
        ``"gradients"``: ask with ``query.fingerprint``, which ATLAS's clients know.
    clustering : str
        ``"kmeans"`` or ``"none"``.
    num_clusters : int, optional
        Give it where it is known; ``None`` chooses.
    max_clusters : int
        Most to choose.
    recluster_every : int
        Rounds between clusterings; 0 for never. Adapters follow their members.
    aggregation : str
        ``"concat"`` is exact. To compare: ``"mean"`` of factors; ``"none"`` at all.
    max_rank : int
        A cluster's adapters are kept exactly up to this rank.
    assign : Callable[[Profile], Assigned], optional
        Phase 2. ``None``: everyone unsplit, at the initial arrays' rank.
    sessions : TrunkSessions, optional
        The trunk, for split clients.
    roster : Roster, optional
        Who the clients are; by default, node ids are their names.
    seed : int
        Draws the sampled nodes and seeds k-means.
    on_event : Callable[[Event], None], optional
        Told of new clusters.
    """

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        *,
        lora_alpha: float | None = None,
        fingerprints: str = "updates",
        clustering: str = "kmeans",
        num_clusters: int | None = None,
        max_clusters: int = 8,
        recluster_every: int = 0,
        aggregation: str = "concat",
        max_rank: int = 64,
        assign: Callable[[Profile], Assigned] | None = None,
        sessions: TrunkSessions | None = None,
        roster: Roster | None = None,
        seed: int = 0,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
        )
        _check_choice("fingerprints", fingerprints, FINGERPRINTS)
        _check_choice("clustering", clustering, CLUSTERINGS)
        _check_choice("aggregation", aggregation, (*AGGREGATIONS, "none"))
        if fingerprints == "updates" and assign is not None:
            raise ValueError(
                "fingerprints='updates' compares the clients' factors, which `assign` "
                "gives different ranks: use fingerprints='gradients'"
            )
        self.fingerprints = fingerprints
        self.recluster_every = recluster_every
        self.aggregation = aggregation
        self.assign = assign
        self.sessions = sessions
        self.roster = roster or Roster(ask=False)
        self.seed = seed
        self.on_event = on_event or (lambda event: None)
        self.discovery = Discovery(clustering, num_clusters, max_clusters, seed)
        self.assigned: dict[str, Assigned] = {}
        mode = "concat" if aggregation == "none" else aggregation
        self.adapters = ClusterAdapters(mode, max_rank, lora_alpha)
        self._sent: dict[int, AdapterState] = {}

    @property
    def clusters(self) -> dict[str, int]:
        """Cluster of every client that has one, by client id."""
        return self.discovery.labels()

    def cluster_states(self) -> dict[str, AdapterState]:
        """Adapters of every cluster that has trained, as factors."""
        return dict(self.adapters.groups)

    def cluster_arrays(self) -> dict[str, ArrayRecord]:
        """Adapters of every cluster that has trained, under the clients' own keys."""
        write = self.adapters.layout.write
        return {group: write(state) for group, state in self.adapters.groups.items()}

    def summary(self) -> None:
        """Log summary configuration of the strategy."""
        found = self.discovery
        log(INFO, "\t├──> ATLAS settings:")
        log(INFO, "\t│\t├── Fingerprints from: %s", self.fingerprints)
        clusters = found.num_clusters or "as many as are seen"
        log(INFO, "\t│\t├── Clustering: %s, %s", found.method, clusters)
        log(INFO, "\t│\t├── Split: %s", "yes" if self.sessions else "no")
        log(INFO, "\t│\t└── Aggregation: %s", self.aggregation)
        super().summary()

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, object]]:
        """Return what a resumed run needs besides the global arrays."""
        arrays, values = self.adapters.state()
        for client, sketch in self.discovery.sketches.items():
            arrays[f"sketch/{client}"] = sketch
        values["sketched"] = list(self.discovery.sketches)
        values["fitted-on"] = list(self.discovery.fitted_on)
        return arrays, values

    def restore(
        self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        """Take up what :meth:`state` returned."""
        self.adapters.restore(arrays, values)
        sketches = {c: arrays[f"sketch/{c}"] for c in values["sketched"]}
        self.discovery.restore(sketches, values["fitted-on"])

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes, discover and configure them, and send each its adapters."""
        self.adapters.begin(arrays)
        if self.fraction_train == 0.0:
            return []
        size = (self.fraction_train, self.min_train_nodes)
        nodes = self._sample(grid, server_round, "train", *size)
        nodes = self._discover(server_round, nodes, config, grid)
        self._sent = {}
        return [self._train_message(server_round, node, config) for node in nodes]

    def _sample(
        self, grid: Grid, server_round: int, what: str, fraction: float, minimum: int
    ) -> list[int]:
        total = len(list(grid.get_node_ids()))
        size = sample_size(total, fraction, minimum)
        _, connected = sample_nodes(grid, self.min_available_nodes, size)
        self.roster.learn(grid, connected)
        nodes = draw(self.roster.order(connected), size, self.seed, what, server_round)
        message = "configure_%s: Sampled %s nodes (out of %s)"
        log(INFO, message, what, len(nodes), len(connected))
        return nodes

    def _train_message(
        self, server_round: int, node: int, config: ConfigRecord
    ) -> Message:
        given = self._assignment(node)
        group = self._group(self.roster.client(node))
        start = self.adapters.to_train(group, given.rank if given else None)
        self._sent[node] = start
        return self._message(MessageType.TRAIN, server_round, node, start, config)

    def _message(
        self,
        message_type: str,
        server_round: int,
        node: int,
        state: AdapterState,
        config: ConfigRecord,
    ) -> Message:
        client = self.roster.client(node)
        entries = ConfigRecord(dict(config))
        entries["server-round"] = server_round
        given = self._assignment(node)
        if self.sessions is not None and given is not None and given.plan is not None:
            entries["plan"] = str(given.plan)
            entries["trunk-address"] = self.sessions.address
            entries["trunk-token"] = self.sessions.open(client, given.plan, state)
            state = self.sessions.on_client(given.plan, state)
        record = RecordDict(
            {
                self.arrayrecord_key: self.adapters.layout.write(state),
                self.configrecord_key: entries,
            }
        )
        return Message(record, node, message_type)

    def _assignment(self, node: int) -> Assigned | None:
        if self.assign is None:
            return None
        client = self.roster.client(node)
        if client not in self.assigned:
            profile = self.roster.profiles.get(node, Profile(client))
            self.assigned[client] = self.assign(profile)
        return self.assigned[client]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Concatenate the adapters of each cluster's clients."""
        ordered = self.roster.sorted_replies(replies)
        valid, _ = self._check_and_log_replies(ordered, is_train=True, validate=False)
        accepted = self._accept(valid)
        self._end_sessions()
        if not accepted:
            return None, None
        if self.fingerprints == "updates":
            self._sketch_updates(server_round, accepted)
        members: dict[str, list[Contribution]] = {}
        for _, part in accepted:
            members.setdefault(str(self._group(part.client)), []).append(part)
        self.adapters.aggregate(members)
        contents = [message.content for message, _ in accepted]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        return self.adapters.layout.write(self.adapters.overall), metrics

    def _accept(self, valid: Sequence[Message]) -> list[tuple[Message, Contribution]]:
        accepted = []
        for message in valid:
            try:
                accepted.append((message, self._contribution(message)))
            except (AdapterError, SessionError) as error:
                log(WARNING, "aggregate_train: refused: %s", error)
        return accepted

    def _contribution(self, message: Message) -> Contribution:
        node = message.metadata.src_node_id
        client = self.roster.client(node)
        sender = f"client {client} (node {node})"
        arrays, _, weight = records_of(message, sender, self.weighted_by_key)
        state = self.adapters.layout.read(arrays, sender)
        if self.sessions is not None and self._has_session(node):
            state = state.merged(self.sessions.collect(client))
        check_trained(sender, state, self._sent.get(node))
        return Contribution(client, weight, state)

    def _has_session(self, node: int) -> bool:
        return bool((given := self._assignment(node)) and given.plan)

    def _end_sessions(self) -> None:
        if self.sessions is not None:
            self.sessions.close_all()
            self.sessions.host.ping()

    def _group(self, client: str) -> str | None:
        if self.aggregation == "none":
            return client
        label = self.discovery.label(client)
        return None if label is None else str(label)

    def _discover(
        self, server_round: int, nodes: list[int], config: ConfigRecord, grid: Grid
    ) -> list[int]:
        if self.fingerprints == "gradients":
            self._ask_fingerprints(server_round, nodes, config, grid)
            nodes = [n for n in nodes if self.discovery.knows(self.roster.client(n))]
        self._cluster(server_round)
        return nodes

    def _ask_fingerprints(
        self, server_round: int, nodes: list[int], config: ConfigRecord, grid: Grid
    ) -> None:
        unknown = [n for n in nodes if not self.discovery.knows(self.roster.client(n))]
        if unknown:
            entries = ConfigRecord({**config, "server-round": server_round})
            found = ask_fingerprints(grid, unknown, entries, self.roster, self.sessions)
            for client, sketch in found.items():
                self.discovery.add(client, sketch)
            self._end_sessions()

    def _cluster(self, server_round: int) -> None:
        due = self.recluster_every and (server_round - 1) % self.recluster_every == 0
        if self.discovery.fitted and not due:
            return
        before = self.discovery.labels()
        found = self.discovery.fit()
        if found is None:
            return
        labels = self.discovery.labels()
        if before:
            self.adapters.regroup(before, labels)
        log(INFO, "clusters: %d, of %d clients", found.k, len(labels))
        self.on_event(Clustered(server_round, labels, found.k, found.silhouette))

    def _sketch_updates(
        self, server_round: int, accepted: Sequence[tuple[Message, Contribution]]
    ) -> None:
        for message, part in accepted:
            if not self.discovery.knows(part.client):
                start = self._sent[message.metadata.src_node_id]
                self.discovery.add(part.client, update_sketch(start, part.state))
        self._cluster(server_round)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled node its cluster's adapters, at their full rank."""
        self.adapters.begin(arrays)
        if self.fraction_evaluate == 0.0:
            return []
        size = (self.fraction_evaluate, self.min_evaluate_nodes)
        nodes = self._sample(grid, server_round, "evaluate", *size)
        if self.fingerprints == "gradients" and self.discovery.fitted:
            self._ask_fingerprints(server_round, nodes, config, grid)
        return [self._evaluate_message(server_round, n, config) for n in nodes]

    def _evaluate_message(
        self, server_round: int, node: int, config: ConfigRecord
    ) -> Message:
        group = self._group(self.roster.client(node))
        given = self._assignment(node)
        # Unsplit clients have room for the rank that they train at, and no more.
        rank = None if self.sessions else self._unsplit_rank(given)
        state = self.adapters.to_evaluate(group, rank)
        return self._message(MessageType.EVALUATE, server_round, node, state, config)

    def _unsplit_rank(self, given: Assigned | None) -> int:
        return given.rank if given else self.adapters.initial_rank

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics of all clients, by their number of examples."""
        ordered = self.roster.sorted_replies(replies)
        metrics = super().aggregate_evaluate(server_round, ordered)
        self._end_sessions()
        return metrics


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; allowed: {', '.join(allowed)}")
