# SPDX-License-Identifier: Apache-2.0
"""What crosses the cut: frames, codecs, messages of tensors, byte accounts."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.wire.accounts import ByteMeter
    from atlas_flwr.wire.codecs import CODECS, Codec, codec_named
    from atlas_flwr.wire.messages import decode_tensors, encode_tensors

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
