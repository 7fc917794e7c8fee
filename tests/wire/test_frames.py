# SPDX-License-Identifier: Apache-2.0
"""Frames: what was packed comes out, and nothing else is accepted."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from atlas_flwr.errors import WireError
from atlas_flwr.types import Role
from atlas_flwr.wire import CODECS
from atlas_flwr.wire.frames import MAGIC, Entry, Segment, pack, unpack

DTYPES = ["bool", "float16", "float32", "float64", "int8", "int32", "int64", "uint8"]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, min_side=0))
)


def segment(name: str, array: np.ndarray, role: Role = Role.ADAPTER) -> Segment:
    return CODECS["raw"].segment(name, array, role)


def frame_with(rows: object, payload: bytes = b"") -> bytes:
    header = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    header += b" " * (-(10 + len(header)) % 16)
    length = len(header).to_bytes(4, "little")
    return MAGIC + b"\x01\x00" + length + header + payload


def row(**changes: object) -> dict[str, object]:
    plain = {
        "name": "x",
        "role": "adapter",
        "codec": "raw",
        "dtype": "uint8",
        "shape": [3],
        "nbytes": 3,
    }
    return {**plain, **changes}


@given(st.dictionaries(st.text(max_size=8), arrays, max_size=4))
def test_named_arrays_come_out_as_they_went_in(given_arrays):
    found = unpack(pack([segment(name, a) for name, a in given_arrays.items()]))
    assert [entry.name for entry, _ in found] == list(given_arrays)
    for (entry, payload), array in zip(found, given_arrays.values(), strict=True):
        assert entry.shape == array.shape
        assert entry.dtype == array.dtype.name
        assert bytes(payload) == array.tobytes()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_every_tensor_is_aligned_for_its_reader(sizes):
    frame = pack([segment(str(i), np.ones(n, np.int8)) for i, n in enumerate(sizes)])
    whole = np.frombuffer(frame, np.uint8)
    for _, payload in unpack(frame):
        if len(payload):
            at = np.frombuffer(payload, np.uint8).ctypes.data - whole.ctypes.data
            assert at % 16 == 0


def test_payload_is_little_endian_whatever_the_array_is():
    frame = pack([segment("x", np.array([1, 2], ">i4"))])
    assert bytes(unpack(frame)[0][1]) == b"\x01\0\0\0\x02\0\0\0"


def test_reading_copies_nothing():
    frame = pack([segment("x", np.arange(1000))])
    _, payload = unpack(frame)[0]
    assert payload.obj is frame


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(WireError):
        unpack(data)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_frame_is_refused_or_is_a_frame(data):
    frame = bytearray(pack([segment("x", np.arange(5.0)), segment("y", np.arange(3))]))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(
            st.integers(0, 255)
        )
    with suppress(WireError):  # and no other exception ever
        for entry, payload in unpack(bytes(frame)):
            assert len(payload) == entry.nbytes


@given(st.integers(min_value=0))
def test_a_frame_cut_short_is_refused(cut):
    frame = pack([segment("x", np.arange(5.0)), segment("y", np.arange(3))])
    with pytest.raises(WireError):
        unpack(frame[: cut % len(frame)])


def test_bytes_after_the_end_are_refused():
    with pytest.raises(WireError, match="came with"):
        unpack(pack([segment("x", np.arange(5.0))]) + b"\0")


def test_another_version_is_refused_with_a_remedy():
    frame = bytearray(pack([segment("x", np.arange(5.0))]))
    frame[4] = 9
    with pytest.raises(WireError, match=r"version 9.*same release"):
        unpack(bytes(frame))


@pytest.mark.parametrize(
    "rows",
    [
        b"[" * 60_000,  # deeper than the parser goes
        b"\xff\xfe",
        {"name": "x"},
        ["x"],
        [row(extra=1)],
        [row(dtype=["uint8"])],
        [row(dtype="object")],
        [row(dtype="S3")],
        [row(role="boss")],
        [row(codec=7)],
        [row(shape=3)],
        [row(shape=[True, True, True])],
        [row(shape=[-1, -3])],
        [row(shape=[0, 2**60], nbytes=0)],
        [row(shape=[1] * 9 + [3])],
        [row(nbytes=-1)],
        [row(nbytes=2**70)],
        [row(shape=[10**400])],
        [row(), row()],
    ],
    ids=lambda rows: str(rows)[:40],
)
def test_headers_that_lie_are_refused(rows):
    with pytest.raises(WireError):
        unpack(frame_with(rows, b"abc" + b"\0" * 13 + b"abc"))


def test_shape_and_payload_must_agree():
    frame = frame_with([row(dtype="float32")], b"abc")
    with pytest.raises(WireError, match="3 bytes for float32"):
        CODECS["raw"].decode(frame)


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(WireError, match="unique"):
        pack([segment("x", np.arange(3)), segment("x", np.arange(3))])


def test_what_cannot_be_a_tensor_is_refused():
    with pytest.raises(WireError, match="complex64"):
        segment("x", np.ones(3, np.complex64))
    with pytest.raises(WireError, match="object"):
        segment("x", np.array([object()]))


def test_an_entry_says_what_is_allowed():
    with pytest.raises(WireError, match="allowed: bfloat16, bool"):
        Entry("x", Role.ADAPTER, "raw", "quad", (3,), 3)
