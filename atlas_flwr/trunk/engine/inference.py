# SPDX-License-Identifier: Apache-2.0
"""Texts that are being written: their keys and values, within limits of their own.

No optimiser is in this, and no gradient. What is forgotten for want of room is no loss:
the client sends its text again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atlas_flwr.errors import CacheLost, TrunkError
from atlas_flwr.split.slice_cache import SliceCache
from atlas_flwr.trunk.engine.table import Limits
from atlas_flwr.types import Continuation, TrunkCall

__all__ = ["KeptTexts", "TextCaches"]


@dataclass
class KeptTexts:
    """Texts of one generation.

    Attributes
    ----------
    cache : SliceCache
        Keys and values of all positions so far.
    updates : int
        Of the adapters, when their first position came: later ones make them stale.
    turn : int
        Number of the call that is due.
    mask : Tensor, optional
        Shape (B, T).
    last : Tensor, optional
        Shape (B, 1): the last position's number, where the client numbers them.
    drafts : bool
        Whether positions may be taken back.
    used : float
        Seconds on the clock.
    nbytes : int
        Bytes that it held after its last call.
    """

    cache: SliceCache
    updates: int = 0
    turn: int = 0
    mask: Tensor | None = field(default=None, repr=False)
    last: Tensor | None = field(default=None, repr=False)
    drafts: bool = False
    used: float = 0.0
    nbytes: int = 0

    def measured(self) -> int:
        """Count the bytes that it holds."""
        own = [t for t in (self.mask, self.last) if t is not None]
        return self.cache.nbytes + sum(t.nbytes for t in own)

    def inputs(self, call: TrunkCall, place: Continuation) -> dict[str, Any]:
        """Move rows, count on, and return what the blocks are given beside ``hidden``.

        Before that, drafts that were refused are taken back.

        Raises
        ------
        TrunkError
            If rows or shapes do not fit; nothing that is kept is then worth keeping.
        """
        if place.order is not None:
            self._reorder(place.order.to(call.hidden.device))
        if place.past is not None:
            self._take_back(place.past)
        rows, count = call.hidden.shape[:2]
        self.mask = self._mask(call, rows, count)
        positions = call.position_ids
        if positions is None and self.last is not None:
            steps = torch.arange(1, count + 1, device=self.last.device)
            positions = self.last + steps
        self.last = None if positions is None else positions[:, -1:]
        for name, tensor, width in (
            ("attention_mask", self.mask, self.cache.get_seq_length() + count),
            ("position_ids", positions, count),
        ):
            if tensor is not None and tensor.shape != (rows, width):
                raise TrunkError(
                    f"{name} of shape {tuple(tensor.shape)} for {count} new positions "
                    f"of {rows} texts; it must be ({rows}, {width})"
                )
        return {
            "attention_mask": self.mask,
            "position_ids": positions,
            "cache": self.cache,
        }

    def _take_back(self, past: int) -> None:
        held = self.cache.get_seq_length()
        if not held:
            self.cache.activate_past_recording()  # type: ignore[no-untyped-call]
            self.drafts = True
            return
        if not 0 <= past <= held:
            raise TrunkError(f"{past} positions of the {held} that are kept")
        self.cache.crop(past - held)  # by 0, too: windows drop what they need no more
        if past < held:
            self.last = None  # the call says how it is numbered
            self.mask = None if self.mask is None else self.mask[:, :past]

    def _mask(self, call: TrunkCall, rows: int, count: int) -> Tensor | None:
        if call.attention_mask is not None or self.mask is None:
            return call.attention_mask
        return torch.cat([self.mask, self.mask.new_ones(rows, count)], dim=-1)

    def _reorder(self, order: Any) -> None:
        held = self.cache.rows
        if order.dim() != 1 or not bool(((order >= 0) & (order < held)).all()):
            raise TrunkError(
                f"an order of shape {tuple(order.shape)} for {held} texts; it "
                "names a row of the call before for each row of this one"
            )
        self.cache.reorder_cache(order)
        if self.mask is not None:
            self.mask = self.mask.index_select(0, order)
        if self.last is not None:
            self.last = self.last.index_select(0, order)


class TextCaches:
    """What is kept of all sessions' texts; safe to use from many threads.

    Over a limit the texts that were used longest ago are forgotten, and so are those
    that were idle for longer than a session may be.

    Parameters
    ----------
    limits : Limits
        What to hold at most.
    clock : Callable[[], float]
        Seconds.

    Attributes
    ----------
    evicted : int
        Texts that were forgotten for want of room.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.clock = clock
        self.evicted = 0
        self._held: OrderedDict[tuple[Hashable, int], KeptTexts] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        with self._lock:
            return sum(kept.nbytes for kept in self._held.values())

    def take(
        self,
        owner: Hashable,
        place: Continuation,
        made: Callable[[], KeptTexts],
        updates: int = 0,
    ) -> KeptTexts:
        """Take texts out for a call; a call that fails leaves nothing behind.

        Parameters
        ----------
        owner : Hashable
            Their session.
        place : Continuation
            Which, and which call.
        made : Callable[[], KeptTexts]
            Begins new ones, for call 0.
        updates : int
            Of the session's adapters, so far.

        Raises
        ------
        CacheLost
            If they are not there, another call is due, or the adapters have changed.
        """
        with self._lock:
            kept = self._held.pop((owner, place.texts), None)
        if place.turn == 0:
            return made()
        if kept is None:
            raise CacheLost(
                f"texts {place.texts} are not kept: they were forgotten for others "
                "(Limits.caches, Limits.cache_bytes), or never came; send them whole"
            )
        if kept.turn != place.turn or kept.updates != updates:
            raise CacheLost(
                f"call {place.turn} of texts {place.texts}, at whose adapters after "
                f"{updates} updates; kept are those before call {kept.turn}, after "
                f"{kept.updates}: send them whole"
            )
        if (place.past is not None) != kept.drafts:
            begun = "with" if kept.drafts else "without"
            raise CacheLost(
                f"texts {place.texts} were begun {begun} drafts; send them whole"
            )
        return kept

    def keep(
        self,
        owner: Hashable,
        texts: int,
        kept: KeptTexts,
        is_open: Callable[[], bool] = lambda: True,
    ) -> None:
        """Put texts back after a call, and forget others where there is no room.

        Those of an owner that is not open any more have been forgotten, and stay so.
        """
        kept.turn += 1
        kept.used, kept.nbytes = self.clock(), kept.measured()
        with self._lock:
            if is_open():
                self._held[owner, texts] = kept
            self._make_room()

    def forget(self, owner: Hashable, texts: int | None = None) -> None:
        """Forget texts of a session, or all of its own."""
        with self._lock:
            for key in list(self._held):
                if key[0] == owner and texts in (None, key[1]):
                    del self._held[key]

    def _make_room(self) -> None:
        oldest = self.clock() - self.limits.idle_seconds
        held = sum(kept.nbytes for kept in self._held.values())
        for key, kept in list(self._held.items()):  # longest unused first
            full = len(self._held) > self.limits.caches
            if not full and held <= self.limits.cache_bytes and kept.used >= oldest:
                break
            del self._held[key]
            held -= kept.nbytes
            self.evicted += 1
