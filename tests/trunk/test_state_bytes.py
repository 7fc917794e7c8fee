# SPDX-License-Identifier: Apache-2.0
"""What is written of a session is read again as it was, and nothing else is."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.errors import AtlasError, WireError
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.split import SplitPlan
from atlas_flwr.trunk import SessionSpec
from atlas_flwr.trunk.seams import Neighbour, Seams
from atlas_flwr.trunk.state_bytes import spec_bytes, spec_of, state_bytes, state_of
from atlas_flwr.types import OptimizerSpec

NAMES = st.text(min_size=1, max_size=12)


@st.composite
def factors(draw):
    r, m, n = (draw(st.integers(1, 4)) for _ in range(3))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    scale = draw(st.floats(-1e3, 1e3))
    return LoraFactors(
        torch.randn(r, n, dtype=dtype), torch.randn(m, r, dtype=dtype), scale
    )


ARRAYS = st.sampled_from(
    [
        np.float32(0.1),
        np.zeros((0, 3), np.float16),
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.array([True, False]),
        np.array([1e-300, -np.inf]),
    ]
)
STATES = st.builds(
    AdapterState,
    factors=st.dictionaries(NAMES, factors(), max_size=3),
    dense=st.dictionaries(NAMES, ARRAYS, max_size=3),
    folded=st.dictionaries(NAMES, factors(), max_size=3),
    origin=st.text(max_size=5),
)
NEIGHBOURS = st.none() | st.builds(Neighbour, st.text(), st.text(), st.text())
SPECS = st.builds(
    SessionSpec,
    plan=st.sampled_from([SplitPlan(1, 1), SplitPlan(4, None)]),
    state=STATES,
    optimizer=st.builds(
        OptimizerSpec,
        lr=st.floats(0, 1),
        betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
        accumulate=st.integers(1, 9),
    ),
    shared=st.just("a"),
    folds=st.dictionaries(NAMES, st.integers(0, 9), max_size=3),
    probe=st.booleans(),
    merge=st.integers(1, 4),
    seams=st.none() | st.builds(Seams, st.text(), NEIGHBOURS, NEIGHBOURS),
)


def same_factors(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].scale == other[name].scale
        for a, b in ((one[name].A, other[name].A), (one[name].B, other[name].B)):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def same_state(one, other):
    same_factors(one.factors, other.factors)
    same_factors(one.folded, other.folded)
    assert one.origin == other.origin
    assert one.dense.keys() == other.dense.keys()
    for name, array in one.dense.items():
        assert np.asarray(array).dtype == other.dense[name].dtype
        np.testing.assert_array_equal(array, other.dense[name], strict=True)


@settings(max_examples=40, deadline=None)
@given(SPECS)
def test_a_session_comes_back_as_it_was(spec):
    found = spec_of(spec_bytes(spec))
    same_state(spec.state, found.state)
    for name in ("plan", "optimizer", "shared", "folds", "probe", "merge", "seams"):
        assert getattr(found, name) == getattr(spec, name)


def test_what_only_the_server_keeps_does_not_cross():
    state = AdapterState(rest={"layer": torch.ones(2, 2)})
    assert not state_of(state_bytes(state))[0].rest


@pytest.mark.parametrize("left_out", ["seams", "holder"])
def test_a_session_of_another_version_is_refused_with_what_it_lacks(left_out):
    state, about = state_of(spec_bytes(SessionSpec(SplitPlan(1, 1), AdapterState())))
    del about[left_out]
    said = f"says nothing of '{left_out}': install the same atlas-flwr"
    with pytest.raises(WireError, match=said):
        spec_of(state_bytes(state, about))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_no_session(noise):
    with pytest.raises(WireError):
        spec_of(noise)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_session_with_a_wrong_byte_is_read_or_refused(place, value):
    data = bytearray(spec_bytes(SessionSpec(SplitPlan(1, 1), AdapterState())))
    data[place % len(data)] = value
    with suppress(AtlasError):
        spec_of(bytes(data))
