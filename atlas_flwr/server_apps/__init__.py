# SPDX-License-Identifier: Apache-2.0
"""Flower's ServerApp: a run, from its configuration to its folder."""
