"""Tiny models of the families that the cut is tried on."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers as hf

CLASSES = 5
_DECODER = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": CLASSES,
    "pad_token_id": 0,
}
_ALTERNATING = ["sliding_attention", "full_attention"]


def _without(settings: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != key}


FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**_DECODER)),
    "llama-tied": (
        hf.LlamaForCausalLM,
        hf.LlamaConfig(**_DECODER, tie_word_embeddings=True),
    ),
    "qwen2": (
        hf.Qwen2ForCausalLM,
        hf.Qwen2Config(
            **_DECODER, use_sliding_window=True, sliding_window=4, max_window_layers=2
        ),
    ),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config(**_DECODER, head_dim=8)),
    "mistral": (
        hf.MistralForCausalLM,
        hf.MistralConfig(**_DECODER, sliding_window=4),
    ),
    "gemma3": (
        hf.Gemma3ForCausalLM,
        hf.Gemma3TextConfig(
            **_DECODER,
            head_dim=8,
            sliding_window=4,
            layer_types=[*_ALTERNATING, *_ALTERNATING, "sliding_attention"],
        ),
    ),
    "gpt-neox": (
        hf.GPTNeoXForCausalLM,
        hf.GPTNeoXConfig(**_without(_DECODER, "num_key_value_heads")),
    ),
    "phi": (
        hf.PhiForCausalLM,
        hf.PhiConfig(**_DECODER, resid_pdrop=0.0, embd_pdrop=0.0),
    ),
    "gpt2": (
        hf.GPT2LMHeadModel,
        hf.GPT2Config(
            vocab_size=61,
            n_embd=32,
            n_layer=5,
            n_head=4,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "opt": (
        hf.OPTForCausalLM,
        hf.OPTConfig(
            vocab_size=61,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=48,
            num_hidden_layers=5,
            num_attention_heads=4,
            max_position_embeddings=64,
            dropout=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "bloom": (
        hf.BloomForCausalLM,
        hf.BloomConfig(
            vocab_size=61,
            hidden_size=32,
            n_layer=5,
            n_head=4,
            max_position_embeddings=64,  # none; but tests of memory use short texts
            hidden_dropout=0.0,
            attention_dropout=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "mpt": (
        hf.MptForCausalLM,
        hf.MptConfig(
            vocab_size=61,
            d_model=32,
            n_layers=5,
            n_heads=4,
            max_seq_len=256,
            max_position_embeddings=64,  # as above
            resid_pdrop=0.0,
            emb_pdrop=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "mixtral": (
        hf.MixtralForCausalLM,
        hf.MixtralConfig(**_DECODER, num_local_experts=4, num_experts_per_tok=2),
    ),
    "qwen3-moe": (
        hf.Qwen3MoeForCausalLM,
        hf.Qwen3MoeConfig(
            **_DECODER,
            head_dim=8,
            num_experts=12,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
        ),
    ),
    "bert": (hf.BertForSequenceClassification, hf.BertConfig(**_ENCODER)),
    "distilbert": (
        hf.DistilBertForSequenceClassification,
        hf.DistilBertConfig(
            vocab_size=61,
            dim=32,
            hidden_dim=48,
            n_layers=5,
            n_heads=4,
            max_position_embeddings=64,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
            num_labels=CLASSES,
        ),
    ),
    "roberta": (
        hf.RobertaForSequenceClassification,
        hf.RobertaConfig(**{**_ENCODER, "pad_token_id": 1}),
    ),
    "llama-classifier": (
        hf.LlamaForSequenceClassification,
        hf.LlamaConfig(**_DECODER, num_labels=CLASSES),
    ),
    "qwen2-classifier": (
        hf.Qwen2ForSequenceClassification,
        hf.Qwen2Config(**_DECODER, num_labels=CLASSES),
    ),
}


UNKNOWN_TO_PEFT = {"distilbert", "mpt", "qwen3-moe"}  # for IA3


def build(family: str) -> Any:
    """Make a tiny model of random weights, without dropout."""
    made, config = FAMILIES[family]
    return made(copy.deepcopy(config)).eval()  # tests may change their own


def batch(family: str, pad: str = "") -> dict[str, torch.Tensor]:
    """Make a random batch of 3 texts of 12 tokens, padded left, right or not."""
    _, config = FAMILIES[family]
    ids = torch.randint(3, 61, (3, 12))
    mask = torch.ones_like(ids)
    if pad == "right":
        mask[0, -5:] = 0
    if pad == "left":
        mask[1, :4] = 0
    ids[mask == 0] = config.pad_token_id or 0
    classifies = config.num_labels == CLASSES
    labels = torch.randint(0, CLASSES, (3,))
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels if classifies else ids.masked_fill(mask == 0, -100),
    }
