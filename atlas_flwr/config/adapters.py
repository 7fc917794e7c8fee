# SPDX-License-Identifier: Apache-2.0
"""Which adapters clients can train together, and what is read of LoRA alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem

__all__ = ["adapter_fits_method"]

# Strategies that take arrays as they are, and what there is to read of LoRA alone.
_ANY_ADAPTER = ("atlas", "oracle", "fedavg", "fedprox", "local", "centralized")
_OF_LORA = (
    "lora_rank",
    "lora_ranks",
    "lora_alpha",
    "use_rslora",
    "lora_targets",
    "ranks",
    "trunk_session_memory",
    "mixing",
    "max_rank",
    "flat_rounds",
)


def adapter_fits_method(config: RunConfig) -> Iterator[Problem]:
    """Want adapters that can be made one, and for others than LoRA no word of ranks."""
    adapter, tokens = config.adapter, config.prompt_tokens
    if adapter != "prompt" and tokens != RunConfig.prompt_tokens:
        yield Problem(
            ("adapter", "prompt-tokens"),
            f"prompt-tokens={tokens}: adapter={adapter!r} has none, only prompt does; "
            f"leave it at {RunConfig.prompt_tokens}",
        )
    if adapter == "lora":
        return
    if config.strategy not in _ANY_ADAPTER:
        yield Problem(
            ("adapter", "strategy"),
            f"adapter={adapter!r}: strategy={config.strategy!r} is a method for LoRA's "
            f"factors; set adapter='lora', or one of {', '.join(_ANY_ADAPTER)}",
        )
    if config.aggregation in ("fold", "truncate"):
        yield Problem(
            ("adapter", "aggregation"),
            f"aggregation={config.aggregation!r} is done to LoRA's products; what "
            f"adapter={adapter!r} trains is averaged: leave it out, or set 'mean' or "
            "'none'",
        )
    for entry in fields(RunConfig):
        value = getattr(config, entry.name)
        if entry.name in _OF_LORA and value != entry.default:
            key = entry.name.replace("_", "-")
            yield Problem(
                ("adapter", key),
                f"{key}={value!r}: adapter={adapter!r} does not read it, only lora "
                f"does; leave it at {entry.default!r}",
            )
