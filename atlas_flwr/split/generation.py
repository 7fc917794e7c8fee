# SPDX-License-Identifier: Apache-2.0
"""Text written by a split model: with caches on both sides of the cut, where it can."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from atlas_flwr.split.passes import run_blocks, takes_positions
from atlas_flwr.split.slice_cache import SliceCache, keeps_cache
from atlas_flwr.split.split_cache import SplitCache, part_cache
from atlas_flwr.split.summary import Summary
from atlas_flwr.types import TrunkClient

__all__ = ["SplitGenerationMixin"]


class SplitGenerationMixin(GenerationMixin):
    """Hugging Face's ``generate`` over a cut: :class:`~atlas_flwr.split.SplitModel`'s.

    Attributes
    ----------
    config, head, tail, trunk, summary, learned_positions
        See :class:`~atlas_flwr.split.SplitModel`.
    """

    config: Any
    head: Any
    tail: Any | None
    trunk: TrunkClient
    summary: Summary | None
    learned_positions = 0
    _texts: Iterator[int]

    def new_cache(self) -> SplitCache:
        """Make an empty cache; given to ``generate`` again and again, it grows.

        Close it when the text has ended, so that the trunk's side is freed at once.

        Raises
        ------
        TypeError
            If the model can do with none: see :attr:`keeps_cache`.
        """
        if not self.keeps_cache:
            raise TypeError(f"{self._uncached()}; generate with use_cache=False")
        own = self.learned_positions
        return SplitCache(self.head, self.tail, self.trunk, next(self._texts), own)

    @cached_property
    def keeps_cache(self) -> bool:
        """Whether the model can go on from a cache: its head is tried."""
        if not SliceCache(self.config, 0).is_known:
            return False
        table = self.head.get_input_embeddings()
        return keeps_cache(
            partial(run_blocks, self.head),
            partial(part_cache, self.head),
            table.weight,
            table.embedding_dim,
            takes_positions(self.head),
        )

    def _uncached(self) -> str:
        """Say why nothing can be cached, if so."""
        if not self.keeps_cache:
            return f"{self.config.model_type} keeps no cache that can be cut"
        if not self.trunk.keeps_caches:
            return f"{type(self.trunk).__name__} keeps no caches"
        return ""

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: SplitCache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Feed ``generate`` what is new to the cache; without one, the whole text."""
        if past_key_values is not None:
            if self._turns_long(past_key_values, input_ids):
                past_key_values.restart()
                kwargs["next_sequence_length"] = None
            cached: Any = GenerationMixin.prepare_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]
            made: dict[str, Any] = cached(
                self,
                input_ids,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                **kwargs,
            )
            return made
        inputs: dict[str, Any] = {"input_ids": input_ids, "logits_to_keep": 1}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
            if takes_positions(self.head):
                positions = attention_mask.long().cumsum(-1) - 1
                inputs["position_ids"] = positions.masked_fill(attention_mask == 0, 0)
        return inputs

    def _turns_long(self, cache: SplitCache, ids: Tensor) -> bool:
        """Tell whether all positions are now to be turned as those of a long text.

        Phi-3's are, once a text has outgrown what it was first trained on; its keys
        have to be made again, as the unsplit model makes them.
        """
        longest = getattr(self.config, "original_max_position_embeddings", None)
        past, own = cache.get_seq_length(), self.learned_positions
        now = ids.shape[1] + own
        return longest is not None and past > 0 and past + own <= longest < now

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the unsplit model does, one crossing a token.

        After the prompt only new positions cross: head, trunk and tail keep the keys
        and values of what came before. With ``use_cache=False``, and where the model or
        the trunk keeps no cache (a warning says so), the whole text crosses for every
        token. Caches grow with the text, whatever ``cache_implementation`` says.

        Raises
        ------
        TypeError
            If only summary positions cross: the trunk has no text to go on with.
        """
        if self.summary is not None:
            raise TypeError(
                "summary positions end in one label; to generate text, let the whole "
                "text cross (summary-positions=0)"
            )
        generate: Any = GenerationMixin.generate  # pyright: ignore[reportAttributeAccessIssue]
        if kwargs.get("past_key_values") is not None:
            return generate(self, *args, **kwargs)
        if not self._wants_cache(*args, **kwargs):
            return generate(self, *args, **kwargs)
        if why := self._uncached():
            said = f"{why}: the whole text crosses for every token"
            warnings.warn(said, stacklevel=2)
            return generate(self, *args, **{**kwargs, "use_cache": False})
        cache = self.new_cache()
        try:
            own = {"past_key_values": cache, "cache_implementation": None}
            return generate(self, *args, **{**kwargs, **own})
        finally:
            cache.close()

    def _wants_cache(
        self, inputs: Any = None, generation_config: Any = None, **kwargs: Any
    ) -> bool:
        settings = generation_config or self.generation_config
        return kwargs.get("use_cache", settings.use_cache) is not False
