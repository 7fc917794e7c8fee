"""Keys that all of a test's runs share, less those that a strategy refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_flwr.config import options

__all__ = ["read_by"]


def read_by(strategy: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a strategy does not read."""
    known = options()
    return {
        key: value
        for key, value in keys.items()
        if not known[key].only or strategy in known[key].only
    }
