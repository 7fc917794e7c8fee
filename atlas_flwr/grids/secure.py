# SPDX-License-Identifier: Apache-2.0
"""Secure aggregation round a strategy that averages: it sees the mean, and no update.

A grid that asks for a training round in two steps. First the clients train, keep what
they learned, and answer with a fresh public key. Then each of those that answered gets
the others' keys, and sends its weighted update under a mask for every pair, which
cancel in the sum (Bonawitz et al. 2017, "Practical secure aggregation", section 4). The
strategy gets one reply: the weighted mean, with the sum of the weights. The client's
side is :func:`atlas_flwr.client_apps.secure.secure_mod`. A strategy that has clusters
names one in each message, with how its members' products are sketched
(:mod:`atlas_flwr.protocol.sketches`), and gets one reply for each.

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

from collections.abc import Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Strategy,
)

from atlas_flwr.errors import AtlasError
from atlas_flwr.grids.delegation import DelegatingGrid
from atlas_flwr.grids.resumable import Resumable
from atlas_flwr.grids.sum_group import SumGroup
from atlas_flwr.protocol.sums import FEWEST, SECURE, SumLayout

__all__ = ["SecureGrid"]

AVERAGES = {
    kind.aggregate_train for kind in (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi)
}


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
        of yours with the ``aggregate_train`` of one of these, SplitLora for whole
        clients, or SecureAtlas. One that has an attribute ``single_replies`` tells by
        it why it needs single replies; empty means that it does not.
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
            Training messages, which all bring the same arrays (in each cluster, where
            they name one), or any others, which are passed on.
        timeout : float, optional
            Seconds to wait in each of the two steps.

        Returns
        -------
        Iterable[Message]
            The mean of each group, as if its first client had sent it, and the errors
            of those that did not train; where there is no mean, errors alone.

        Raises
        ------
        AtlasError
            If the messages' arrays differ, or a client answers without a mask.
        """
        out = list(messages)
        kinds = {message.metadata.message_type.partition(".")[0] for message in out}
        if MessageType.TRAIN not in kinds:
            return self.grid.send_and_receive(out, timeout=timeout)
        groups = self._groups(out)
        asked = [message for group in groups for message in group.questions()]
        trained = list(self.grid.send_and_receive(asked, timeout=timeout))
        offers = {
            reply.metadata.src_node_id: _offer(reply)
            for reply in trained
            if not reply.has_error()
        }
        met = [group for group in groups if group.meets(offers)]
        asked = [message for group in met for message in group.exchanges()]
        masked = self.grid.send_and_receive(asked, timeout=timeout) if asked else []
        replies = {reply.metadata.src_node_id: reply for reply in masked}
        failed = [reply for reply in trained if reply.has_error()]
        for group in groups:
            failed += group.answers(replies, self.arrayrecord_key)
        return failed

    def _groups(self, messages: Sequence[Message]) -> list[SumGroup]:
        """Sort messages by the sum that they are for."""
        found: dict[str, list[Message]] = {}
        for message in messages:
            told = message.content.config_records.get(SECURE, ConfigRecord())
            found.setdefault(str(told.get("group", "")), []).append(message)
        return [
            SumGroup.of(members, self.fraction_bits, self.weighted_by_key)
            for members in found.values()
        ]


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


def _offer(reply: Message) -> ConfigRecord:
    offer = reply.content.config_records.get(SECURE)
    if offer is None:
        raise AtlasError(
            f"node {reply.metadata.src_node_id} answered with its update in plain: its "
            "ClientApp does not mask; make it with mods=[secure_mod], from "
            "atlas_flwr.client_apps.secure"
        )
    return offer
