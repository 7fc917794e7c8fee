# SPDX-License-Identifier: Apache-2.0
"""All codecs, by name."""

from __future__ import annotations

from collections.abc import Mapping

from atlas_flwr.errors import WireError
from atlas_flwr.types import AUTO_CODEC
from atlas_flwr.wire.codecs.base import Codec
from atlas_flwr.wire.codecs.half import Brain, Half
from atlas_flwr.wire.codecs.int4 import Int4
from atlas_flwr.wire.codecs.int8 import Int8
from atlas_flwr.wire.codecs.topk import RandomTopK, TopK

__all__ = ["CODECS", "CODEC_CHOICES", "codec_named"]

CODECS: Mapping[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec(),
        Half(),
        Brain(),
        Int8(),
        Int4(),
        TopK(),
        RandomTopK(),
    )
}

# What a run may ask for.
CODEC_CHOICES: tuple[str, ...] = (AUTO_CODEC, *CODECS)


def codec_named(name: str) -> Codec:
    """Return a codec.

    Raises
    ------
    WireError
        If there is none of that name.
    """
    if name not in CODECS:
        raise WireError(f"codec {name!r}; allowed: {', '.join(CODECS)}")
    return CODECS[name]
