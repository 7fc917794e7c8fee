# SPDX-License-Identifier: Apache-2.0
"""What a configuration may get wrong about remedies."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_flwr.config.problem import Problem
from atlas_flwr.config.schema import KIN, RunConfig

__all__ = [
    "remedies_find_their_place",
    "remedies_know_the_adapter",
    "remedies_suit_the_strategy",
    "skipped_gradients_cross",
]


def remedies_find_their_place(config: RunConfig) -> Iterator[Problem]:
    """Want remedies only where what they change is there, and counted."""
    split = config.split if config.strategy in KIN else "none"
    if config.personal not in ("none", "head") and split == "vanilla":
        yield Problem(
            ("personal", "split"),
            f"personal={config.personal!r}: with split='vanilla' the trunk has the "
            "tail; set personal='head', or split='u-shaped'",
        )
    if config.personal != "none" and split == "none":
        yield Problem(
            ("personal", "split"),
            f"personal={config.personal!r}: whole models have no sides; set "
            "personal='none', or split='u-shaped'",
        )
    if config.auxiliary_steps and split != "u-shaped":
        yield Problem(
            ("auxiliary-steps", "split"),
            f"auxiliary-steps={config.auxiliary_steps} with split={split!r}: the "
            "estimate is for a head whose tail is on the client; set split='u-shaped', "
            "or auxiliary-steps=0",
        )
    if config.align and split == "vanilla":
        yield Problem(
            ("align", "split"),
            f"align={config.align}: with split='vanilla' the loss is the trunk's; set "
            "split='u-shaped', or align=0.0",
        )
    if config.auxiliary_steps and config.devices:
        yield Problem(
            ("auxiliary-steps", "devices"),
            f"auxiliary-steps={config.auxiliary_steps} with "
            f"devices={config.devices!r}: the memory model does not count what it "
            "takes; set auxiliary-steps=0, or devices=''",
        )


def remedies_know_the_adapter(config: RunConfig) -> Iterator[Problem]:
    """Want remedies that are made for LoRA's factors beside these."""
    if config.adapter == "lora":
        return
    for key, value, off in (
        ("personal", config.personal, "none"),
        ("auxiliary-steps", config.auxiliary_steps, 0),
    ):
        if value != off:
            yield Problem(
                (key, "adapter"),
                f"{key}={value!r}: works with LoRA only; set {key}={off!r}, or "
                "adapter='lora'",
            )


def remedies_suit_the_strategy(config: RunConfig) -> Iterator[Problem]:
    """Want remedies only where they do what they say."""
    if config.ema and config.aggregation in ("mean", "none"):
        yield Problem(
            ("ema", "aggregation"),
            f"ema={config.ema}: products are averaged, and aggregation="
            f"{config.aggregation!r} has none; set ema=0.0, or aggregation='both'",
        )
    if config.personal != "none" and config.rank_decay < 1:
        yield Problem(
            ("personal", "rank-decay"),
            f"personal={config.personal!r} with rank-decay={config.rank_decay}: the "
            "server keeps pruned ranks by what clients send, and personal layers are "
            "not sent; set personal='none', or rank-decay=1.0",
        )
    if config.prune_data and config.strategy == "centralized":
        yield Problem(
            ("prune-data", "strategy"),
            f"prune-data={config.prune_data}: clients prune their own data, and "
            "centralized pools it; set prune-data=0.0",
        )


def skipped_gradients_cross(config: RunConfig) -> Iterator[Problem]:
    """Want a message with a gradient where some are not to be sent."""
    if config.skip_gradients > 0 and config.split != "u-shaped":
        yield Problem(
            ("skip-gradients", "split"),
            f"skip-gradients={config.skip_gradients}: with split={config.split!r} no "
            "client sends a gradient; set split='u-shaped', or skip-gradients=0.0",
        )
    if config.skip_gradients > 0 and config.auxiliary_steps:
        yield Problem(
            ("skip-gradients", "auxiliary-steps"),
            f"skip-gradients={config.skip_gradients} with auxiliary-steps="
            f"{config.auxiliary_steps}: the estimate is made from every gradient that "
            "crosses; set one of the two to 0",
        )
