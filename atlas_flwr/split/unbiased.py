# SPDX-License-Identifier: Apache-2.0
"""What lets ``generate`` take a model's own logits as they are.

A checkpoint's ``generation_config`` says what its authors like: a penalty on what was
said already, a share of the likeliest tokens, beams. Transformers takes each of these
that a call does not name, so a call that is to have the likeliest token, or draw from
all, must name them all. Tokens that it forbids or forces are left as they are: they
say what a text may be, and weigh nothing.
"""

from __future__ import annotations

from typing import Any

__all__ = ["UNBIASED"]

UNBIASED: dict[str, Any] = {
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "min_length": 0,
    "min_new_tokens": None,
    "min_p": None,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "sequence_bias": None,
    "top_h": None,
    "top_p": 1.0,
    "typical_p": 1.0,
    "watermarking_config": None,
}
