# SPDX-License-Identifier: Apache-2.0
"""Attacks, one file each; ``registry.py`` says which a run's wire can be read by."""
