# SPDX-License-Identifier: Apache-2.0
"""What a client holds of texts that it writes on: caches, and what the trunk was told.

Head and tail keep keys and values here. The trunk keeps its own; it is told of new
positions alone, and when beams move, of the rows that they moved from; when drafts are
refused, of the positions that are left. The hidden states that were sent are kept as
well: a trunk that has lost its cache gets them again.

Letters: B texts, T positions so far, n new ones, D the model's width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from atlas_flwr.errors import CacheLost
from atlas_flwr.split.part import part_info
from atlas_flwr.split.slice_cache import SliceCache
from atlas_flwr.types import Continuation, TrunkCall, TrunkClient

__all__ = ["SplitCache"]


class SplitCache(Cache):
    """Caches of both sides of the cut, as one that ``generate`` can use.

    Made by :meth:`~atlas_flwr.split.SplitModel.new_cache`. Given to ``generate`` as
    ``past_key_values``, it lets a later call go on where an earlier one has ended.

    Parameters
    ----------
    head, tail : PreTrainedModel
        The client's parts; ``tail`` is ``None`` where the trunk ends the model.
    trunk : TrunkClient
        The client's session.
    texts : int
        Its number; two of one session must not be equal.
    learned : int
        Positions of a prompt that stands before each text. They are kept and sent with
        the first of the text's own, once.

    Attributes
    ----------
    rebuilt : int
        How often the trunk had lost its side, and was sent everything again.
    """

    def __init__(
        self,
        head: Any,
        tail: Any | None,
        trunk: TrunkClient,
        texts: int,
        learned: int = 0,
    ) -> None:
        self.head = part_cache(head)
        self.tail = None if tail is None else part_cache(tail)
        own = [] if self.tail is None else self.tail.layers
        super().__init__(layers=[*self.head.layers, *own])
        self.trunk = trunk
        self.texts = texts
        self.learned = learned
        self.rebuilt = 0
        self._turn = 0
        self._order: Tensor | None = None
        self._hidden: Tensor | None = None
        self._mask: Tensor | None = None
        self._positions: Tensor | None = None
        self._drafts = False
        self._is_cropped = False

    def cross(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        keep: int = 0,
    ) -> Tensor:
        """Let the trunk go on by new positions.

        Parameters
        ----------
        hidden : Tensor
            Shape (B, n, D).
        mask : Tensor, optional
            Shape (B, T + n).
        positions : Tensor, optional
            Shape (B, n) or (1, n).
        keep : int
            How many of the last positions are to be answered; 0: all that are new.

        Returns
        -------
        Tensor
            Hidden states (B, n, D); of a trunk that ends the model logits (B, keep, V).
        """
        keep = keep or hidden.shape[1]
        hidden = self.trunk.leaving(hidden, mask)
        past = 0 if self._hidden is None else self._hidden.shape[1]
        new = self._news(hidden, mask, positions)
        turn, self._turn = self._turn, 0  # unless it answers, it is sent everything
        order, self._order = self._order, None
        if turn:
            try:
                place = Continuation(self.texts, turn, order, self._told(past))
                answer = self.trunk.extend(new, place, keep)
            except CacheLost:
                self.rebuilt += 1
                turn = 0
        if not turn:
            assert self._hidden is not None
            whole = TrunkCall(self._hidden, self._mask, self._positions)
            place = Continuation(self.texts, 0, past=self._told(0))
            answer = self.trunk.extend(whole, place, keep)
        self._turn = turn + 1
        return answer.to(hidden.device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many positions of the texts are held, those of a prompt not."""
        return max(super().get_seq_length(layer_idx) - self.learned, 0)

    def restart(self) -> None:
        """Forget all positions: those that follow are the first."""
        super().reset()  # type: ignore[no-untyped-call]
        self._hidden = self._mask = self._positions = self._order = None
        self._turn = 0

    def close(self) -> None:
        """Let the trunk forget its side; used again, it is sent everything again."""
        if self._turn:
            self.trunk.forget(self.texts)
        self._turn = 0

    def reorder_cache(self, beam_idx: Any) -> None:
        """Take rows of the texts, any of them more than once, in an order.

        Parameters
        ----------
        beam_idx : Tensor
            Shape (B',), int64: the row that each was.
        """
        super().reorder_cache(beam_idx)
        if self._hidden is None:
            return
        rows: Tensor = beam_idx.to(self._hidden.device)
        before = self._order
        order = rows if before is None else before.index_select(0, rows)
        # In its place a row need not be moved.
        still = torch.arange(len(order), device=order.device)
        moved = len(order) != len(self._hidden) or not torch.equal(order, still)
        self._order = order if moved or before is not None else None
        self._hidden = self._hidden.index_select(0, rows)
        if self._mask is not None:
            self._mask = self._mask.index_select(0, rows)
        if self._positions is not None:
            self._positions = self._positions.index_select(0, rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        """See :meth:`reorder_cache`."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Take each text several times."""
        if self._hidden is not None:
            rows = torch.arange(len(self._hidden), device=self._hidden.device)
            self.reorder_cache(rows.repeat_interleave(repeats))

    def activate_past_recording(self) -> None:
        """Expect drafts: positions of which some will be taken back."""
        super().activate_past_recording()  # type: ignore[no-untyped-call]
        self._drafts = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last positions; the trunk is told with the next ones.

        Parameters
        ----------
        tokens_to_remove : int
            Minus their number.
        """
        super().crop(tokens_to_remove)
        if self._hidden is None or not tokens_to_remove:
            return
        self._drafts, self._is_cropped = True, True
        self._hidden = self._hidden[:, :tokens_to_remove]
        if self._mask is not None:
            self._mask = self._mask[:, :tokens_to_remove]
        if self._positions is not None:
            self._positions = self._positions[:, :tokens_to_remove]

    def _told(self, past: int) -> int | None:
        return past if self._drafts else None

    def _news(
        self, hidden: Tensor, mask: Tensor | None, positions: Tensor | None
    ) -> TrunkCall:
        """Take note of new positions; return what the trunk cannot know of them."""
        rows, count = hidden.shape[:2]
        past = 0 if self._hidden is None else self._hidden.shape[1]
        before, last = self._mask, self._positions
        counted = None if self._is_cropped else last  # as the trunk knows it
        self._is_cropped = False
        self._hidden = hidden if self._hidden is None else _joined(self._hidden, hidden)
        if mask is None and before is not None:
            mask = before.new_ones(rows, past + count)
        if positions is None and last is not None:
            positions = torch.arange(past, past + count, device=hidden.device)[None]
        if positions is not None:
            positions = positions.expand(rows, -1)
            known = [] if last is None else [last]
            self._positions = torch.cat([*known, positions], dim=-1)
        self._mask = mask
        return TrunkCall(
            hidden,
            None if mask is None or _goes_on(before, mask, count) else mask,
            None if _counts_on(counted, positions) else positions,
        )


def part_cache(part: Any) -> SliceCache:
    """Make an empty cache of a part's blocks."""
    return SliceCache(part.config, part_info(part).start)


def _joined(before: Tensor, new: Tensor) -> Tensor:
    return torch.cat([before, new], dim=1)


def _goes_on(before: Tensor | None, mask: Tensor, count: int) -> bool:
    """Tell whether a mask is the one before, and real from there on."""
    past = mask.shape[1] - count
    same = (mask[:, :past] == (1 if before is None else before)).all()
    return bool(same) and bool((mask[:, past:] == 1).all())


def _counts_on(last: Tensor | None, positions: Tensor | None) -> bool:
    """Tell whether positions count on from those before."""
    if positions is None:
        return True
    if last is None or not last.shape[1]:
        return False
    steps = torch.arange(1, positions.shape[1] + 1, device=positions.device)
    return bool((positions == last[:, -1:] + steps).all())
