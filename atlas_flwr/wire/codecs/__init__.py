# SPDX-License-Identifier: Apache-2.0
"""Codecs: how an array becomes bytes. One is a file here and a line in ``registry``.

To add one, derive from :class:`Codec`, give it a name, and override ``compress`` and
``expand``.
"""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.wire.codecs.base import Codec, read, restored
    from atlas_flwr.wire.codecs.registry import CODEC_CHOICES, CODECS, codec_named

__all__ = ["CODECS", "CODEC_CHOICES", "Codec", "codec_named", "read", "restored"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "CODECS": "registry",
        "CODEC_CHOICES": "registry",
        "Codec": "base",
        "codec_named": "registry",
        "read": "base",
        "restored": "base",
    },
)
