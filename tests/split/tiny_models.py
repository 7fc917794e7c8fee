# SPDX-License-Identifier: Apache-2.0
"""Tiny models of many families, and batches for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

VOCABULARY = 61
CLASSES = 3
PAD = 0

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

# What each family's configuration needs besides the common sizes. Windows are shorter
# than the sequences, so that they matter.
DECODERS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_GROUPED, "num_hidden_layers": 5},
    "llama-tied": {**_GROUPED, "model_type": "llama", "tie_word_embeddings": True},
    "qwen2": _GROUPED,
    "qwen2-window": {
        **_GROUPED,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 2,
    },
    "qwen3": {**_GROUPED, "tie_word_embeddings": True},
    "mistral": {**_GROUPED, "sliding_window": 3},
    "gemma2": {**_GROUPED, "sliding_window": 3},
    "gemma3_text": {
        **_GROUPED,
        "num_hidden_layers": 6,
        "sliding_window": 3,
        "layer_types": [*["sliding_attention", "full_attention"] * 2]
        + ["sliding_attention"] * 2,
    },
    "gpt_neox": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "phi": {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "gpt2": {
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "opt": {"ffn_dim": 48, "dropout": 0.0, "word_embed_proj_dim": 32},
    "opt-projected": {
        "model_type": "opt",
        "ffn_dim": 48,
        "dropout": 0.0,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "bloom": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gptj": {"rotary_dim": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "granite": {**_GROUPED, "embedding_multiplier": 3.0},
    "smollm3": {**_GROUPED, "no_rope_layers": [1, 1, 0, 1]},
}
ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "bert": {**_NO_DROPOUT, "num_hidden_layers": 5},
    "distilbert": {
        "dim": 32,
        "hidden_dim": 48,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
    "roberta": _NO_DROPOUT,
    "electra": {**_NO_DROPOUT, "embedding_size": 16},
    "modernbert": {"global_attn_every_n_layers": 3, "local_attention": 4},
}


def tiny(family: str, *, classify: bool = False, seed: int = 0) -> PreTrainedModel:
    """Make a model of a family with random weights."""
    given = {**_SIZES, **(DECODERS | ENCODERS)[family]}
    model_type = given.pop("model_type", family)
    if classify:
        given["num_labels"] = CLASSES
    config = AutoConfig.for_model(model_type, **given)
    made = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    torch.manual_seed(seed)
    model = made.from_config(config)
    for parameter in model.parameters():  # biases and norms of 0 and 1 hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def batch(
    padding: str = "right", *, classify: bool = False, rows: int = 3, seed: int = 0
) -> dict[str, Tensor]:
    """Make a padded batch with labels."""
    torch.manual_seed(seed)
    width = 9
    ids = torch.randint(3, VOCABULARY, (rows, width))
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        gone = slice(width - 2 * row, None) if padding == "right" else slice(2 * row)
        mask[row, gone] = 0
    ids = ids.masked_fill(mask == 0, PAD)
    labels = torch.arange(rows) % CLASSES
    if not classify:
        labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
