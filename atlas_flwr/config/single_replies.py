# SPDX-License-Identifier: Apache-2.0
"""Which strategies need each client's reply, and not only the sum of all."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SINGLE_REPLIES"]

# Why a strategy cannot do with the sum of its clients' replies.
SINGLE_REPLIES: Mapping[str, str] = {
    "atlas": "each cluster has a sum of its own, of products that are added exactly",
    "centralized": "there is one client, which holds all data",
    "flexlora": "it adds up the clients' products B A, not their factors",
    "flora": "it stacks the clients' factors, and needs each of them",
    "hetlora": "it weighs each client by the norm of its product",
    "hsplitlora": "it concatenates products of unlike ranks",
    "local": "every client has adapters of its own",
    "mira": "every client has adapters of its own, which are mixed",
    "oracle": "each task has a sum of its own",
    "splitlora": "a split client's adapters are on the trunk too, and between "
    "aggregations every client has its own",
}
