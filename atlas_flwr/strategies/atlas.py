# SPDX-License-Identifier: Apache-2.0
"""ATLAS: clients are clustered by task, given ranks and cuts, and aggregated exactly.

A round has four phases. *Discover*: one 64-number sketch a client, clustered with
k-means. *Configure*: each client gets a cut and a rank that its memory affords.
*Train*: it trains head and tail, the trunk runs in the server (split clients), or it
trains the whole model (unsplit clients). *Aggregate*: inside each cluster, adapters are
concatenated, never averaged factor by factor (:mod:`atlas_flwr.aggregation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO
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
from flwr.serverapp.strategy import FedAvg, Result
from numpy.typing import NDArray

from atlas_flwr._arguments import check_choice
from atlas_flwr.aggregation import Contribution, rule_of
from atlas_flwr.aggregation.groups import ClusterAdapters
from atlas_flwr.aggregation.metrics import averaged_metrics, name_odd_metrics
from atlas_flwr.aggregation.mixing import Mixing
from atlas_flwr.cohort.assigned import Assignments, AssignRule
from atlas_flwr.cohort.discovery import Discovery
from atlas_flwr.cohort.exchange import Exchange
from atlas_flwr.cohort.grouping import check_least, grouped
from atlas_flwr.cohort.planning import RoundPlanner
from atlas_flwr.cohort.reclustering import Reclustering
from atlas_flwr.cohort.roster import Roster
from atlas_flwr.cohort.sampling import sample, sample_size
from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.cohort.wrappers import check_noise_arrives
from atlas_flwr.log import flower_log
from atlas_flwr.lora import AdapterState, Scaling
from atlas_flwr.remedies.base import UNCHANGED, ServerHooks
from atlas_flwr.report.events import Event, SumsSent

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
        As in :class:`flwr.serverapp.strategy.FedAvg`, but that metrics are averaged by
        :func:`~atlas_flwr.aggregation.metrics.averaged_metrics` where none is given.
    lora_alpha : float, optional
        The clients' LoRA alpha (scale alpha / r); needed only where ranks differ. A
        client whose alpha is another says so in its metric ``lora-alpha``.
    use_rslora : bool
        Whether their scale is alpha / sqrt(r) instead.
    fingerprints : str
        ``"updates"``: sketch each client's first update, which asks nothing of it.
        ``"gradients"``: ask with ``query.fingerprint``, which ATLAS's clients know.
    clustering : str
        A key of :data:`atlas_flwr.clustering.METHODS`, or ``"none"``.
    balanced : bool
        Clusters whose sizes differ by one at most.
    min_cluster_size : int
        Smaller clusters join the nearest; fewer updates are not added up.
    num_clusters, max_clusters : int
        Give the number where it is known; else it is chosen, up to the second.
    recluster_every : int
        Rounds between clusterings. 0: anew only as twice as many clients are known, or
        all for the first time. Adapters follow their members.
    aggregation : str
        How a cluster's products are added up, and come back to each client's rank:
        ``"truncate"`` cuts them; ``"both"`` trains the strongest directions and folds
        the rest into the frozen weights, which is exact and what ATLAS's own clients
        should get; ``"fold"`` folds all. To compare: ``"mean"`` of the factors;
        ``"none"`` at all. See :mod:`atlas_flwr.aggregation.products`.
    max_rank : int, optional
        A cluster's product is cut at this rank, with a warning; ``None`` never cuts it.
    flat : bool
        With ``"both"``: clients are sent as much of a product as one round's ranks add
        up to, so that no round costs more than the third. ``False`` sends all.
    assign : AssignRule, optional
        Phase 2: gives a client, by its profile and the importances of layers in its
        cluster, a cut and ranks. ``None``: unsplit, at the initial arrays' rank.
    importance : bool
        Measure the layers' importance with fingerprints; assign anew when it moves.
    sessions : TrunkSessions, optional
        The trunk, for split clients.
    roster : Roster, optional
        Who the clients are; by default, node ids are their names.
    mixing : Mixing, optional
        MIRA's step: groups take a little of those with similar fingerprints.
    hooks : ServerHooks
        What remedies do between rounds, e.g. keep a share of what a group held.
    seed : int
        Draws the sampled nodes and seeds k-means.
    on_event : Callable[[Event], None], optional
        Told of new clusters.
    """

    single_replies = "each cluster has a sum of its own; SecureAtlas takes sums"

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
        use_rslora: bool = False,
        fingerprints: str = "updates",
        clustering: str = "kmeans",
        num_clusters: int | None = None,
        max_clusters: int = 8,
        recluster_every: int = 0,
        balanced: bool = False,
        min_cluster_size: int = 1,
        aggregation: str = "truncate",
        max_rank: int | None = None,
        flat: bool = True,
        assign: AssignRule | None = None,
        importance: bool = False,
        sessions: TrunkSessions | None = None,
        roster: Roster | None = None,
        mixing: Mixing | None = None,
        hooks: ServerHooks = UNCHANGED,
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
            train_metrics_aggr_fn=train_metrics_aggr_fn or averaged_metrics,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn or averaged_metrics,
        )
        check_choice("fingerprints", fingerprints, FINGERPRINTS)
        drawn = sample_size(min_available_nodes, fraction_train, min_train_nodes)
        check_least(min_cluster_size, min_available_nodes, drawn, aggregation)
        rule = rule_of(aggregation)
        if fingerprints == "updates" and (assign is not None or rule.folds):
            given = "`assign` gives them" if assign else f"aggregation={aggregation!r}"
            raise ValueError(
                "fingerprints='updates' is for plain clients, which have one rank and "
                f"fold nothing; with {given} use fingerprints='gradients'"
            )
        self.fingerprints = fingerprints
        self.aggregation = aggregation
        self.mixing = mixing or Mixing()
        self.sessions = sessions
        self.roster = roster or Roster(ask=False)
        self.seed = seed
        self.on_event = on_event or (lambda event: None)
        found_by = clustering, num_clusters, max_clusters, seed
        least = min_cluster_size
        self.discovery = Discovery(*found_by, balanced=balanced, least=least)
        scaling = Scaling(lora_alpha, use_rslora)
        self.adapters = ClusterAdapters(rule(max_rank, flat), scaling, seed, hooks)
        self.planner = RoundPlanner(
            self.roster,
            self.discovery,
            Assignments(assign),
            sessions,
            asks=fingerprints == "gradients",
            importance=importance,
            needs_sketches=self.mixing.needs_sketches,
            every=recluster_every,
        )
        self.reclustering = Reclustering(
            self.planner,
            self.adapters,
            self._group,
            alone=aggregation == "none",
            on_event=self.on_event,
        )
        self.exchange = Exchange(self.roster, self.adapters, sessions, self)

    @property
    def clusters(self) -> dict[str, int]:
        """Cluster of every client that has one, by client id."""
        return self.discovery.labels()

    @property
    def parts(self) -> bool:
        """Whether clients may get unlike arrays, as they are in unlike groups."""
        return self.reclustering.alone or self.discovery.may_part

    def cluster_states(self) -> dict[str, AdapterState]:
        """Adapters of every cluster that has trained, as factors."""
        return dict(self.adapters.groups)

    def cluster_arrays(self) -> dict[str, ArrayRecord]:
        """Adapters of every cluster that has trained, under the clients' own keys."""
        write = self.adapters.arrays.layout.write
        return {group: write(state) for group, state in self.adapters.groups.items()}

    def summary(self) -> None:
        """Log summary configuration of the strategy, with which every start begins."""
        found = self.discovery
        check_noise_arrives(self, self.adapters.rule.folds, self.parts)
        flower_log(INFO, "\t├──> ATLAS settings:")
        flower_log(INFO, "\t│\t├── Fingerprints from: %s", self.fingerprints)
        count = found.num_clusters or "as many as are seen"
        flower_log(INFO, "\t│\t├── Clustering: %s, %s", found.method, count)
        flower_log(INFO, "\t│\t├── Split: %s", "yes" if self.sessions else "no")
        flower_log(INFO, "\t│\t└── Aggregation: %s", self.aggregation)
        super().summary()

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, object]]:
        """Return what a resumed run needs besides the global arrays."""
        arrays, values = self.adapters.state()
        more, further = self.planner.state()
        values["alphas"] = dict(self.exchange.alphas)
        return {**arrays, **more}, {**values, **further}

    def restore(
        self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        """Take up what :meth:`state` returned."""
        self.adapters.restore(arrays, values)
        self.planner.restore(arrays, values)
        self.exchange.alphas.update(values["alphas"])

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds; raise ``RoundError`` if nobody's training came back."""
        result = super().start(*args, **kwargs)
        self.exchange.check_learned(result.arrays)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes, discover and configure them, and send each its adapters."""
        if server_round == 1 and self.adapters.arrays.has_begun:  # another start()
            self.adapters.begin_anew()
            self.planner.forget()
            self.exchange.forget()
            self.reclustering.forget()
        self.adapters.begin(arrays)
        if self.fraction_train == 0.0:
            return []
        size = (self.fraction_train, self.min_train_nodes)
        nodes = self._sample(grid, server_round, "train", *size)
        shapes = self.adapters.arrays.shapes
        nodes = self.planner.take(server_round, nodes, config, grid, shapes)
        self.exchange.end_sessions()
        self.reclustering.cluster(server_round)
        self.exchange.begin()
        nodes = self.planner.admitted("train", server_round, nodes)
        return [self._train_message(server_round, node, config) for node in nodes]

    def _sample(
        self, grid: Grid, server_round: int, what: str, fraction: float, minimum: int
    ) -> list[int]:
        size = (fraction, minimum, self.min_available_nodes)
        return sample(grid, self.roster, size, self.seed, what, server_round)

    def _train_message(
        self, server_round: int, node: int, config: ConfigRecord
    ) -> Message:
        given = self.planner.assigned(node)
        group = self._group(self.roster.client(node))
        start = self.adapters.start(group, given.ranks if given else None, server_round)
        return self.exchange.message(
            MessageType.TRAIN, server_round, node, start, given, config
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Concatenate the adapters of each cluster's clients."""
        ordered = self.roster.sorted_replies(replies)
        self.exchange.note(ordered)
        valid, _ = self._check_and_log_replies(ordered, is_train=True, validate=False)
        name_odd_metrics(valid, self.roster.client)
        accepted = self.exchange.accept(valid)
        self.exchange.end_sessions()
        if not accepted:
            return None, None
        parts = [part for _, part in accepted]
        if self.fingerprints == "updates":
            parts = self.reclustering.sketched(server_round, self.exchange, accepted)
        self._combine(server_round, parts)
        contents = [message.content for message, _ in accepted]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        if self.adapters.rule.keeps_rest:
            metrics["held-back"] = held_back = self.adapters.held_back
            self.on_event(SumsSent(server_round, held_back))
        return self.adapters.returned(), metrics

    def _combine(self, server_round: int, parts: Sequence[Contribution]) -> None:
        """Aggregate each group, and mix between groups."""
        self.adapters.aggregate(grouped(parts, self._group, self.discovery.least))
        if self.mixing.strength:
            held = [*self.adapters.groups]
            sketches = self.planner.sketches(self._group)
            names, matrix = self.mixing.matrix(held, sketches, server_round)
            self.adapters.mix(names, matrix)

    def _group(self, client: str) -> str | None:
        """Return the group a client learns in; ``None`` for one in no cluster yet."""
        if self.reclustering.alone:
            return client
        label = self.discovery.label(client)
        return None if label is None else str(label)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled node its cluster's adapters."""
        self.adapters.begin(arrays)
        if self.fraction_evaluate == 0.0:
            return []
        size = (self.fraction_evaluate, self.min_evaluate_nodes)
        nodes = self._sample(grid, server_round, "evaluate", *size)
        # Before the first round nobody is asked: that round forgets all answers, and a
        # run that is resumed before it would not.
        if server_round and self.discovery.fitted:
            unknown, shapes = self.planner.unknown(nodes), self.adapters.arrays.shapes
            self.planner.ask(server_round, unknown, config, grid, shapes)
            self.exchange.end_sessions()
            self.reclustering.tell(server_round)
        nodes = self.planner.admitted("evaluate", server_round, nodes)
        return [self._evaluate_message(server_round, n, config) for n in nodes]

    def _evaluate_message(
        self, server_round: int, node: int, config: ConfigRecord
    ) -> Message:
        group = self._group(self.roster.client(node))
        given = self.planner.assigned(node)
        ranks = given.ranks if given else None
        if self.sessions is not None and not self.adapters.rule.folds:
            # Uncut; and what no group has, since clients keep it, as they train it.
            begun = self.adapters.start(group, ranks, server_round)
            state = begun.merged(self.adapters.full(group))
        else:  # as good where the rest is folded, and all that unsplit clients hold
            state = self.adapters.serve(group, ranks, server_round)
        return self.exchange.message(
            MessageType.EVALUATE, server_round, node, state, given, config
        )

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics of all clients, by their number of examples."""
        ordered = self.roster.sorted_replies(replies)
        valid, _ = self._check_and_log_replies(ordered, is_train=False, validate=False)
        name_odd_metrics(valid, self.roster.client)
        contents = [m.content for m in self.exchange.accept_evaluated(valid)]
        self.exchange.end_sessions()
        average = self.evaluate_metrics_aggr_fn
        return average(contents, self.weighted_by_key) if contents else None
