# SPDX-License-Identifier: Apache-2.0
"""What crosses between the strategy and its clients: adapters out, contributions in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from logging import WARNING
from typing import Protocol, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from atlas_flwr.aggregation import Contribution
from atlas_flwr.aggregation.groups import ClusterAdapters
from atlas_flwr.cohort.roster import Roster
from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.errors import AdapterError, RoundError, SessionError, TrunkLost
from atlas_flwr.log import log
from atlas_flwr.lora import AdapterState, LoraFactors, Scaling
from atlas_flwr.protocol import keys
from atlas_flwr.protocol.computed import computed_of
from atlas_flwr.protocol.profile import Assigned
from atlas_flwr.protocol.replies import (
    alpha_of,
    check_trained,
    reason_of,
    records_of,
    weight_of,
)
from atlas_flwr.remedies.base import PERSONAL

__all__ = ["Exchange"]


Read = TypeVar("Read")

_NOBODY = "nobody replied"


class RecordKeys(Protocol):
    """FedAvg's words for what is in its messages, which may be set at any time."""

    arrayrecord_key: str
    configrecord_key: str
    weighted_by_key: str


@dataclass
class Exchange:
    """Messages of one round, and what their replies bring.

    Parameters
    ----------
    roster : Roster
        Who is behind each node.
    adapters : ClusterAdapters
        Gives arrays their layout.
    sessions : TrunkSessions, optional
        The trunk, for split clients.
    record_keys : RecordKeys
        The strategy, which has them.
    alphas : dict[str, float]
        LoRA's alpha of clients whose replies told one of their own, in the metric
        ``lora-alpha``.
    rank_decay : float
        Below 1, clients may prune their ranks (see :mod:`atlas_flwr.lora.pruning`).
    asked : bool
        Whether anybody was ever asked to train.
    failure : str
        Why the first reply that failed did so.
    """

    roster: Roster
    adapters: ClusterAdapters
    sessions: TrunkSessions | None
    record_keys: RecordKeys
    alphas: dict[str, float] = field(default_factory=dict)
    rank_decay: float = 1.0
    asked: bool = False
    failure: str = _NOBODY
    _sent: dict[int, AdapterState] = field(default_factory=dict)
    _split: set[int] = field(default_factory=set)
    _former: dict[int, AdapterState] = field(default_factory=dict)

    def forget(self) -> None:
        """Forget all rounds: others begin."""
        self.alphas.clear()
        self._sent, self._former, self._split = {}, {}, set()
        self.asked, self.failure = False, _NOBODY

    def begin(self) -> None:
        """Forget the former round, but for who is still at it."""
        busy, known = self.roster.busy(), {**self._former, **self._sent}
        self._former = {node: known[node] for node in busy if node in known}
        self._split &= self._former.keys()
        self._sent = {}

    def sent(self, node: int) -> AdapterState:
        """Return what a node was last sent to train from."""
        return self._sent[node] if node in self._sent else self._former[node]

    def message(
        self,
        kind: str,
        server_round: int,
        node: int,
        state: AdapterState,
        given: Assigned | None,
        config: ConfigRecord,
    ) -> Message:
        """Make a message; for a split client open its session on the trunk.

        Parameters
        ----------
        kind : str
            ``MessageType.TRAIN`` or ``.EVALUATE``.
        server_round : int
            Goes into the message's configuration.
        node : int
            To whom.
        state : AdapterState
            Everything that the client's model is to have; the trunk's share of it goes
            into the session.
        given : Assigned, optional
            The client's cut.
        config : ConfigRecord
            Further configuration.
        """
        entries = ConfigRecord(dict(config))
        entries[keys.SERVER_ROUND] = server_round
        shared, on_trunk = state, None
        if self.sessions is not None and given is not None and given.plan is not None:
            personal = self.sessions.personal(given.plan, state)
            if personal is not None:
                entries[PERSONAL] = personal.to_json()
                shared = state = personal.rest_of(state)
            client = self.roster.client(node)
            entries[keys.PLAN] = str(given.plan)
            token = self.sessions.open(
                client,
                given.plan,
                state,
                self.adapters.held(state.origin),
                server_round=server_round,
            )
            entries.update(self.sessions.way(token))
            middle = self.sessions.on_trunk(given.plan, state)
            if self.sessions.is_checked():
                on_trunk = middle
            if kind == MessageType.TRAIN:
                self.sessions.started(client, server_round, middle)
            state = self.sessions.on_client(given.plan, state)
            self._split.add(node)
        if kind == MessageType.TRAIN:
            self._sent[node] = shared
            self.asked = True
        write = self.adapters.arrays.layout.write
        scaling = self._scaling(self.roster.client(node))
        record = RecordDict(
            {
                self.record_keys.arrayrecord_key: write(state, scaling),
                self.record_keys.configrecord_key: entries,
            }
        )
        if on_trunk is not None:
            record[keys.TRUNK_ARRAYS] = write(on_trunk, scaling)
        return Message(record, node, kind)

    def note(self, replies: Sequence[Message]) -> None:
        """Keep why the first of all failed."""
        failed = [reason_of(reply) for reply in replies if reply.has_error()]
        if failed and self.failure == _NOBODY:
            self.failure = f"the first failure: {failed[0]}"

    def check_learned(self, arrays: ArrayRecord) -> None:
        """Refuse to end a run in which clients were asked, and nobody trained.

        Parameters
        ----------
        arrays : ArrayRecord
            Those of the run's result; empty if no round had any.

        Raises
        ------
        RoundError
            If it was so: with the first reason.
        """
        if self.asked and not arrays and not self.adapters.has_learned:
            raise RoundError(
                "no client's training came back in any round, so nothing was learned: "
                f"{self.failure}"
            )

    def accept(self, replies: Sequence[Message]) -> list[tuple[Message, Contribution]]:
        """Read a training round's replies; refuse by name those that do not fit.

        Raises
        ------
        RoundError
            If there are replies, and none fits.
        """
        return _usable("aggregate_train", replies, self._contribution)

    def accept_evaluated(self, replies: Sequence[Message]) -> list[Message]:
        """Return the evaluations that can be weighed; refuse the others by name.

        Raises
        ------
        RoundError
            If there are replies, and none can.
        """
        found = _usable("aggregate_evaluate", replies, self._weight)
        return [message for message, _ in found]

    def end_sessions(self) -> None:
        """Close every session: the round ended, whoever did not come back.

        Those of clients that are late, and will be counted, stay open.

        Raises
        ------
        TrunkLost
            If the trunk is gone.
        """
        if self.sessions is not None:
            busy = {self.roster.client(node) for node in self.roster.busy()}
            self.sessions.close_all(busy)
            self.sessions.host.ping()

    def _scaling(self, client: str) -> Scaling:
        common = self.adapters.scaling
        return replace(common, alpha=self.alphas.get(client, common.alpha))

    def _sender(self, node: int) -> str:
        return f"client {self.roster.client(node)} (node {node})"

    def _weight(self, message: Message) -> float:
        sender = self._sender(message.metadata.src_node_id)
        return weight_of(message, sender, self.record_keys.weighted_by_key)

    def _contribution(self, message: Message) -> Contribution:
        node = message.metadata.src_node_id
        client, sender = self.roster.client(node), self._sender(node)
        weighted_by = self.record_keys.weighted_by_key
        arrays, metrics, weight = records_of(message, sender, weighted_by)
        written = scaling = self._scaling(client)
        if keys.ALPHA in metrics:
            scaling = replace(scaling, alpha=alpha_of(metrics, sender))
        state = self.adapters.arrays.layout.read(arrays, sender, scaling)
        own = set(state.factors)
        is_late = node not in self._sent and node in self._former
        if self.sessions is not None and node in self._split:
            computed = computed_of(message) if is_late else None  # else it was judged
            if computed is not None:
                self.sessions.judge(client, computed)
            state = state.merged(self._collected(self.sessions, client, is_late))
        sent = {**self._former, **self._sent}.get(node)
        check_trained(sender, state, sent, self.rank_decay)
        if scaling.alpha is not None and keys.ALPHA in metrics:
            self.alphas[client] = scaling.alpha
        if sent is not None and scaling != written and _has_product(sent, own):
            # It trained on another product than its group holds: as of a late one,
            # its change alone is taken.
            is_late, sent = True, _as_loaded(sent, own, written, scaling)
        return Contribution(client, weight, state, sent, late=is_late)

    def _collected(
        self, sessions: TrunkSessions, client: str, is_late: bool
    ) -> AdapterState:
        try:
            return sessions.collect(client)
        except TrunkLost as error:
            if is_late:
                sessions.host.ping()  # else the place that it was in is lost, alone
                raise SessionError(f"client {client}, late: {error}") from None
            raise


def _has_product(state: AdapterState, layers: Collection[str]) -> bool:
    """Tell if an adapter of these layers is not 0, so that its scale matters."""
    return any(bool(f.B.any()) for n, f in state.factors.items() if n in layers)


def _as_loaded(
    sent: AdapterState, layers: Collection[str], written: Scaling, own: Scaling
) -> AdapterState:
    """Return what a client made of layers that were written for another scale.

    It took their numbers as they came, and multiplied them by its own scale.
    """
    factors = dict(sent.factors)
    for name in factors.keys() & layers:
        found, rank = factors[name], factors[name].rank
        numbers = found.with_scale(written(rank))
        factors[name] = LoraFactors(numbers.A, numbers.B, own(rank))
    return replace(sent, factors=factors)


def _usable(
    where: str, replies: Sequence[Message], read: Callable[[Message], Read]
) -> list[tuple[Message, Read]]:
    """Read replies, and log those that are refused; raise where all are."""
    found, refused = [], []
    for message in replies:
        try:
            found.append((message, read(message)))
        except (AdapterError, SessionError) as error:
            log(WARNING, "%s: refused: %s", where, error)
            refused.append(error)
    if refused and not found:
        raise RoundError(
            f"none of {len(refused)} replies could be used; the first: {refused[0]}"
        )
    return found
