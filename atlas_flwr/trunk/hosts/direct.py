# SPDX-License-Identifier: Apache-2.0
"""A chain whose hosts hand to each other what they compute, and not to their guest.

The guest calls the same hosts in the same order as in any chain; what crosses between
two of them leaves its own link alone. Each makes of it the numbers that it would have
made of the guest's, and a call that is made again is handed over again: exact once, at
each host, by the step's number.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from atlas_flwr.errors import ConfigError
from atlas_flwr.trunk.host import Endpoint
from atlas_flwr.trunk.hosts.chain import ChainTrunk
from atlas_flwr.trunk.seams import Handover, Seams, seams_between
from atlas_flwr.trunk.transports.framed import FramedTrunk
from atlas_flwr.types import Continuation, LossReply, TrunkCall

__all__ = ["DirectChain", "introduced"]


@dataclass(frozen=True)
class DirectChain(ChainTrunk):
    """Sessions that were opened as each other's neighbours.

    Parameters
    ----------
    links : Sequence[FramedTrunk]
        In the order of their blocks. In a vanilla split the last ends the model.
    """

    links: Sequence[FramedTrunk]

    def forward(self, call: TrunkCall) -> Tensor:
        """Run all blocks (see :class:`~atlas_flwr.types.TrunkClient`)."""
        *first, last = self.links
        over, call = self._along(first, call)
        return last.forward(call, over)

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        """Back-propagate a step, through the last link first."""
        *first, last = self.links
        ticket = _ticket()
        last.backward(step, grad, Handover(ticket, goes=bool(first)))
        return self._returned(first, step, grad, ticket)

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model in the last link, which alone is shown the labels."""
        *first, last = self.links
        step = None if labels is None else call.step
        over, call = self._along(first, replace(call, step=step))
        over = replace(over, goes=step is not None)
        reply = last.loss(call, labels, logits_to_keep, over)
        if step is None:
            return reply
        grad = self._returned(first, step, call.hidden, over.ticket)
        return replace(reply, grad=grad)

    def extend(self, call: TrunkCall, place: Continuation, keep: int = 0) -> Tensor:
        """Go on with texts, of which each link keeps its blocks' keys and values."""
        *first, last = self.links
        over = Handover(_ticket(), goes=True)
        for link in first:
            link.extend(call, place, 0, over)
            over = replace(over, comes=True)
        return last.extend(call, place, keep, replace(over, goes=False))

    def _along(
        self, links: Sequence[FramedTrunk], call: TrunkCall
    ) -> tuple[Handover, TrunkCall]:
        """Run all links but the last; return how that is called, and with what."""
        over = Handover(_ticket(), goes=True)
        for link in links:
            link.forward(call, over)
            # What comes before the next link is this one, which learns.
            call, over = replace(call, head_learns=True), replace(over, comes=True)
        return replace(over, goes=False), call

    def _returned(
        self, links: Sequence[FramedTrunk], step: int, like: Tensor, ticket: str
    ) -> Tensor | None:
        """Back-propagate what the last link has handed on; ``like`` does not cross."""
        back: Tensor | None = None
        for number, link in reversed([*enumerate(links)]):
            over = Handover(ticket, comes=True, goes=number > 0)
            back = link.backward(step, like, over)
        return back


def introduced(places: Sequence[Endpoint]) -> Sequence[Seams | None]:
    """Make the hosts of a session each other's neighbours; one alone has none.

    Raises
    ------
    ConfigError
        If one of several asks for certificates.
    """
    if len(places) == 1:
        return [None]
    if any(place.shown for place in places):
        raise ConfigError(
            [
                "peer-chains='direct': a host of a chain asks for certificates "
                "(atlas-flwr trunk --client-ca), and hosts show each other none; set "
                "peer-chains='relay', or start it without --client-ca"
            ],
            ["peer-chains"],
        )
    return seams_between([(place.address, place.ca) for place in places])


def _ticket() -> str:
    return secrets.token_hex(8)
