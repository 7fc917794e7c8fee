# SPDX-License-Identifier: Apache-2.0
"""Messages: several torch tensors in one frame, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from atlas_flwr.errors import WireError
from atlas_flwr.types import Role
from atlas_flwr.wire.codecs import Codec, read, restored
from atlas_flwr.wire.frames import Segment, pack, unpack

__all__ = ["decode_tensors", "encode_tensors"]


def encode_tensors(
    codec: Codec, tensors: Mapping[str, tuple[Tensor, Role] | None]
) -> bytes:
    """Encode named tensors, each by its role.

    Parameters
    ----------
    codec : Codec
        For activations and gradients.
    tensors : Mapping[str, tuple[Tensor, Role] or None]
        What is ``None`` is left out. On the CPU, a tensor's bytes are copied once.
    """
    given = [(name, *found) for name, found in tensors.items() if found is not None]
    return pack([_segment(codec, name, tensor, role) for name, tensor, role in given])


def decode_tensors(codec: Codec, frame: bytes) -> dict[str, Tensor]:
    """Decode a frame that :func:`encode_tensors` made with the same codec.

    Returns
    -------
    dict[str, Tensor]
        On the CPU, with the dtypes that were encoded.

    Raises
    ------
    WireError
        If the bytes are not a frame, or another codec's.
    """
    found = {}
    for entry, payload in unpack(frame):
        if entry.codec not in (codec.name, Codec.name):
            raise WireError(
                f"tensor {entry.name!r} came in codec {entry.codec!r} to a side that "
                f"uses {codec.name!r}; both sides must be configured alike"
            )
        if entry.dtype == "bfloat16" and entry.codec == Codec.name:
            bits = np.array(read(payload, "int16", entry.shape))
            found[entry.name] = torch.from_numpy(bits).view(torch.bfloat16)
            continue
        array = restored(codec, entry, payload)
        native = array.dtype.newbyteorder("=")
        tensor = torch.from_numpy(np.require(array, native, ["C", "W"]))
        found[entry.name] = tensor.to(getattr(torch, entry.dtype))
    return found


def _segment(codec: Codec, name: str, tensor: Tensor, role: Role) -> Segment:
    plain = tensor.detach().cpu()
    if plain.dtype == torch.bfloat16:
        bits = plain.contiguous().view(torch.int16)
        return codec.segment(name, bits.numpy(), role, dtype="bfloat16")
    return codec.segment(name, plain.numpy(), role)
