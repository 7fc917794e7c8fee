# SPDX-License-Identifier: Apache-2.0
"""The run configuration: one schema, checked at once, in Flower's flat keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.config.knob import Knob
    from atlas_flwr.config.loading import describe, from_yaml, load_config, to_yaml
    from atlas_flwr.config.method import SINGLE_REPLIES
    from atlas_flwr.config.parsing import (
        format_bytes,
        parse_bytes,
        parse_cut,
        split_list,
    )
    from atlas_flwr.config.schema import KIN, RunConfig, knobs

__all__ = [
    "KIN",
    "SINGLE_REPLIES",
    "Knob",
    "RunConfig",
    "describe",
    "format_bytes",
    "from_yaml",
    "knobs",
    "load_config",
    "parse_bytes",
    "parse_cut",
    "split_list",
    "to_yaml",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "KIN": "schema",
        "Knob": "knob",
        "RunConfig": "schema",
        "SINGLE_REPLIES": "method",
        "describe": "loading",
        "format_bytes": "parsing",
        "from_yaml": "loading",
        "knobs": "schema",
        "load_config": "loading",
        "parse_bytes": "parsing",
        "parse_cut": "parsing",
        "split_list": "parsing",
        "to_yaml": "loading",
    },
)
