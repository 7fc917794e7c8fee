# SPDX-License-Identifier: Apache-2.0
"""Answers to many prompts, in batches that are padded on the left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from atlas_flwr.data.tokens import left_padded
from atlas_flwr.errors import ConfigError
from atlas_flwr.split.unbiased import UNBIASED
from atlas_flwr.train.step import device_of

__all__ = ["Answer", "Decoding", "answered", "end_ids"]


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Attributes
    ----------
    max_new_tokens : int
        Longest answer.
    temperature : float
        0: the likeliest token, always; above, tokens are drawn from all. Whatever
        else the model's ``generation_config`` weighs by is left out; tokens that it
        forbids stay forbidden.
    seed : int
        Of what is drawn.
    drafts : int
        Tokens that are guessed from the text itself and tried at once, where one text
        is answered at a time; 0 for none.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    drafts: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.max_new_tokens < 1:
            problems.append(
                f"max-new-tokens={self.max_new_tokens}: an answer has at least 1"
            )
        if not 0 <= self.temperature < float("inf"):
            problems.append(
                f"temperature={self.temperature}: 0 for the likeliest token, or above"
            )
        if self.drafts < 0:
            problems.append(f"drafts={self.drafts}: 0 for none, or above")
        if problems:
            raise ConfigError(problems)

    def settings(self, tokenizer: Any, model: Any) -> dict[str, Any]:
        """Return arguments of ``generate``."""
        ends = end_ids(tokenizer, model)
        pad = tokenizer.pad_token_id
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0}
        return {
            "max_new_tokens": self.max_new_tokens,
            "pad_token_id": ends[0] if pad is None and ends else pad,
            "eos_token_id": ends or None,
            **UNBIASED,
            **(drawn if self.temperature else {"do_sample": False}),
            **({"prompt_lookup_num_tokens": self.drafts} if self.drafts else {}),
        }


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes
    ----------
    text : str
        Without special tokens.
    tokens : int
        Written, the one that ends it among them.
    """

    text: str
    tokens: int


def answered(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    batch_size: int,
) -> Iterator[Answer]:
    """Answer prompts in their order.

    Parameters
    ----------
    model : PreTrainedModel
        A split model or a whole one, in evaluation mode.
    tokenizer : PreTrainedTokenizer
        Its own.
    prompts : Sequence[Sequence[int]]
        Tokens.
    decoding : Decoding
        How.
    batch_size : int
        Prompts at once; what is drawn depends on it, and the likeliest does not.
    """
    settings = decoding.settings(tokenizer, model)
    if decoding.temperature:
        torch.manual_seed(decoding.seed)
    for start in range(0, len(prompts), batch_size):
        rows = prompts[start : start + batch_size]
        ids, mask = left_padded(rows, settings["pad_token_id"] or 0)
        device = device_of(model)
        given = {"attention_mask": mask.to(device), **settings}
        out = model.generate(ids.to(device), **given).cpu()
        for new in out[:, ids.shape[1] :]:
            yield _answer(new.tolist(), tokenizer, settings["eos_token_id"] or ())


def _answer(new: Sequence[int], tokenizer: Any, ends: Sequence[int]) -> Answer:
    end = next((n for n, token in enumerate(new) if token in ends), None)
    written = new if end is None else new[: end + 1]
    return Answer(tokenizer.decode(written, skip_special_tokens=True), len(written))


def end_ids(tokenizer: Any, model: Any) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, and the model's."""
    own = getattr(model.generation_config, "eos_token_id", None)
    more = own if isinstance(own, list) else [own]
    found = dict.fromkeys([tokenizer.eos_token_id, *more])
    return [token for token in found if token is not None]
