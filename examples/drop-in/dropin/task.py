# SPDX-License-Identifier: Apache-2.0
"""The app's model and text: nothing is downloaded, and nothing knows of ATLAS."""

from __future__ import annotations

import unicodedata
from calendar import TextCalendar
from collections.abc import Callable, Mapping
from pydoc_data.topics import topics

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

TINY = "tiny"
BLOCK = 64  # tokens in an example
EXAMPLES = 400  # to train on, at most


def load_model(name: str, rank: int) -> PeftModel:
    """Load a model with fresh adapters; the same ones wherever it is called."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = (
            tiny_llama() if name == TINY else AutoModelForCausalLM.from_pretrained(name)
        )
        lora = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        return get_peft_model(base, lora)


def tiny_llama() -> LlamaForCausalLM:
    """Build a Llama of two blocks that reads bytes."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=BLOCK,
        initializer_range=0.2,  # its head stays as it is: it needs some contrast
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def prose() -> str:
    """English: Python's own help pages."""
    return "\n".join(topics[name] for name in sorted(topics))


def names() -> str:
    """Names of Unicode's characters."""
    found = (unicodedata.name(chr(point), "") for point in range(0x80, 0x3000))
    return "\n".join(name for name in found if name)


def calendars() -> str:
    """Figures: the calendars of two centuries."""
    return "\n".join(TextCalendar().formatyear(year) for year in range(1900, 2100))


KINDS: Mapping[str, Callable[[], str]] = {
    "prose": prose,
    "names": names,
    "calendars": calendars,
}


def load_text(
    model: str, kinds: str, partition: int, num_partitions: int
) -> tuple[Tensor, Tensor]:
    """Return one client's examples to train and to test on, each (N, BLOCK)."""
    kind = kinds.split(",")
    ids = torch.tensor(encode(model, KINDS[kind[partition % len(kind)]]()))
    blocks = ids[: len(ids) // BLOCK * BLOCK].view(-1, BLOCK)
    shares = -(-num_partitions // len(kind))
    mine = blocks[partition // len(kind) :: shares]
    train, test = mine[1::5], mine[::5]
    return train[:EXAMPLES], test[: EXAMPLES // 4]


def encode(model: str, text: str) -> list[int]:
    """Turn text into tokens."""
    if model == TINY:
        return list(text.encode())
    tokenizer = AutoTokenizer.from_pretrained(model)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def fit(model: PeftModel, blocks: Tensor, steps: int, rate: float, seed: int) -> float:
    """Train the adapters; return the mean loss."""
    draw = torch.Generator().manual_seed(seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    total = 0.0
    model.train()
    for _ in range(steps):
        batch = blocks[torch.randint(len(blocks), (8,), generator=draw)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    return total / steps


@torch.no_grad()
def score(model: PeftModel, blocks: Tensor) -> float:
    """Return the mean loss."""
    model.eval()
    return float(model(input_ids=blocks, labels=blocks).loss)
