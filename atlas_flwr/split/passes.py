# SPDX-License-Identifier: Apache-2.0
"""Passes through the parts of a split model, as the whole model's own would be."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import ModelOutput

from atlas_flwr.split.label_head import in_one_piece, only_at, places_of
from atlas_flwr.types import NO_LABEL

__all__ = ["end_model", "is_causal", "label_count", "run_blocks", "takes_positions"]


def takes_positions(model: nn.Module) -> bool:
    """Tell whether a model lets its caller number positions (``position_ids``).

    BLOOM and MPT, which bias attention by distance, and state-space models do not: they
    tell positions by the mask, or not at all.
    """
    said = getattr(model, "takes_positions", None)  # what is made of parts says so
    if said is not None:
        return bool(said)
    return "position_ids" in inspect.signature(model.forward).parameters


def run_blocks(part: nn.Module, cache: Any = None, **inputs: Any) -> Tensor:
    """Run a head or a U-shaped trunk; return hidden states of shape (B, T, D).

    Inputs that the model's ``forward`` does not know are an error where they are given
    and not ``None``. With a cache, ``inputs`` are of the T positions that are new to
    it, but for the mask, which is of all.
    """
    hidden = part(**_given(part, inputs), **_cached(part, cache)).last_hidden_state
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
    cache: Any = None,
    loss_alone: bool = False,
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
    cache : SliceCache, optional
        Of what came before, where ``hidden`` and ``position_ids`` are of new positions;
        for causal models.

    loss_alone : bool
        With labels, a causal model's LM head runs where they are alone, and its logits
        are of no other place, (1, N, V).

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
    given = {**_given(part, inputs), **_cached(part, cache)}
    loss: dict[str, Any] = {}
    if num_items_in_batch is not None and is_causal(part):
        loss["num_items_in_batch"] = num_items_in_batch
    ahead = _looks_ahead(hidden, labels)
    if loss_alone and labels is not None and labels.dim() == 2 and is_causal(part):
        return _at_labels(part, given, labels, logits_to_keep, ahead, loss)
    if logits_to_keep or ahead:
        with in_one_piece(part):
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


def _at_labels(
    part: Any,
    given: dict[str, Any],
    labels: Tensor,
    logits_to_keep: int,
    ahead: bool,
    loss: dict[str, Any],
) -> ModelOutput:
    """Run the LM head where labels are."""
    kept = logits_to_keep or given["inputs_embeds"].shape[1]
    cut = labels[:, -kept:] if ahead else labels[:, -kept:][:, 1:]
    places = places_of(cut)
    with only_at(part, places):
        out = part(**given, logits_to_keep=kept)
    rows, columns = places
    if out.logits.shape[0] != 1 or out.logits.shape[1] != len(rows):
        out.logits = out.logits[rows, columns][None]
    found = cut[rows, columns][None]
    size = part.config.get_text_config().vocab_size
    out.loss = part.loss_function(
        out.logits, found, vocab_size=size, shift_labels=found, **loss
    )
    assert isinstance(out, ModelOutput)
    return out


def _given(part: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in inputs.items() if value is not None}
    allowed = inspect.signature(part.forward).parameters
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise TypeError(
            f"{type(part).__name__} takes no {', '.join(unknown)}; leave it out"
        )
    return given


def _looks_ahead(hidden: Tensor, labels: Tensor | None) -> bool:
    """Tell whether the last label is of the token that follows the hidden states."""
    if labels is None or labels.dim() != 2:
        return False
    return labels.shape[1] == hidden.shape[1] + 1


def label_count(labels: Tensor) -> int:
    """Count the labels that a loss is the mean over.

    Parameters
    ----------
    labels : Tensor
        As :func:`end_model` takes them. Of a causal model's, nothing predicts the
        first.
    """
    if labels.dim() != 2 or labels.is_floating_point():
        return len(labels)
    return int((labels[:, 1:] != NO_LABEL).sum())


def is_causal(part: Any) -> bool:
    """Tell whether a part ends in the loss of a causal language model."""
    return getattr(part, "loss_type", None) == "ForCausalLM"


def _cached(part: Any, cache: Any) -> dict[str, Any]:
    if cache is not None:
        return {"use_cache": True, "past_key_values": cache}
    known = dict(inspect.signature(part.forward).parameters)
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):  # what goes to the base
        known |= inspect.signature(part.base_model.forward).parameters
    return {"use_cache": False} if "use_cache" in known else {}


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
