# SPDX-License-Identifier: Apache-2.0
"""Defences of what crosses the cut, one file each."""
