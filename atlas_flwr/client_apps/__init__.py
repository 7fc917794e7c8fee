# SPDX-License-Identifier: Apache-2.0
"""Flower's ClientApp, and what it does for each message."""
