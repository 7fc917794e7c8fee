# SPDX-License-Identifier: Apache-2.0
"""The split model: head, remote trunk and tail behind a Hugging Face interface."""

from __future__ import annotations

import copy
import inspect
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput
from transformers.utils.generic import ModelOutput

from atlas_flwr.split.crossing import cross, cross_to_loss
from atlas_flwr.split.part import part_info, whole_config
from atlas_flwr.split.summary import Summary
from atlas_flwr.types import TrunkCall, TrunkClient

__all__ = ["SplitModel", "end_model", "run_blocks", "takes_positions"]


def takes_positions(model: nn.Module) -> bool:
    """Tell whether a model lets its caller number positions (``position_ids``).

    BLOOM and MPT, which bias attention by distance, and state-space models do not: they
    tell positions by the mask, or not at all.
    """
    said = getattr(model, "takes_positions", None)  # what is made of parts says so
    if said is not None:
        return bool(said)
    return "position_ids" in inspect.signature(model.forward).parameters


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
    num_items_in_batch: Tensor | int | None = None,
) -> ModelOutput:
    """Run a tail, or a vanilla trunk, with its LM head or classifier.

    Parameters
    ----------
    part : PreTrainedModel
        A part that ends the model.
    hidden : Tensor
        Shape (B, T, D).
    labels : Tensor, optional
        Shape (B, T) for causal models, -100 where there is none; (B, T + 1) where the
        last is of the token after the text; (B,) or (B, C) for classifiers.
    logits_to_keep : int
        Above 0, a causal model's LM head runs on its last positions only, and the loss
        is over ``labels[:, -logits_to_keep:]``.
    num_items_in_batch : Tensor or int, optional
        A causal model's loss is the sum over its labels, divided by this, instead of
        their mean.

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
    given = {**_given(part, inputs), **_no_cache(part)}
    loss: dict[str, Any] = {}
    if num_items_in_batch is not None and _is_causal(part):
        loss["num_items_in_batch"] = num_items_in_batch
    ahead = _looks_ahead(hidden, labels)
    if logits_to_keep or ahead:
        out = part(**given, logits_to_keep=logits_to_keep)
        if labels is not None:
            cut = labels[:, -out.logits.shape[1] :]
            if ahead:
                loss["shift_labels"] = cut.contiguous()
            size = part.config.get_text_config().vocab_size
            out.loss = part.loss_function(out.logits, cut, vocab_size=size, **loss)
    else:
        out = part(**given, labels=labels, **loss)
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

    Attributes
    ----------
    summary : Summary, optional
        Where it is set, only its positions cross (see
        :func:`~atlas_flwr.split.attach_summary`).

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
        if head.generation_config is not None:
            self.generation_config = copy.deepcopy(head.generation_config)
        # What Trainer asks a model, to normalise accumulated losses as for the whole.
        self.loss_type = getattr(tail, "loss_type", "")
        self.accepts_loss_kwargs = _is_causal(tail)
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
        **kwargs : Any
            What ``generate`` and ``Trainer`` pass besides: ``num_items_in_batch`` goes
            to a causal tail's loss; ``use_cache`` and ``return_dict`` change nothing,
            since a trunk keeps no cache for its clients.

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
        call, labels = self._smashed(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "token_type_ids": token_type_ids,
                "inputs_embeds": inputs_embeds,
            },
            labels,
        )
        step = next(self._steps) if torch.is_grad_enabled() else 0
        if self.tail is None:
            loss, logits = cross_to_loss(
                call, labels, self.trunk, step, int(logits_to_keep)
            )
            made = SequenceClassifierOutput if logits.dim() == 2 else CausalLMOutput
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
            labels = labels[:, -self.summary.crossing - 1 :]
        return self.summary.leaving(hidden, inputs["attention_mask"]), labels

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Feed ``generate`` the whole sequence at every step: there is no cache."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "logits_to_keep": 1}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
            if self.takes_positions:
                positions = attention_mask.long().cumsum(-1) - 1
                inputs["position_ids"] = positions.masked_fill(attention_mask == 0, 0)
        return inputs

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the unsplit model does, one crossing a token.

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
        return generate(self, *args, **{**kwargs, "use_cache": False})

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # the parts have checked theirs

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


def _refuse(rest: dict[str, Any]) -> None:
    asked = {"use_cache", "return_dict", "past_key_values", "cache_position"}
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


def _looks_ahead(hidden: Tensor, labels: Tensor | None) -> bool:
    """Tell whether the last label is of the token that follows the hidden states."""
    if labels is None or labels.dim() != 2:
        return False
    return labels.shape[1] == hidden.shape[1] + 1


def _is_causal(part: Any) -> bool:
    return getattr(part, "loss_type", None) == "ForCausalLM"


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
