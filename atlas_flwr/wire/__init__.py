# SPDX-License-Identifier: Apache-2.0
"""What crosses the cut: frames, codecs, byte accounts."""

from atlas_flwr._lazy import attach

__all__ = ["CODECS", "ByteMeter", "Codec", "codec_named"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "CODECS": "codecs",
        "ByteMeter": "accounts",
        "Codec": "codecs",
        "codec_named": "codecs",
    },
)
