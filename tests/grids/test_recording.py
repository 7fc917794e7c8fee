# SPDX-License-Identifier: Apache-2.0
"""The account of messages."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from atlas_flwr.grids.recording import content_bytes


def test_bytes_are_counted_as_flower_counts_them() -> None:
    config = ConfigRecord({"name": "north", "seen": [1, 2], "is": True, "key": b"abc"})
    metrics = MetricRecord({"loss": 0.5, "parts": [1, 2, 3]})
    content = RecordDict({"config": config, "metrics": metrics})
    assert content_bytes(content) == config.count_bytes() + metrics.count_bytes()


@pytest.mark.parametrize("empty", ["", b"", []])
def test_what_is_empty_counts_by_its_key(empty: str | bytes | list[int]) -> None:
    content = RecordDict({"config": ConfigRecord({"trust": empty, "size": 0})})
    assert content_bytes(content) == len("trust") + len("size") + 8
