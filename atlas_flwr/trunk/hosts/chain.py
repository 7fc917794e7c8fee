# SPDX-License-Identifier: Apache-2.0
"""A trunk in several places: each holds a range of its blocks, in order.

The client carries what one answers to the next, and gradients back the other way, so
that each place sees what one trunk would see at its blocks, and steps its own adapters:
the numbers are those of one trunk. A lossy codec rounds once more at each seam.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from torch import Tensor

from atlas_flwr.errors import TrunkError
from atlas_flwr.trunk.credentials import Credentials
from atlas_flwr.trunk.host import Door
from atlas_flwr.trunk.passing import PassingTrunk
from atlas_flwr.trunk.transports.addresses import connect
from atlas_flwr.trunk.transports.framed import FramedTrunk
from atlas_flwr.types import Continuation, LossReply, Role, TrunkCall, TrunkClient
from atlas_flwr.wire.accounts import ByteMeter

__all__ = ["ChainTrunk", "codecs_of", "connect_all", "links_of"]


@dataclass(frozen=True)
class ChainTrunk(TrunkClient):
    """Sessions that hold the blocks of one trunk between them.

    Parameters
    ----------
    links : Sequence[TrunkClient]
        In the order of their blocks. In a vanilla split the last ends the model.

    Raises
    ------
    TrunkError
        If there is none.
    """

    links: Sequence[TrunkClient]

    def __post_init__(self) -> None:
        if not self.links:
            raise TrunkError("a chain of no trunks; give it one session at least")

    @property
    def meter(self) -> ByteMeter:
        """What has crossed, to and from all of them."""
        up: Counter[Role] = Counter()
        down: Counter[Role] = Counter()
        for link in self.links:
            meter = getattr(link, "meter", None)
            if isinstance(meter, ByteMeter):
                up += meter.up
                down += meter.down
        return ByteMeter(up, down)

    def forward(self, call: TrunkCall) -> Tensor:
        """Run all blocks (see :class:`~atlas_flwr.types.TrunkClient`)."""
        return self._before(self.links, call).hidden

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        """Back-propagate a step, through the last link first."""
        return self._back(self.links, step, grad)

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model in the last link."""
        *first, last = self.links
        step = None if labels is None else call.step
        reached = self._before(first, replace(call, step=step))
        reply = last.loss(reached, labels, logits_to_keep)
        if reply.grad is None or step is None:
            return reply
        return replace(reply, grad=self._back(first, step, reply.grad))

    @property
    def keeps_caches(self) -> bool:
        """Whether all of them do."""
        return all(link.keeps_caches for link in self.links)

    def extend(self, call: TrunkCall, place: Continuation, keep: int = 0) -> Tensor:
        """Go on with texts, of which each link keeps its blocks' keys and values."""
        *first, last = self.links
        for link in first:
            call = replace(call, hidden=link.extend(call, place))
        return last.extend(call, place, keep)

    def forget(self, texts: int) -> None:
        """Free what they keep of texts."""
        for link in self.links:
            link.forget(texts)

    def _before(self, links: Sequence[TrunkClient], call: TrunkCall) -> TrunkCall:
        def ran(call: TrunkCall, link: TrunkClient) -> TrunkCall:
            # What comes before the next link is this one, which learns.
            return replace(call, hidden=link.forward(call), head_learns=True)

        return reduce(ran, links, call)

    def _back(
        self, links: Sequence[TrunkClient], step: int, grad: Tensor
    ) -> Tensor | None:
        back: Tensor | None = grad
        for link in reversed(links):
            if back is None:
                raise TrunkError("a link of a chain kept the gradient of its step")
            back = link.backward(step, back)
        return back


def connect_all(
    doors: Sequence[Door],
    codec: str = "raw",
    *,
    spares_padding: bool = False,
    timeout: float | None = None,
    shown: Credentials | None = None,
    chain: Callable[[Sequence[FramedTrunk]], ChainTrunk] = ChainTrunk,
) -> TrunkClient:
    """Connect to a session, wherever its blocks are.

    Parameters
    ----------
    doors : Sequence[Door]
        Where it is, in the order of its blocks.
    codec, spares_padding : str, bool
        See :func:`atlas_flwr.trunk.connect`.
    timeout : float, optional
        Seconds to wait for each answer, if not as long as the transport does.
    shown : Credentials, optional
        This client's; those that speak TLS are shown them, if they ask.
    chain : Callable[[Sequence[FramedTrunk]], ChainTrunk]
        Makes one trunk of several places, as they were opened.

    Raises
    ------
    TrunkError
        As there; and if there is no door.
    """
    links = []
    for door in doors:
        link = connect(
            door.address,
            door.token,
            door.ca or None,
            codec,
            spares_padding=spares_padding,
            shown=shown if door.address.startswith("grpcs://") else None,
        )
        if timeout is not None:
            link.timeout = timeout
        links.append(link)
    return links[0] if len(links) == 1 else chain(links)


def links_of(trunk: TrunkClient) -> list[FramedTrunk]:
    """Return the ways by which a client's calls leave it, in the order of blocks.

    There are several to a trunk in several places, and none where calls cross without
    frames.
    """
    if isinstance(trunk, PassingTrunk):
        return links_of(trunk.trunk)
    if isinstance(trunk, ChainTrunk):
        return [way for link in trunk.links for way in links_of(link)]
    return [trunk] if isinstance(trunk, FramedTrunk) else []


def codecs_of(trunk: TrunkClient) -> str:
    """Name the codecs by which a client calls its trunk, with ``+`` between."""
    return "+".join(dict.fromkeys(link.codec.name for link in links_of(trunk)))
