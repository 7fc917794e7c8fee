# SPDX-License-Identifier: Apache-2.0
"""Flower's logger, imported in this one place."""

from flwr.supercore import log

__all__ = ["log"]
