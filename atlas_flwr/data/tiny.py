# SPDX-License-Identifier: Apache-2.0
"""Random models of a few thousand weights, for tests and for large fleets."""

from __future__ import annotations

from pathlib import Path
from string import ascii_letters, digits
from typing import Any

from atlas_flwr.data.tasks import load_task, task_names

__all__ = ["make_tiny_bert", "make_tiny_llama"]

_SPACE = "Ġ"  # as byte-level tokenizers write it


def make_tiny_llama(work: Path, progress: bool) -> None:
    """Write a random Llama of 6 blocks that reads bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _byte_tokenizer(work)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        **tokenizer,
    )
    _save_random(LlamaForCausalLM, config, work)


def make_tiny_bert(work: Path, progress: bool) -> None:
    """Write a random BERT of 4 blocks that reads bytes."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = _byte_tokenizer(work)
    config = BertConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        **tokenizer,
    )
    _save_random(BertForMaskedLM, config, work)


def _save_random(cls: Any, config: Any, work: Path) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config)
    model.save_pretrained(work)


def _byte_tokenizer(work: Path) -> dict[str, Any]:
    """Write a tokenizer with a token a byte; return the model's vocabulary settings.

    A causal model tells classes apart by their words' first tokens. So a space and the
    letter after it are one token, and so are the label words of the library's tasks.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(_SPACE, letter) for letter in ascii_letters + digits]
    tokens = [*special, *letters, *map("".join, merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    words = {f" {word}" for name in task_names() for word in load_task(name).labels}
    tokenizer.add_tokens(sorted(words))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    ).save_pretrained(work)
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
