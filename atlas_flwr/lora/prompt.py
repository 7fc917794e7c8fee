# SPDX-License-Identifier: Apache-2.0
"""Prompt tuning (arXiv 2104.08691): trained embeddings in front of each text.

They are one dense array, ``prompt_embeddings`` as in PEFT, of shape (P, D), on the side
of the embeddings; all that comes after sees longer texts. Where a text is padded on the
left they stand after the padding, so that what a model makes of a text does not depend
on its batch; PEFT puts them before it, and agrees where no padding is in between.

Letters: B texts, T tokens, P virtual tokens, D numbers each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas_flwr.errors import AdapterError
from atlas_flwr.types import NO_LABEL

__all__ = ["PROMPT_KEY", "attach_prompt", "prepended"]

PROMPT_KEY = "prompt_embeddings"


@contextmanager
def attach_prompt(
    model: Any, dense: Mapping[str, NDArray[np.float32]]
) -> Iterator[dict[str, nn.Parameter]]:
    """Let a model put the prompt among ``dense``, if there is one, before its texts.

    Parameters
    ----------
    model : PreTrainedModel
        A whole model or a split one; it gets back its own form afterwards.
    dense : Mapping[str, NDArray]
        Arrays that are trained in full.

    Yields
    ------
    dict[str, nn.Parameter]
        The prompt by its key, in float32; nothing where there is none.

    Raises
    ------
    AdapterError
        If the prompt is not of the width of the model's embeddings.
    """
    if PROMPT_KEY not in dense:
        yield {}
        return
    table = model.get_input_embeddings().weight
    value = torch.tensor(dense[PROMPT_KEY], device=table.device).float()
    if value.dim() != 2 or value.shape[1] != table.shape[1]:
        raise AdapterError(
            f"array {PROMPT_KEY!r} has shape {tuple(value.shape)}; it must be (P, "
            f"{table.shape[1]}) for P virtual tokens of this model"
        )
    prompt = nn.Parameter(value)
    model.register_parameter(PROMPT_KEY, prompt)
    model.learned_positions = len(prompt)
    hook = model.register_forward_pre_hook(partial(_prepend, prompt), with_kwargs=True)
    try:
        yield {PROMPT_KEY: prompt}
    finally:
        hook.remove()
        del model.learned_positions
        delattr(model, PROMPT_KEY)


def _prepend(
    prompt: Tensor, model: Any, args: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs = dict(given)
    cache = inputs.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        return args, _behind(len(prompt), inputs)
    ids = inputs.pop("input_ids", None)
    if ids is not None:
        inputs["inputs_embeds"] = model.get_input_embeddings()(ids)
    return args, prepended(prompt, inputs)


def _behind(count: int, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Go on with texts whose prompt is in the cache: count it in, in front of them."""
    out = dict(inputs)
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if positions is not None:
        out["position_ids"] = positions + count
    if mask is not None:
        ones = mask.new_ones(len(mask), count)
        padding = (mask.cumsum(1) == 0).sum(1, keepdim=True)
        here = torch.arange(mask.shape[1] + count, device=mask.device)
        text = torch.cat([ones, mask], dim=1)
        real = torch.where(here < padding + count, 1, text)
        out["attention_mask"] = torch.where(here < padding, 0, real)
    return out


def prepended(prompt: Tensor, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Put a prompt before the texts of a model's inputs.

    Parameters
    ----------
    prompt : Tensor
        Shape (P, D).
    inputs : Mapping[str, Any]
        ``inputs_embeds`` of shape (B, T, D), and what else the model is given. Of shape
        (B, T) and longer by P afterwards: ``attention_mask``, ``position_ids``,
        ``token_type_ids``, and a causal model's ``labels``.
    """
    embeds = inputs["inputs_embeds"]
    count, (rows, length, _) = len(prompt), embeds.shape
    here = torch.arange(count + length, device=embeds.device)
    padding = torch.zeros(rows, 1, dtype=torch.long, device=embeds.device)
    if inputs.get("attention_mask") is not None:
        padding = (inputs["attention_mask"].cumsum(1) == 0).sum(1, keepdim=True)
    # Where each new position comes from, in the row [prompt, text].
    after = torch.where(here < padding + count, here - padding, here)
    source = torch.where(here < padding, here + count, after)

    def joined(before: Tensor, text: Tensor) -> Tensor:
        before, text = before.to(text), text.expand(rows, *text.shape[1:])
        both = torch.cat([before.expand(rows, *before.shape), text], dim=1)
        at = source if text.dim() == 2 else source[..., None]
        return torch.take_along_dim(both, at, dim=1)

    fill = {
        "attention_mask": torch.ones(count),
        "token_type_ids": torch.zeros(count),
        "labels": torch.full((count,), NO_LABEL),
        "position_ids": torch.arange(count),
    }
    out = {**inputs, "inputs_embeds": joined(prompt, embeds)}
    for key, before in fill.items():
        found = inputs.get(key)
        if found is not None and found.dim() == 2:
            text = found + count if key == "position_ids" else found
            out[key] = joined(before, text)
    return out
