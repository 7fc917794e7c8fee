# SPDX-License-Identifier: Apache-2.0
"""With what summary positions go together."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem

__all__ = ["summaries_find_their_place"]


def summaries_find_their_place(config: RunConfig) -> Iterator[Problem]:
    """Want a cut for summary positions to cross, and nothing else around the text."""
    count = config.summary_positions
    if not count:
        return
    if config.split == "none":
        yield Problem(
            ("summary-positions", "split"),
            f"summary-positions={count}: with split='none' nothing crosses; set "
            "split='u-shaped' or 'vanilla', or summary-positions=0",
        )
    if config.adapter == "prompt":
        yield Problem(
            ("summary-positions", "adapter"),
            f"summary-positions={count}: adapter='prompt' has learned positions of its "
            "own before the text; set adapter='lora' or 'ia3', or summary-positions=0",
        )
