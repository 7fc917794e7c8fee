# SPDX-License-Identifier: Apache-2.0
"""Keys and values of some of a model's blocks, and whether a model can do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

__all__ = ["SliceCache", "keeps_cache"]

_KNOWN = {DynamicLayer, DynamicSlidingWindowLayer}  # attention, and nothing beside it
TEXT, PROMPT, PADDING = 5, 3, 2  # positions that are tried


class SliceCache(DynamicCache):
    """A cache of the blocks of a part, which know their number in the whole model.

    Parameters
    ----------
    config : PreTrainedConfig
        The part's own: of its blocks alone.
    start : int
        Its first block, counted in the whole model.
    """

    def __init__(self, config: Any, start: int) -> None:
        super().__init__(config=config)
        self.start = start

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Add what is new to a block's keys and values; return all of them."""
        here = layer_idx - self.start
        made = super().update(key_states, value_states, here, *args, **kwargs)
        keys, values = made
        return keys, values

    @property
    def is_known(self) -> bool:
        """Whether its blocks have attention alone, whole or in a sliding window."""
        return all(type(layer) in _KNOWN for layer in self.layers)

    @property
    def rows(self) -> int:
        """Texts that it holds."""
        return next((len(t.keys) for t in self._attention if t.keys is not None), 0)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        held = [t for layer in self._attention for t in (layer.keys, layer.values)]
        return sum(t.untyped_storage().nbytes() for t in held if t is not None)

    @property
    def _attention(self) -> list[DynamicLayer]:
        return cast("list[DynamicLayer]", self.layers)


@torch.no_grad()
def keeps_cache(
    run: Callable[..., Tensor],
    made: Callable[[], SliceCache],
    like: Tensor,
    width: int,
    numbered: bool,
) -> bool:
    """Try whether blocks go on from a cache as if they had run the whole text.

    Parameters
    ----------
    run : Callable[..., Tensor]
        Runs them on ``inputs_embeds``, shape (B, T, D), with ``attention_mask``,
        ``position_ids`` and ``cache``.
    made : Callable[[], SliceCache]
        Makes an empty cache of theirs.
    like : Tensor
        Any of their parameters.
    width : int
        D.
    numbered : bool
        Whether they take positions.

    Returns
    -------
    bool
        Whether the answers are equal, to the rounding of the blocks' dtype.
    """
    cache = made()
    if not cache.is_known:
        return False
    drawn = torch.randn(2, TEXT, width, generator=torch.Generator().manual_seed(0))
    hidden = drawn.to(like)
    mask = torch.ones(2, TEXT, dtype=torch.long, device=like.device)
    mask[0, :PADDING] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def answer(start: int, stop: int, held: SliceCache | None) -> Tensor:
        return run(
            inputs_embeds=hidden[:, start:stop],
            attention_mask=mask[:, :stop],
            position_ids=positions[:, start:stop] if numbered else None,
            cache=held,
        )

    wanted = answer(0, TEXT, None)[:, PROMPT:]
    answer(0, PROMPT, cache)
    steps = [answer(n, n + 1, cache) for n in range(PROMPT, TEXT)]
    got = torch.cat(steps, dim=1)
    added = (wanted.float() - hidden[:, PROMPT:].float()).abs().max()
    tolerance = 0.1 if like.element_size() < 4 else 1e-4
    return bool((got.float() - wanted.float()).abs().max() <= tolerance * added)
