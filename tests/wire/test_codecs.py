# SPDX-License-Identifier: Apache-2.0
"""Codecs: exact where they must be, and within their stated error where not."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from atlas_flwr.errors import WireError
from atlas_flwr.types import Role
from atlas_flwr.wire import CODECS, codec_named, decode_tensors, encode_tensors
from atlas_flwr.wire.codecs import Codec

LOSSY = sorted(set(CODECS) - {"raw"})
SPARSE = ["topk", "random-topk"]
DENSE = sorted(set(LOSSY) - set(SPARSE))
CROSSING = [Role.ACTIVATION, Role.GRADIENT]
shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
floats = npst.arrays(
    np.float32, shapes, elements=st.floats(-(2.0**99), 2.0**99, width=32)
)
moderate = npst.arrays(np.float32, shapes, elements=st.floats(-6e4, 6e4, width=32))


def crossed(name: str, array: np.ndarray, role: Role = Role.ACTIVATION) -> np.ndarray:
    return CODECS[name].decode(CODECS[name].encode(array, role))


@pytest.mark.parametrize("name", CODECS)
@given(array=floats)
def test_shape_and_dtype_survive(name, array):
    back = crossed(name, array)
    assert back.shape == array.shape
    assert back.dtype == array.dtype


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("role", [Role.ADAPTER, Role.FINGERPRINT])
@given(array=npst.arrays(np.float32, shapes, elements=st.floats(width=32)))
def test_adapters_and_fingerprints_cross_bit_for_bit(name, role, array):
    assert crossed(name, array, role).tobytes() == array.tobytes()


@given(array=npst.arrays(np.float32, shapes, elements=st.floats(width=32)))
def test_raw_is_the_identity_on_every_role(array):
    for role in Role:
        assert crossed("raw", array, role).tobytes() == array.tobytes()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
@given(data=st.data())
def test_masks_and_labels_cross_exactly_as_activations(name, dtype, data):
    array = data.draw(npst.arrays(dtype, shapes))
    back = crossed(name, array)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@given(array=moderate)
def test_fp16_is_numpys_rounding(array):
    expected = array.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(crossed("fp16", array), expected)


def test_fp16_saturates_instead_of_overflowing():
    array = np.array([7e4, -1e30, 1.0], np.float32)
    np.testing.assert_array_equal(crossed("fp16", array), [65504.0, -65504.0, 1.0])


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_a_number_in_half_precision_stays_one(name, dtype):
    largest = torch.finfo(dtype).max
    for value in (largest, -largest):
        row = torch.full((2, 64), 0.1, dtype=dtype)
        row[0, 3] = value
        frame = encode_tensors(CODECS[name], {"h": (row, Role.ACTIVATION)})
        back = decode_tensors(CODECS[name], frame)["h"]
        assert back.dtype == dtype
        assert back.isfinite().all()
        kept = np.clip(value, -65504, 65504) if name == "fp16" else value
        assert back[0, 3] == kept


@given(array=floats)
def test_bf16_is_torchs_rounding(array):
    expected = torch.from_numpy(array).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(crossed("bf16", array), expected)


@given(array=floats)
def test_int8_errs_by_half_a_step_of_its_row(array):
    back = crossed("int8", array)
    if array.size:
        rows = np.atleast_1d(array)
        bound = np.abs(rows).max(-1, keepdims=True) / 254
        assert (np.abs(np.atleast_1d(back) - rows) <= bound * 1.0001 + 1.5e-36).all()


@given(array=floats)
def test_int4_errs_by_half_a_step_of_its_block(array):
    back = crossed("int4", array)
    if array.size:
        rows = np.atleast_1d(array)
        bound = np.abs(rows).max(-1, keepdims=True) / 13
        assert (np.abs(np.atleast_1d(back) - rows) <= bound + 1.5e-36).all()


def test_int4_blocks_do_not_disturb_each_other():
    row = np.concatenate([np.full(32, 1e6), np.full(32, 1e-3), np.full(5, 1.0)])
    back = crossed("int4", row.astype(np.float32)[None])[0]
    np.testing.assert_allclose(back, row, rtol=0.08)


@given(st.integers(1, 70))
def test_int4_takes_four_and_a_half_bits_a_number(width):
    array = np.ones((8, width), np.float32)
    segment = CODECS["int4"].segment("x", array, Role.GRADIENT)
    assert segment.entry.nbytes == 8 * -(-width // 32) * (16 + 2)


def lengths(rows: np.ndarray) -> np.ndarray:
    """Squared, in float64, where nothing overflows."""
    return (rows.astype(np.float64) ** 2).sum(-1)


@given(array=floats)
def test_topk_errs_by_what_a_row_has_beside_its_largest_eighth(array):
    rows, back = np.atleast_1d(array), np.atleast_1d(crossed("topk", array))
    if not array.size:
        return
    width = rows.shape[-1]
    count = -(-width // 8)
    ordered = np.sort(np.abs(rows.astype(np.float64)), axis=-1)
    step = ordered[..., -1:] / 254 * 1.0001 + 1.5e-36
    assert (
        np.abs(back - rows.astype(np.float64)) <= step + ordered[..., [-count]]
    ).all()
    assert ((back != 0).sum(-1) <= count).all()
    error = lengths(back.astype(np.float64) - rows)
    # Independent of which are sent: what a row has but its K largest.
    rest = (ordered[..., :-count] ** 2).sum(-1)
    assert (error <= rest + count * step[..., 0] ** 2).all()
    assert (rest <= (1 - count / width) * lengths(rows) * 1.0001).all()


@given(array=floats)
def test_random_topk_errs_by_no_more_than_a_row_has(array):
    rows, back = np.atleast_1d(array), np.atleast_1d(crossed("random-topk", array))
    if not array.size:
        return
    count = -(-rows.shape[-1] // 8)
    step = np.abs(rows.astype(np.float64)).max(-1) / 254 * 1.0001 + 1.5e-36
    error = lengths(back.astype(np.float64) - rows)
    assert (error <= lengths(rows) + count * step**2).all()
    assert ((back != 0).sum(-1) <= count).all()


def test_random_topk_gives_a_tenth_of_its_places_to_numbers_that_are_not_large():
    rows = np.tile(np.arange(100, 356, dtype=np.float32), (400, 1))
    rows *= np.linspace(1, 2, 400, dtype=np.float32)[:, None]
    sent = crossed("random-topk", rows) != 0
    assert (sent.sum(-1) == 32).all()
    assert sent[:, :-32].sum() / sent.sum() == pytest.approx(0.1, abs=0.01)
    others = sent[:, :-32].mean(0)  # evenly
    assert others.max() < 0.06


@pytest.mark.parametrize("name", SPARSE)
def test_who_asks_for_an_answer_again_gets_the_same_bytes(name):
    array = np.random.default_rng(0).normal(size=(7, 96)).astype(np.float32)
    codec = CODECS[name]
    first = codec.encode(array, Role.GRADIENT)
    assert codec.encode(array.copy(), Role.GRADIENT) == first


@pytest.mark.parametrize("name", SPARSE)
@given(st.integers(1, 70))
def test_sparse_codecs_take_a_bit_a_number_and_a_byte_for_an_eighth(name, width):
    segment = CODECS[name].segment("x", np.ones((8, width), np.float32), Role.GRADIENT)
    eighth = -(-width // 8)
    assert segment.entry.nbytes == 8 * (eighth + eighth + 4)


def test_a_row_that_claims_other_numbers_than_it_has_is_refused():
    frame = bytearray(CODECS["topk"].encode(np.ones((1, 8), np.float32), Role.GRADIENT))
    frame[-6] = 0b11
    with pytest.raises(WireError, match="8 numbers without the 1"):
        CODECS["topk"].decode(bytes(frame))


def test_int8_rows_do_not_disturb_each_other():
    loud, quiet = np.full(64, 1e6, np.float32), np.full(64, 1e-3, np.float32)
    back = crossed("int8", np.stack([loud, quiet]))
    np.testing.assert_allclose(back[1], quiet, rtol=1e-2)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_diverged_is_not_hidden(name, bad):
    array = np.ones((2, 4), np.float32)
    array[0, 1] = bad
    back = crossed(name, array)
    assert not np.isfinite(back[0]).all()
    assert np.isfinite(back[1]).all()


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("role", CROSSING)
def test_lossy_codecs_save_what_they_promise(name, role):
    array = np.random.default_rng(0).normal(size=(4, 32, 256)).astype(np.float32)
    share = len(CODECS[name].encode(array, role)) / array.nbytes
    assert (
        share
        < {
            "fp16": 0.51,
            "bf16": 0.51,
            "int8": 0.27,
            "int4": 0.15,
            "topk": 0.07,
            "random-topk": 0.07,
        }[name]
    )


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats_are_compressed_and_restored(name, dtype):
    array = np.random.default_rng(0).normal(size=(8, 64)).astype(dtype)
    back = crossed(name, array)
    assert back.dtype == array.dtype
    np.testing.assert_allclose(back, array, atol=0.3 if name == "int4" else 0.02)


@pytest.mark.parametrize("name", LOSSY)
def test_a_frame_of_another_codec_is_refused(name):
    frame = CODECS[name].encode(np.ones(3, np.float32), Role.ACTIVATION)
    with pytest.raises(WireError, match="configured alike"):
        CODECS["raw"].decode(frame)


@pytest.mark.parametrize("name", CODECS)
def test_damaged_payloads_are_refused(name):
    frame = bytearray(CODECS[name].encode(np.ones(30, np.float32), Role.ACTIVATION))
    at = frame.index(b'"shape":[30]')
    frame[at : at + 12] = b'"shape":[90]'
    with pytest.raises(WireError, match="bytes for"):
        CODECS[name].decode(bytes(frame))


def test_an_unknown_codec_is_refused_with_the_known_ones():
    with pytest.raises(WireError, match="allowed: raw, fp16, bf16, int8, int4, topk"):
        codec_named("zip")


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_is_found_under_its_name(name):
    assert codec_named(name).name == name


def test_a_defence_is_a_codec_with_two_methods():
    class Coarse(Codec):
        name = "coarse"

        def compress(self, values):
            return (np.sign(values).astype(np.int8),)

        def expand(self, payload, shape):
            return np.frombuffer(payload, np.int8).reshape(shape).astype(np.float32)

    array = np.array([[3.0, -2.0]], np.float32)
    codec = Coarse()
    back = codec.decode(codec.encode(array, Role.GRADIENT))
    np.testing.assert_array_equal(back, [[1, -1]])
    assert codec.decode(codec.encode(array, Role.ADAPTER)).tolist() == array.tolist()


@pytest.mark.parametrize("name", ["raw", *DENSE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_messages_keep_names_and_dtypes(name, dtype):
    hidden = torch.randn(2, 5, 8).to(dtype)
    mask = torch.ones(2, 5, dtype=torch.int64)
    frame = encode_tensors(
        CODECS[name],
        {
            "hidden": (hidden, Role.ACTIVATION),
            "position_ids": None,
            "mask": (mask, Role.ACTIVATION),
        },
    )
    found = decode_tensors(CODECS[name], frame)
    assert list(found) == ["hidden", "mask"]
    assert found["hidden"].dtype == dtype
    bound = 0.3 if name == "int4" else 0.03
    torch.testing.assert_close(found["hidden"], hidden, atol=bound, rtol=0)
    torch.testing.assert_close(found["mask"], mask, rtol=0, atol=0)


def test_bfloat16_crosses_raw_in_its_own_two_bytes():
    hidden = torch.tensor([1.0, -0.0, 3e38, float("inf")]).to(torch.bfloat16)
    frame = encode_tensors(CODECS["raw"], {"h": (hidden, Role.ADAPTER)})
    back = decode_tensors(CODECS["raw"], frame)["h"]
    assert torch.equal(back.view(torch.int16), hidden.view(torch.int16))
    np.testing.assert_array_equal(CODECS["raw"].decode(frame), hidden.float().numpy())


def test_decoded_tensors_may_be_written_to():
    frame = encode_tensors(CODECS["raw"], {"h": (torch.ones(3), Role.ACTIVATION)})
    decode_tensors(CODECS["raw"], frame)["h"].add_(1)
    assert decode_tensors(CODECS["raw"], frame)["h"].tolist() == [1, 1, 1]


def test_strided_tensors_cross_by_value():
    hidden = torch.randn(4, 6).T
    frame = encode_tensors(CODECS["raw"], {"h": (hidden, Role.ACTIVATION)})
    assert torch.equal(decode_tensors(CODECS["raw"], frame)["h"], hidden)


@pytest.mark.parametrize(("name", "size"), [("raw", 4), ("fp16", 2), ("int8", 1)])
def test_bytes_are_the_payload_and_little_more(name, size):
    array = np.ones((8, 32, 576), np.float32)
    frame = CODECS[name].encode(array, Role.ACTIVATION)
    assert size * array.size <= len(frame) < size * array.size * 1.02


@given(st.data(), st.sampled_from(sorted(CODECS)))
def test_a_damaged_frame_is_refused_or_read_as_an_array(data, name):
    frame = bytearray(CODECS[name].encode(np.ones((3, 4), np.float32), Role.GRADIENT))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(frame) - 1))
        frame[place] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        assert isinstance(CODECS[name].decode(bytes(frame)), np.ndarray)
