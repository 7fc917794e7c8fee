# SPDX-License-Identifier: Apache-2.0
"""The split model: head, remote trunk and tail behind a Hugging Face interface."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    CausalLMOutput,
    CausalLMOutputWithPast,
    SequenceClassifierOutput,
)
from transformers.utils.generic import ModelOutput

from atlas_flwr.split.crossing import cross, cross_to_loss
from atlas_flwr.split.generation import SplitGenerationMixin
from atlas_flwr.split.part import part_info, whole_config
from atlas_flwr.split.passes import (
    end_model,
    is_causal,
    label_count,
    run_blocks,
    takes_positions,
)
from atlas_flwr.split.split_cache import SplitCache
from atlas_flwr.split.summary import Summary
from atlas_flwr.types import TrunkCall, TrunkClient

__all__ = ["SplitModel"]


class SplitModel(PreTrainedModel, SplitGenerationMixin):
    """A model whose middle runs elsewhere; otherwise an ordinary one.

    It works in a plain loop, in :class:`transformers.Trainer` and with ``generate``.
    Its parameters are the client's; the trunk's never come here.

    Parameters
    ----------
    head, tail : nn.Module
        Parts made by :func:`atlas_flwr.split.partition`; ``tail`` is ``None`` for a
        vanilla split, whose trunk ends the model.
    trunk : TrunkClient
        E.g. :class:`atlas_flwr.trunk.LocalTrunk`, or what
        :func:`atlas_flwr.trunk.connect` returns.
    first_step : int
        Number of the first training step; steps must be new to the trunk's session.

    Attributes
    ----------
    summary : Summary, optional
        Where it is set, only its positions cross (see
        :func:`~atlas_flwr.split.attach_summary`).
    learned_positions : int
        Of a prompt that stands before each text; whoever puts it there tells.

    Examples
    --------
    >>> parts = partition("HuggingFaceTB/SmolLM2-135M", SplitPlan(head=2, tail=1))
    >>> model = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk))
    >>> model(input_ids=ids, labels=ids).loss.backward()
    """

    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(
        self,
        head: Any,
        tail: Any | None,
        trunk: TrunkClient,
        *,
        first_step: int = 0,
    ) -> None:
        super().__init__(copy.deepcopy(whole_config(head)))
        self.head = head
        self.tail = tail
        self.trunk = trunk
        self.summary: Summary | None = None
        self._steps = count(first_step)
        self._texts = count()
        if head.generation_config is not None:
            self.generation_config = copy.deepcopy(head.generation_config)
        # What Trainer asks a model, to normalise accumulated losses as for the whole.
        self.loss_type = getattr(tail, "loss_type", "")
        self.accepts_loss_kwargs = is_causal(tail)
        # What save_pretrained asks: tied weights are stored once. Not post_init(),
        # which would initialise them.
        self.all_tied_weights_keys = _tied_across(head, tail)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int = 0,
        past_key_values: SplitCache | None = None,
        loss_alone: bool = False,
        **kwargs: Any,
    ) -> ModelOutput:
        """Run head, trunk and tail.

        Parameters
        ----------
        input_ids, attention_mask, position_ids, token_type_ids : Tensor, optional
            Shape (B, T). Positions are left unread by a model that does not number
            them (BLOOM, MPT), as they are when it is unsplit.
        labels : Tensor, optional
            As the unsplit model takes them.
        inputs_embeds : Tensor, optional
            Shape (B, T, D), instead of ``input_ids``.
        logits_to_keep : int
            See :func:`end_model`.
        past_key_values : SplitCache, optional
            Made by :meth:`new_cache`; the inputs are of positions that are new to it,
            but for the mask, which is of all.
        loss_alone : bool
            Of a vanilla model that is given labels: bring back no logits.
        **kwargs : Any
            What ``generate`` and ``Trainer`` pass besides: ``num_items_in_batch`` is
            what the loss is divided by, in the place of the number of its own labels;
            ``use_cache`` and ``return_dict`` change nothing.

        Returns
        -------
        ModelOutput
            With ``loss`` and ``logits``, equal to the unsplit model's.

        Raises
        ------
        TypeError
            If an input is not known to the model, or asks for what only the trunk has.
        """
        items = kwargs.pop("num_items_in_batch", None)
        _refuse(kwargs)
        if not self.takes_positions:
            position_ids = None
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
        }
        if past_key_values is not None:
            _check_cached(past_key_values, labels)
            return self._continued(past_key_values, inputs, int(logits_to_keep))
        call, labels = self._smashed(inputs, labels)
        step = next(self._steps) if torch.is_grad_enabled() else 0
        if self.tail is None:
            if items is not None and labels is not None:
                call = replace(call, share=label_count(labels) / float(items))
            if labels is not None:
                call = replace(call, loss_alone=loss_alone)
            loss, logits = cross_to_loss(
                call, labels, self.trunk, step, int(logits_to_keep)
            )
            classifies = logits is not None and logits.dim() == 2
            made = SequenceClassifierOutput if classifies else CausalLMOutput
            return cast("ModelOutput", made(loss=loss, logits=logits))
        return end_model(
            self.tail,
            cross(call, self.trunk, step),
            attention_mask=call.attention_mask,
            position_ids=call.position_ids,
            labels=labels,
            logits_to_keep=int(logits_to_keep),
            num_items_in_batch=items,
        )

    @property
    def takes_positions(self) -> bool:
        """Whether its parts let a caller number positions."""
        return takes_positions(self.head)

    def _smashed(
        self, inputs: dict[str, Any], labels: Tensor | None
    ) -> tuple[TrunkCall, Tensor | None]:
        """Run the head; return what crosses, and the labels of what crosses."""
        if self.summary is None:
            hidden = run_blocks(self.head, **inputs)
            return TrunkCall(
                hidden, inputs["attention_mask"], inputs["position_ids"]
            ), labels
        ids = inputs.pop("input_ids")
        if ids is not None:
            inputs["inputs_embeds"] = self.get_input_embeddings()(ids)
        inputs = self.summary.around(inputs)
        hidden = run_blocks(self.head, **inputs)
        if labels is not None and labels.dim() == 2:
            labels = self.summary.labels(labels)
        return self.summary.leaving(hidden, inputs["attention_mask"]), labels

    def _continued(
        self, cache: SplitCache, inputs: dict[str, Any], keep: int
    ) -> ModelOutput:
        """Run positions that are new to a cache."""
        mask, positions = inputs["attention_mask"], inputs["position_ids"]
        hidden = run_blocks(self.head, cache.head, **inputs)
        if self.tail is None:
            logits = cache.cross(hidden, mask, positions, keep)
        else:
            ended = end_model(
                self.tail,
                cache.cross(hidden, mask, positions).to(hidden.dtype),
                attention_mask=mask,
                position_ids=positions,
                logits_to_keep=keep,
                cache=cache.tail,
            )
            logits = ended["logits"]
        made = CausalLMOutputWithPast(logits=logits, past_key_values=cache)
        return cast("ModelOutput", made)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # the parts have checked theirs

    def get_input_embeddings(self) -> nn.Module:
        """Return the head's table of embeddings."""
        table = self.head.get_input_embeddings()
        assert isinstance(table, nn.Module)
        return table


def _check_cached(cache: object, labels: Tensor | None) -> None:
    if not isinstance(cache, SplitCache):
        raise TypeError(
            f"past_key_values of type {type(cache).__name__}; a split model takes what "
            "its new_cache() makes"
        )
    if labels is not None or torch.is_grad_enabled():
        raise TypeError(
            "a pass with a cache is not trained on: call it without labels, under "
            "torch.no_grad(), or without past_key_values"
        )


def _refuse(rest: dict[str, Any]) -> None:
    asked = {"use_cache", "return_dict", "cache_position"}
    unknown = sorted(k for k in set(rest) - asked if rest[k] not in (None, False))
    if unknown:
        raise TypeError(
            f"a split model takes no {', '.join(unknown)}: what happens between its "
            "blocks is seen where they run; leave it out"
        )


def _tied_across(head: Any, tail: Any | None) -> dict[str, str]:
    """Map parameters of the tail to those of the head that they are tied to."""
    local = part_info(head).local_name
    pairs = {} if tail is None else tail.all_tied_weights_keys
    places = {f"tail.{target}": local(source) for target, source in pairs.items()}
    return {target: f"head.{name}" for target, name in places.items() if name}
