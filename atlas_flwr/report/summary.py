# SPDX-License-Identifier: Apache-2.0
"""What a run came to, as values: the contents of ``summary.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from atlas_flwr.errors import DataError

__all__ = ["SCORES", "RoundSummary", "Sample", "Summary"]

SCORES = ("rouge_l", "chrf", "bleu", "exact_match")

FORMAT = 1
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class RoundSummary:
    """One round.

    Attributes
    ----------
    round : int
        From 1; 0 is the untrained model.
    accuracy, loss : Mapping[str, float]
        By task, weighted by the clients' test examples; empty where the round was not
        evaluated.
    mean_accuracy, mean_loss : float, optional
        Mean over tasks, each the same.
    balanced_accuracy, macro_f1 : Mapping[str, float]
        By task, of all its clients' test examples together: the mean recall of the
        classes that occur, and the mean F1 of those that occur or were predicted.
    perplexity : Mapping[str, float]
        By task that is to be answered by text: the exponential of its loss. Its
        accuracy is that of single tokens.
    rouge_l, chrf, bleu, exact_match : Mapping[str, float]
        By task that names them: means over answers that were written, before the first
        round and after the last.
    client_scores, cluster_scores : Mapping[str, Mapping[str, float]]
        The same by client, and by the cluster that a client was in at last.
    client_accuracy : Mapping[str, float]
        By client.
    worst_client : str, optional
        The client of the least accuracy, which is ``worst_accuracy``.
    spread : float, optional
        Standard deviation (population) of accuracy over clients.
    train_loss : float, optional
        Mean over the clients that trained: their tasks' loss alone.
    train_penalty : float, optional
        Mean of what remedies added to it, over the clients where they did.
    bytes_up, bytes_down : int
        Sent by and to all clients.
    seconds : float
        Wall time.
    failures, late : int
        Replies that were errors or did not come; those that were not waited for.
    client_peak_bytes, server_peak_bytes : int
        Largest of any client; of the server.
    skipped : int
        Backward passes that clients did not send to the trunk.
    held_back : float
        Share of a cluster's sum that clients were not sent after the round, as it is
        beyond what ``flat-rounds`` sends; the largest.
    """

    round: int
    accuracy: Numbers
    loss: Numbers
    mean_accuracy: float | None
    mean_loss: float | None
    client_accuracy: Numbers
    worst_client: str | None
    worst_accuracy: float | None
    spread: float | None
    train_loss: float | None
    bytes_up: int
    bytes_down: int
    seconds: float
    failures: int
    client_peak_bytes: int
    server_peak_bytes: int
    skipped: int = 0
    balanced_accuracy: Numbers = field(default_factory=dict)
    macro_f1: Numbers = field(default_factory=dict)
    train_penalty: float | None = None
    perplexity: Numbers = field(default_factory=dict)
    held_back: float = 0.0
    late: int = 0
    rouge_l: Numbers = field(default_factory=dict)
    chrf: Numbers = field(default_factory=dict)
    bleu: Numbers = field(default_factory=dict)
    exact_match: Numbers = field(default_factory=dict)
    client_scores: Mapping[str, Numbers] = field(default_factory=dict)
    cluster_scores: Mapping[str, Numbers] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, Numbers]:
        """By name of the score and task: those that there are."""
        found = {name: getattr(self, name) for name in SCORES}
        return {name: by_task for name, by_task in found.items() if by_task}


@dataclass(frozen=True)
class Sample:
    """A prompt, and what was answered before training and after.

    Attributes
    ----------
    client, task : str
        Whose, and of what.
    cluster : int, optional
        The client's last.
    prompt, reference : str
        What was asked, and what should have been answered.
    base, tuned : str
        What was; empty where it is not known.
    """

    client: str
    task: str
    cluster: int | None
    prompt: str
    reference: str
    base: str
    tuned: str


@dataclass(frozen=True)
class Summary:
    """A whole run.

    Attributes
    ----------
    strategy, model : str
        As configured.
    seed : int
        As configured.
    rounds, planned_rounds : int
        Rounds done and wanted.
    finished : bool
        Whether the run came to its end.
    num_clients : int
        Clients connected.
    clusters : Mapping[str, int]
        Last cluster of each client; empty where the strategy has none.
    true_tasks : Mapping[str, str]
        Task of each client.
    clustering : Mapping[str, float], optional
        The last clustering's ``k`` and, where known, ``silhouette``, ``stability``,
        ``ari``, ``nmi`` and ``purity``.
    ranks : Mapping[str, int]
        Last rank of each client that trained.
    plans : Mapping[str, str]
        Last cut of each client that trained; empty for the whole model.
    majority, untrained : Mapping[str, float]
        By task: accuracy of the most frequent class, and before training.
    per_round : tuple[RoundSummary, ...]
        In order.
    bytes_up, bytes_down : int
        Of all rounds.
    client_peak_bytes, server_peak_bytes : int
        Largest of any client; of the server.
    client_peaks : Mapping[str, int]
        Peak of each client.
    memberships : Mapping[str, Mapping[str, float]]
        By client: its share in each cluster at the last clustering, where known.
    trunk_restarts : int
        How often a lost trunk was started again.
    calls_refused : Mapping[str, int]
        Calls that the trunk of the ServerApp answered by an error, by its kind.
    carried : Mapping[str, int]
        With trunk='peers', by peer: the most clients that it carried the trunk for.
    peers_lost : Mapping[str, str]
        Peers that failed while they carried it, and why.
    peer_moves, sat_out : int
        How often a client of a lost peer went to another, and how often one sat a round
        of training out, as nobody had room for it.
    replicas_lost, replica_moves : int
        Replicas of the trunk that were lost, and clients that began a round again at
        another, each as often as it happened.
    samples : tuple[Sample, ...]
        Those that clients have sent, with ``share-samples``.
    codecs : Mapping[str, str]
        By which each client that trained has last called its trunk, where known.
    wall_seconds : float
        From start to last event; pauses before a resumption do not count.
    """

    strategy: str
    model: str
    seed: int
    rounds: int
    planned_rounds: int
    finished: bool
    num_clients: int
    clusters: Mapping[str, int]
    true_tasks: Mapping[str, str]
    clustering: Numbers | None
    ranks: Mapping[str, int]
    plans: Mapping[str, str]
    majority: Numbers
    untrained: Numbers
    per_round: tuple[RoundSummary, ...]
    bytes_up: int
    bytes_down: int
    client_peak_bytes: int
    server_peak_bytes: int
    client_peaks: Mapping[str, int]
    wall_seconds: float
    memberships: Mapping[str, Numbers] = field(default_factory=dict)
    trunk_restarts: int = 0
    calls_refused: Mapping[str, int] = field(default_factory=dict)
    carried: Mapping[str, int] = field(default_factory=dict)
    peers_lost: Mapping[str, str] = field(default_factory=dict)
    peer_moves: int = 0
    sat_out: int = 0
    replicas_lost: int = 0
    replica_moves: int = 0
    samples: tuple[Sample, ...] = ()
    codecs: Mapping[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are known, sorted."""
        named = {*self.majority, *self.untrained, *self.true_tasks.values()}
        return tuple(sorted(named))

    @property
    def first(self) -> RoundSummary | None:
        """The untrained model's round, if it was evaluated."""
        return next((r for r in self.per_round if r.round == 0 and r.accuracy), None)

    @property
    def evaluated(self) -> tuple[RoundSummary, ...]:
        """The rounds of training that were evaluated."""
        return tuple(r for r in self.per_round if r.round > 0 and r.accuracy)

    @property
    def final(self) -> RoundSummary | None:
        """The last round of training that was evaluated."""
        return self.evaluated[-1] if self.evaluated else None

    def to_json(self) -> dict[str, Any]:
        """Make the JSON object; numbers that are not finite become null.

        Beside the fields, ``final`` repeats the last evaluated round.
        """
        final = asdict(self.final) if self.final else None
        whole = {"format": FORMAT, **asdict(self), "final": final}
        cleaned: dict[str, Any] = _finite(whole)
        return cleaned

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Summary:
        """Read what :meth:`to_json` made.

        Raises
        ------
        DataError
            When it is of another format, or a field is missing.
        """
        if data.get("format") != FORMAT:
            raise DataError(
                f"a summary of format {data.get('format')!r}: this version reads "
                f"{FORMAT}; rebuild it with `atlas-flwr report <run folder>`"
            )
        given = {e.name: data[e.name] for e in fields(cls) if e.name in data}
        wanted = {e.name for e in fields(cls) if e.default_factory is MISSING}
        if missing := wanted - given.keys():
            raise DataError(f"a summary without {', '.join(sorted(missing))}")
        given["per_round"] = tuple(_round_from(part) for part in data["per_round"])
        given["samples"] = tuple(Sample(**one) for one in data.get("samples", ()))
        return cls(**given)


def _round_from(data: Mapping[str, Any]) -> RoundSummary:
    loss = {k: math.nan if v is None else v for k, v in data["loss"].items()}
    return RoundSummary(**{**data, "loss": loss})


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(item) for item in value]
    lost = isinstance(value, float) and not math.isfinite(value)
    return None if lost else value
