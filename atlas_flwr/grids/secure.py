# SPDX-License-Identifier: Apache-2.0
"""Secure aggregation round a strategy that averages: it sees the mean, and no update.

A grid that asks for a training round in two steps. First the clients train, keep what
they learned, and answer with a fresh public key. Then each of those that answered gets
the others' keys, and sends its weighted update under a mask for every pair, which
cancel in the sum (Bonawitz et al. 2017, "Practical secure aggregation", section 4). The
strategy gets one reply: the weighted mean, with the sum of the weights. The client's
side is :func:`atlas_flwr.client_apps.secure.secure_mod`.

Where we deviate: no secret shares, and so no recovery. Who fails or is late while it
trains, which is most of the time, has given no key and is left out at no cost. Who is
lost between its key and its masked update makes the sum noise; all replies then are
errors, and the round changes nothing. It is not tried again among the rest: a late
reply and both sums would give away the update of the client that was late.

The server is trusted to pass on keys as they are. They are not signed: a server that
puts keys of its own in their place reads every update. It can also ask the same of
groups that differ by one client. From a server that keeps to the protocol, and
from whoever reads along there, single updates, weights and training metrics are hidden,
as long as two clients at least keep theirs to themselves. Replies to evaluation are
not summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from logging import ERROR
from typing import cast

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Strategy,
)
from numpy.typing import NDArray

from atlas_flwr.errors import AtlasError, DataError
from atlas_flwr.grids.delegation import DelegatingGrid
from atlas_flwr.grids.resumable import Resumable
from atlas_flwr.log import log
from atlas_flwr.protocol.replies import reason_of
from atlas_flwr.protocol.sums import SECURE, SumLayout

__all__ = ["SecureGrid"]

AVERAGES = {
    kind.aggregate_train for kind in (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi)
}
FEWEST = 2
_REFUSED = 0


class SecureGrid(DelegatingGrid):
    """Give a strategy the mean of a training round, and no single update.

    Start the strategy with it, and make the ClientApp with ``mods=[secure_mod]``, from
    :mod:`atlas_flwr.client_apps.secure`::

        strategy.start(grid=SecureGrid(grid, strategy), initial_arrays=arrays)

    Parameters
    ----------
    grid : Grid
        Flower's grid, or another around it that waits for all replies.
    strategy : Strategy
        What is started: FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi, a class
        of yours with the ``aggregate_train`` of one of these, or SplitLora for whole
        clients. One that has an attribute ``single_replies`` tells by it why it needs
        single replies; empty means that it does not.
    fraction_bits : int
        Bits after the point, 1 to 52. With 32 a number times its weight may be up to
        2^31 / n for n clients, to 2^-33 exactly.
    averages : bool
        Take another strategy's word that it only averages, by ``weighted_by_key``.

    Raises
    ------
    AtlasError
        If the strategy needs single replies.
    DataError
        If the bits are out of range.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: Strategy,
        *,
        fraction_bits: int = 32,
        averages: bool = False,
    ) -> None:
        super().__init__(grid)
        while isinstance(strategy, Resumable):
            strategy = strategy.inner
        _check_strategy(strategy, averages)
        self.fraction_bits = fraction_bits
        self.weighted_by_key = getattr(strategy, "weighted_by_key", "num-examples")
        self.arrayrecord_key = getattr(strategy, "arrayrecord_key", "arrays")
        SumLayout.of(ArrayRecord(), FEWEST, fraction_bits, self.weighted_by_key)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages; for training, return the mean of their replies as one.

        Parameters
        ----------
        messages : Iterable[Message]
            Training messages, which all bring the same arrays, or any others, which are
            passed on.
        timeout : float, optional
            Seconds to wait in each of the two steps.

        Returns
        -------
        Iterable[Message]
            The mean, as if the first client had sent it, and the errors of those that
            did not train; where there is no mean, errors alone.

        Raises
        ------
        AtlasError
            If the messages' arrays differ, or a client answers without a mask.
        """
        out = list(messages)
        kinds = {message.metadata.message_type.partition(".")[0] for message in out}
        if MessageType.TRAIN not in kinds:
            return self.grid.send_and_receive(out, timeout=timeout)
        layout = SumLayout.of(
            _common_arrays(out), len(out), self.fraction_bits, self.weighted_by_key
        )
        asked = [self._question(message, layout) for message in out]
        trained = list(self.grid.send_and_receive(asked, timeout=timeout))
        failed = [reply for reply in trained if reply.has_error()]
        offers = {
            reply.metadata.src_node_id: _offer(reply)
            for reply in trained
            if not reply.has_error()
        }
        group = [m for m in out if m.metadata.dst_node_id in offers]
        try:
            names = _common_metrics(offers)
            vectors = self._vectors(group, offers, timeout)
            mean = layout.mean(vectors, names)
        except DataError as error:
            log(ERROR, "secure sum: no mean of this round: %s", error)
            reason = f"no mean of this round: {error}"
            refused = [Message(Error(_REFUSED, reason), reply_to=m) for m in group]
            return [*failed, *refused]
        content = RecordDict({self.arrayrecord_key: mean.arrays})
        content["metrics"] = mean.metrics
        return [*failed, Message(content, reply_to=group[0])]

    def _question(self, message: Message, layout: SumLayout) -> Message:
        content = RecordDict(dict(message.content))
        content[SECURE] = ConfigRecord(
            {
                "clients": layout.clients,
                "fraction-bits": layout.bits,
                "weighted-by": layout.weighted_by,
            }
        )
        return _like(message, content)

    def _vectors(
        self,
        group: Sequence[Message],
        offers: Mapping[int, ConfigRecord],
        timeout: float | None,
    ) -> list[NDArray[np.uint64]]:
        """Give the group's keys to all of it, and return their masked updates."""
        public = [cast(bytes, offer["public-key"]) for offer in offers.values()]
        nodes = [str(node) for node in offers]
        keys = ConfigRecord({"nodes": nodes, "public-keys": public})
        asked = [_like(message, RecordDict({SECURE: keys})) for message in group]
        replies = list(self.grid.send_and_receive(asked, timeout=timeout))
        lost = {m.metadata.dst_node_id: "no reply came in time" for m in group}
        vectors = []
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                lost[node] = reason_of(reply)
            elif lost.pop(node, None) is not None:
                vectors.append(reply.content.array_records[SECURE]["masked"].numpy())
        if lost:
            told = "; ".join(f"node {node}: {why}" for node, why in lost.items())
            raise DataError(
                f"{len(lost)} of {len(group)} clients gave a key and no masked update, "
                f"without which the sum of the others is noise ({told})"
            )
        return vectors


def _check_strategy(strategy: Strategy, averages: bool) -> None:
    why = getattr(strategy, "single_replies", None)
    known = averages or type(strategy).aggregate_train in AVERAGES
    if not why and (known or why == ""):
        return
    unknown = "its aggregate_train is not known to be a weighted mean of the replies"
    raise AtlasError(
        f"{type(strategy).__name__} cannot be given sums alone: {why or unknown}; "
        "secure sums are for FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi, "
        "and what derives from them"
        + ("" if why else ", or say averages=True if it is one")
    )


def _common_arrays(messages: Sequence[Message]) -> ArrayRecord:
    """Return the arrays that all messages bring."""
    found = [[*message.content.array_records.values()] for message in messages]
    if any(len(records) != 1 or not records[0] for records in found):
        raise AtlasError(
            "a secure sum wants one ArrayRecord in each message, not empty"
        )
    first = found[0][0]
    for message, (record,) in zip(messages, found, strict=True):
        if record is not first and record.object_id != first.object_id:
            raise AtlasError(
                f"node {message.metadata.dst_node_id} is sent other arrays than node "
                f"{messages[0].metadata.dst_node_id}: one mean cannot serve both; "
                "secure sums are for strategies that send the same to all, at one rank"
            )
    return first


def _offer(reply: Message) -> ConfigRecord:
    offer = reply.content.config_records.get(SECURE)
    if offer is None:
        raise AtlasError(
            f"node {reply.metadata.src_node_id} answered with its update in plain: its "
            "ClientApp does not mask; make it with mods=[secure_mod], from "
            "atlas_flwr.client_apps.secure"
        )
    return offer


def _common_metrics(offers: Mapping[int, ConfigRecord]) -> list[str]:
    """Return the names of the metrics that all clients bring."""
    if len(offers) < FEWEST:
        raise DataError(
            f"no more than {len(offers)} of the clients trained; a sum of fewer than "
            f"{FEWEST} hides nothing"
        )
    names = {n: cast(list[str], offer["metrics"]) for n, offer in offers.items()}
    node, first = next(iter(names.items()))
    for other, found in names.items():
        if found != first:
            raise DataError(
                f"node {other} has metrics {found} and node {node} {first}; all must "
                "have the same"
            )
    return first


def _like(message: Message, content: RecordDict) -> Message:
    told = message.metadata
    return Message(
        content,
        told.dst_node_id,
        told.message_type,
        ttl=told.ttl,
        group_id=told.group_id,
    )
