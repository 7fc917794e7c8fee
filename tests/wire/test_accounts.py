# SPDX-License-Identifier: Apache-2.0
"""Byte accounts: every byte of a frame, once, under its role."""

from __future__ import annotations

import torch

from atlas_flwr.types import Role
from atlas_flwr.wire import CODECS, ByteMeter, encode_tensors


def test_every_byte_is_counted_once_and_by_direction():
    meter = ByteMeter()
    up = encode_tensors(CODECS["raw"], {"h": (torch.ones(8, 4), Role.ACTIVATION)})
    down = encode_tensors(CODECS["int8"], {"g": (torch.ones(8, 4), Role.GRADIENT)})
    meter.sent(up)
    meter.sent(up)
    meter.received(down)
    assert meter.up == {Role.ACTIVATION: 2 * len(up)}
    assert meter.down == {Role.GRADIENT: len(down)}
    assert (meter.total_up, meter.total_down) == (2 * len(up), len(down))


def test_a_frame_of_several_roles_is_divided_among_them():
    meter = ByteMeter()
    tensors = {
        "h": (torch.ones(3), Role.ACTIVATION),
        "a": (torch.ones(5), Role.ADAPTER),
    }
    frame = encode_tensors(CODECS["raw"], tensors)
    meter.sent(frame)
    assert meter.up[Role.ADAPTER] == 20
    assert meter.total_up == len(frame)
