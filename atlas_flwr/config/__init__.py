# SPDX-License-Identifier: Apache-2.0
"""The run configuration: one schema, checked at once, in Flower's flat keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.config.loading import describe, from_yaml, load_config, to_yaml
    from atlas_flwr.config.parsing import (
        format_bytes,
        parse_bytes,
        parse_cut,
        split_list,
    )
    from atlas_flwr.config.schema import RunConfig, options
    from atlas_flwr.config.single_replies import SINGLE_REPLIES, SUMMED
    from atlas_flwr.options import ADAPTER_STRATEGIES, Option

__all__ = [
    "ADAPTER_STRATEGIES",
    "SINGLE_REPLIES",
    "SUMMED",
    "Option",
    "RunConfig",
    "describe",
    "format_bytes",
    "from_yaml",
    "load_config",
    "options",
    "parse_bytes",
    "parse_cut",
    "split_list",
    "to_yaml",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "ADAPTER_STRATEGIES": "atlas_flwr.options",
        "Option": "atlas_flwr.options",
        "RunConfig": "schema",
        "SINGLE_REPLIES": "single_replies",
        "SUMMED": "single_replies",
        "describe": "loading",
        "format_bytes": "parsing",
        "from_yaml": "loading",
        "load_config": "loading",
        "options": "schema",
        "parse_bytes": "parsing",
        "parse_cut": "parsing",
        "split_list": "parsing",
        "to_yaml": "loading",
    },
)
