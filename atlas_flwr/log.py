# SPDX-License-Identifier: Apache-2.0
"""Flower's logger, imported in this one place."""

from flwr.common import log

__all__ = ["log"]
