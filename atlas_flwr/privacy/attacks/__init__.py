# SPDX-License-Identifier: Apache-2.0
"""Attacks on what crosses the cut, one file each."""
