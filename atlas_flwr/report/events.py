# SPDX-License-Identifier: Apache-2.0
"""What can happen in a run: the lines of ``metrics.jsonl``.

Clients are named by the same text in every event. Bytes are those that left or entered
the process, headers of the transport not included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atlas_flwr.report.client_events import (
    ClientEvaluated,
    ClientFailed,
    ClientTrained,
    Sampled,
)
from atlas_flwr.report.peer_events import (
    PeerLost,
    PeerMoved,
    PeersPaired,
    ReplicaLost,
    ReplicaMoved,
)
from atlas_flwr.report.trunk_events import CallsRefused, TrunkRestarted

__all__ = [
    "EVENTS",
    "Baseline",
    "CallsRefused",
    "ClientEvaluated",
    "ClientFailed",
    "ClientTrained",
    "Clustered",
    "Event",
    "PeerLost",
    "PeerMoved",
    "PeersPaired",
    "ReplicaLost",
    "ReplicaMoved",
    "RoundEnded",
    "RunEnded",
    "RunStarted",
    "Sampled",
    "SumsSent",
    "TrunkRestarted",
]


@dataclass(frozen=True)
class RunStarted:
    """The ServerApp began, or took a run up again.

    Attributes
    ----------
    round : int
        Rounds that are done: 0, or those of the checkpoint. What was written about
        later rounds before this event is superseded.
    num_clients : int
        Clients connected.
    partitions : int
        Clients that the texts are dealt to, connected or not; 0 where unknown.
    """

    round: int
    num_clients: int
    partitions: int = 0


@dataclass(frozen=True)
class Baseline:
    """What a task's accuracy is worth.

    Attributes
    ----------
    task : str
        Name of the task.
    majority : float
        Accuracy on the test examples of always answering the class, or token, that is
        most frequent among a client's training examples; the mean of all clients.
    untrained : float, optional
        Accuracy before training. ``None`` where round 0 is evaluated as the others.
    round : int
        0: before the first.
    """

    task: str
    majority: float
    untrained: float | None = None
    round: int = 0


@dataclass(frozen=True)
class Clustered:
    """The clients were clustered.

    Attributes
    ----------
    round : int
        Before whose training it was.
    clusters : Mapping[str, int]
        Cluster of each client.
    k : int
        Number of clusters.
    silhouette : float, optional
        Mean silhouette in [-1, 1]; ``None`` for one cluster.
    ari, nmi, purity : float, optional
        Agreement with the true tasks, where these are known: ``clustering.Quality``.
    stability : float, optional
        Agreement of clusterings of subsamples, at most 1.
    memberships : Mapping[str, Mapping[str, float]]
        By client: its share in each cluster, of sum 1; empty where it is not known.
    joined : int, optional
        Clusters that were too small and joined others; ``None`` where none has to.
    """

    round: int
    clusters: Mapping[str, int]
    k: int
    silhouette: float | None = None
    ari: float | None = None
    nmi: float | None = None
    purity: float | None = None
    stability: float | None = None
    memberships: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    joined: int | None = None


@dataclass(frozen=True)
class RoundEnded:
    """A round is over, evaluation included.

    Attributes
    ----------
    round : int
        Server round, from 1; 0 for what came before the first.
    seconds : float
        Wall time.
    bytes_up, bytes_down : int
        Sent by and to all clients in the round, of every kind: training, evaluation,
        fingerprints, and what crossed the cut. The run's totals are sums of these.
    failures : int
        Replies that were errors or did not come; late ones where they came.
    late : int
        Replies that were not waited for, since a quorum was there without them.
    server_peak_bytes : int
        Peak memory of the server so far; 0 where it was not measured.
    """

    round: int
    seconds: float
    bytes_up: int
    bytes_down: int
    failures: int = 0
    server_peak_bytes: int = 0
    late: int = 0


@dataclass(frozen=True)
class SumsSent:
    """What clusters have learned was added up, and a part of it is to be sent.

    Attributes
    ----------
    round : int
        Server round, from 1.
    held_back : float
        What the server keeps to itself of a cluster's sum, as a share of it in
        Frobenius norm; of the clusters the largest.
    """

    round: int
    held_back: float


@dataclass(frozen=True)
class RunEnded:
    """The run is complete; ``round`` was its last."""

    round: int


Event = (
    RunStarted
    | Baseline
    | Clustered
    | ClientTrained
    | ClientEvaluated
    | ClientFailed
    | Sampled
    | RoundEnded
    | SumsSent
    | CallsRefused
    | TrunkRestarted
    | PeersPaired
    | PeerLost
    | PeerMoved
    | ReplicaLost
    | ReplicaMoved
    | RunEnded
)
EVENTS: Mapping[str, type[Event]] = {
    "run-started": RunStarted,
    "baseline": Baseline,
    "clustered": Clustered,
    "client-trained": ClientTrained,
    "client-evaluated": ClientEvaluated,
    "client-failed": ClientFailed,
    "sampled": Sampled,
    "round-ended": RoundEnded,
    "sums-sent": SumsSent,
    "calls-refused": CallsRefused,
    "trunk-restarted": TrunkRestarted,
    "peers-paired": PeersPaired,
    "peer-lost": PeerLost,
    "peer-moved": PeerMoved,
    "replica-lost": ReplicaLost,
    "replica-moved": ReplicaMoved,
    "run-ended": RunEnded,
}
