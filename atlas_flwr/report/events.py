# SPDX-License-Identifier: Apache-2.0
"""What can happen in a run: the lines of ``metrics.jsonl``.

Clients are named by the same text in every event. Bytes are those that left or entered
the process, headers of the transport not included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from atlas_flwr.errors import DataError
from atlas_flwr.report.client_events import ClientFailed
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
    "from_record",
    "to_record",
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
        Accuracy of always answering the most frequent class of the test examples.
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
class ClientTrained:
    """A client finished its local steps.

    Attributes
    ----------
    round : int
        Server round, from 1.
    client, task : str
        Who, and the name of its task.
    cluster : int, optional
        Its cluster; ``None`` where the strategy has none.
    loss : float
        Mean training loss over the steps: the task's, without what remedies add.
    num_examples, steps : int
        Training examples of the client, and optimiser steps it took.
    seconds : float
        Wall time in the client.
    bytes_up, bytes_down : int
        Sent and received by the client: its Flower messages and, where the model is
        split, all that crossed the cut.
    peak_bytes : int
        Peak memory of the client, measured; 0 where it was not.
    rank : int
        Largest LoRA rank that the client trains.
    plan : str
        Its cut, e.g. ``"2/1"``; empty for the whole model.
    skipped : int
        Backward passes that it did not send to the trunk.
    penalty : float, optional
        Mean of what remedies added to the loss.
    codec : str
        By which it called its trunk; those of all places where that was in several,
        with ``+`` between. Empty for the whole model, and where it is not told.
    """

    round: int
    client: str
    task: str
    cluster: int | None
    loss: float
    num_examples: int
    steps: int
    seconds: float
    bytes_up: int
    bytes_down: int
    peak_bytes: int = 0
    rank: int = 0
    plan: str = ""
    skipped: int = 0
    penalty: float | None = None
    codec: str = ""


@dataclass(frozen=True)
class ClientEvaluated:
    """A client evaluated on its held-out examples; round 0 is the untrained model.

    ``confusion`` counts them by their class and the one predicted, row after row. Where
    the client ``writes``, its task is answered by text, and accuracy and loss are of
    ``tokens``; ``scores`` are means of ``scored`` answers that it wrote.
    """

    round: int
    client: str
    task: str
    cluster: int | None
    accuracy: float
    loss: float
    num_examples: int
    confusion: tuple[int, ...] = ()
    writes: bool = False
    tokens: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    scored: int = 0

    @property
    def weight(self) -> int:
        """What its accuracy and loss are means over."""
        return self.tokens or self.num_examples


@dataclass(frozen=True)
class Sampled:
    """A client has sent an answer that it wrote, to be shown.

    Attributes
    ----------
    round : int
        Server round; 0 is the untrained model.
    client, task : str
        Whose, and of what.
    number : int
        Which of the client's test prompts, from 0.
    prompt, reference, answer : str
        What was asked, what should have been answered, and what was.
    """

    round: int
    client: str
    task: str
    number: int
    prompt: str
    reference: str
    answer: str


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
        Replies that were errors or did not come.
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
NAMES = {kind: name for name, kind in EVENTS.items()}


def to_record(event: Event, time: float) -> dict[str, Any]:
    """Make the JSON object of an event; numbers that JSON lacks become null.

    Parameters
    ----------
    event : Event
        What happened.
    time : float
        When, in seconds since 1970.
    """
    record = {"event": NAMES[type(event)], "time": round(time, 3)}
    return record | {key: _finite(value) for key, value in asdict(event).items()}


def _finite(value: Any) -> Any:
    lost = isinstance(value, float) and not math.isfinite(value)
    return None if lost else value


PLAIN: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
}


def from_record(record: Mapping[str, Any]) -> Event | None:
    """Read an event back; ``None`` for a kind that is not in :data:`EVENTS`.

    Losses that were not finite come back as NaN.

    Raises
    ------
    DataError
        When a field of a known kind is missing.
    """
    kind = EVENTS.get(record["event"])
    if kind is None:
        return None
    names = {entry.name for entry in fields(kind)}
    given = {name: value for name, value in record.items() if name in names}
    if "confusion" in given:
        given["confusion"] = tuple(given["confusion"])
    if "alone" in given:
        given["alone"] = tuple(given["alone"])
    if given.get("loss", 0.0) is None:
        given["loss"] = math.nan
    for entry in fields(kind):
        wanted, value = PLAIN.get(str(entry.type)), given.get(entry.name)
        if wanted and value is not None and not isinstance(value, wanted):
            raise DataError(
                f"a {record['event']!r} event with {entry.name}={value!r}, which is no "
                f"{entry.type}"
            )
    try:
        return kind(**given)
    except TypeError as error:
        raise DataError(f"a {record['event']!r} event is incomplete: {error}") from None
