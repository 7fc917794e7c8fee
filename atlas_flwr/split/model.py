# SPDX-License-Identifier: Apache-2.0
"""The split model: head, remote trunk and tail behind a Hugging Face interface."""

from __future__ import annotations

import copy
import inspect
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput
from transformers.utils.generic import ModelOutput

from atlas_flwr.split.crossing import cross, cross_to_loss
from atlas_flwr.split.part import part_info
from atlas_flwr.types import TrunkCall, TrunkClient

__all__ = ["SplitModel", "end_model", "run_blocks"]


def run_blocks(part: nn.Module, **inputs: Any) -> Tensor:
    """Run a head or a U-shaped trunk; return hidden states of shape (B, T, D).

    Inputs that the model's ``forward`` does not know are an error where they are given
    and not ``None``.
    """
    hidden = part(**_given(part, inputs), **_no_cache(part)).last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden


def end_model(
    part: Any,
    hidden: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    labels: Tensor | None = None,
    logits_to_keep: int = 0,
) -> ModelOutput:
    """Run a tail, or a vanilla trunk, with its LM head or classifier.

    Parameters
    ----------
    part : PreTrainedModel
        A part that ends the model.
    hidden : Tensor
        Shape (B, T, D).
    labels : Tensor, optional
        Shape (B, T) for causal models, -100 where there is none; (B,) or (B, C) for
        classifiers.
    logits_to_keep : int
        Above 0, a causal model's LM head runs on its last positions only, and the loss
        is over ``labels[:, -logits_to_keep:]``.

    Returns
    -------
    ModelOutput
        With ``loss`` (``None`` without labels) and ``logits``.
    """
    inputs = {
        "inputs_embeds": hidden,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
    }
    if _pools_last_token(part):
        return _classify_last_token(part, inputs, labels)
    kept: dict[str, Any] = {}
    if logits_to_keep:
        kept["logits_to_keep"] = logits_to_keep
        out = part(**_given(part, inputs), **kept, **_no_cache(part))
        if labels is not None:
            cut = labels[:, -logits_to_keep:]
            size = part.config.get_text_config().vocab_size
            out.loss = part.loss_function(out.logits, cut, vocab_size=size)
    else:
        out = part(**_given(part, inputs), labels=labels, **_no_cache(part))
    assert isinstance(out, ModelOutput)
    return out


class SplitModel(PreTrainedModel, GenerationMixin):
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

    def __init__(
        self,
        head: Any,
        tail: Any | None,
        trunk: TrunkClient,
        *,
        first_step: int = 0,
    ) -> None:
        config = copy.deepcopy(head.config)
        config.num_hidden_layers = part_info(head).num_layers
        super().__init__(config)
        self.head = head
        self.tail = tail
        self.trunk = trunk
        self._steps = count(first_step)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> ModelOutput:
        """Run head, trunk and tail.

        Parameters
        ----------
        input_ids, attention_mask, position_ids, token_type_ids : Tensor, optional
            Shape (B, T).
        labels : Tensor, optional
            As the unsplit model takes them.
        inputs_embeds : Tensor, optional
            Shape (B, T, D), instead of ``input_ids``.
        logits_to_keep : int
            See :func:`end_model`.
        **kwargs : Any
            What ``generate`` and ``Trainer`` pass besides; ``use_cache`` is ignored,
            since a trunk keeps no cache for its clients.

        Returns
        -------
        ModelOutput
            With ``loss`` and ``logits``, equal to the unsplit model's.
        """
        hidden = run_blocks(
            self.head,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
        )
        call = TrunkCall(hidden, attention_mask, position_ids)
        step = next(self._steps) if torch.is_grad_enabled() else 0
        if self.tail is None:
            loss, logits = cross_to_loss(
                call, labels, self.trunk, step, int(logits_to_keep)
            )
            made = SequenceClassifierOutput if logits.dim() == 2 else CausalLMOutput
            return made(loss=loss, logits=logits)  # type: ignore[arg-type]
        return end_model(
            self.tail,
            cross(call, self.trunk, step),
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            logits_to_keep=int(logits_to_keep),
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Feed ``generate`` the whole sequence at every step: there is no cache."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "logits_to_keep": 1}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
            if "position_ids" in inspect.signature(self.head.forward).parameters:
                positions = attention_mask.long().cumsum(-1) - 1
                inputs["position_ids"] = positions.masked_fill(attention_mask == 0, 0)
        return inputs

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the unsplit model does, one crossing a token."""
        return super().generate(*args, **{**kwargs, "use_cache": False})

    def get_input_embeddings(self) -> nn.Module:
        """Return the head's table of embeddings."""
        table = self.head.get_input_embeddings()
        assert isinstance(table, nn.Module)
        return table


def _given(part: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in inputs.items() if value is not None}
    allowed = inspect.signature(part.forward).parameters
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise TypeError(
            f"{type(part).__name__} takes no {', '.join(unknown)}; leave it out"
        )
    return given


def _no_cache(part: Any) -> dict[str, bool]:
    known = "use_cache" in inspect.signature(part.forward).parameters
    return {"use_cache": False} if known else {}


def _pools_last_token(part: Any) -> bool:
    """Tell whether a decoder classifies by its last token, which needs the mask."""
    return isinstance(part, GenericForSequenceClassification) or (
        hasattr(part, "score") and not hasattr(part, "classifier")
    )


def _classify_last_token(
    part: Any, inputs: dict[str, Any], labels: Tensor | None
) -> SequenceClassifierOutput:
    hidden = run_blocks(part.base_model, **inputs)
    scores = part.score(hidden)
    mask = inputs["attention_mask"]
    rows = torch.arange(len(scores), device=scores.device)
    if mask is None:
        last = torch.full_like(rows, scores.shape[1] - 1)
    else:
        positions = torch.arange(scores.shape[1], device=scores.device)
        last = (positions * (mask != 0)).argmax(-1)
    pooled = scores[rows, last]
    loss = None
    if labels is not None:
        loss = part.loss_function(
            logits=scores, labels=labels, pooled_logits=pooled, config=part.config
        )
    return SequenceClassifierOutput(loss=loss, logits=pooled)
