# SPDX-License-Identifier: Apache-2.0
"""What lets ``generate`` take a model's own logits as they are.

A checkpoint's ``generation_config`` says what its authors like: a penalty on what was
said already, a share of the likeliest tokens, beams. Transformers takes each of these
that a call does not name, so a call that is to have the likeliest token, or draw from
all, must name them all.
"""

from __future__ import annotations

from typing import Any

__all__ = ["UNBIASED"]

UNBIASED: dict[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": None,
    "min_length": 0,
    "min_new_tokens": None,
    "min_p": None,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "sequence_bias": None,
    "suppress_tokens": None,
    "top_h": None,
    "top_p": 1.0,
    "typical_p": 1.0,
    "watermarking_config": None,
}
