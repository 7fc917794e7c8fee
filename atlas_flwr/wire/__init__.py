# SPDX-License-Identifier: Apache-2.0
"""What crosses the cut: frames, codecs, messages of tensors, byte accounts."""

from atlas_flwr._lazy import attach

__all__ = [
    "CODECS",
    "ByteMeter",
    "Codec",
    "codec_named",
    "decode_tensors",
    "encode_tensors",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "CODECS": "codecs",
        "ByteMeter": "accounts",
        "Codec": "codecs",
        "codec_named": "codecs",
        "decode_tensors": "messages",
        "encode_tensors": "messages",
    },
)
