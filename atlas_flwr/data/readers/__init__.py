# SPDX-License-Identifier: Apache-2.0
"""Readers: files of several formats as rows, a module for each kind of file."""

from atlas_flwr.data.readers.reading import PRESET_ENCODING, READERS, Reading

__all__ = ["PRESET_ENCODING", "READERS", "Reading"]
