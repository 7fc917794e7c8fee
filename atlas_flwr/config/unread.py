# SPDX-License-Identifier: Apache-2.0
"""Keys that were given for a run, and that another key makes it ignore.

No problem, as those of a whole strategy are: a comparison gives all its runs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import ADAPTER_STRATEGIES

__all__ = ["unread_keys"]


def _by_budget(config: RunConfig) -> str:
    if config.strategy not in ADAPTER_STRATEGIES or config.ranks == "uniform":
        return ""
    return (
        f"ranks={config.ranks!r} takes ranks from lora-ranks={config.lora_ranks!r}; "
        "set ranks='uniform' for one rank, or lora-ranks"
    )


def _uniform(config: RunConfig) -> str:
    if config.ranks != "uniform":
        return ""
    return f"ranks='uniform' takes lora-rank={config.lora_rank}; set that"


def _one_cut(config: RunConfig) -> str:
    if config.cut == "auto":
        return ""
    return f"cut={config.cut!r} says how deep heads are; set cut='auto' to have it read"


def _no_epsilon(config: RunConfig) -> str:
    if config.fingerprint_epsilon > 0:
        return ""
    return "fingerprint-epsilon=0.0 adds no noise; set that above 0"


REASONS: Mapping[str, Callable[[RunConfig], str]] = {
    "lora-rank": _by_budget,
    "lora-ranks": _uniform,
    "max-head": _one_cut,
    "fingerprint-delta": _no_epsilon,
}


def unread_keys(config: RunConfig, given: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each key that was given in vain.

    Parameters
    ----------
    config : RunConfig
        The run's.
    given : Collection[str]
        Keys that were given for it, kebab-case; of the others nobody expects a thing.
    """
    for key, reason in REASONS.items():
        if key in given and (why := reason(config)):
            yield f"{key} has no effect: {why}"
