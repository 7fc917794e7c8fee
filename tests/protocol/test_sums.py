from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.errors import DataError
from atlas_flwr.protocol.sums import SumLayout


def record(**values) -> ArrayRecord:
    return ArrayRecord({key: Array(np.asarray(v)) for key, v in values.items()})


def layout(arrays, clients=2, bits=32) -> SumLayout:
    return SumLayout.of(arrays, clients, bits, "num-examples")


def weighing(weight, **more) -> MetricRecord:
    return MetricRecord({"num-examples": weight, **more})


@given(
    st.lists(st.floats(0.5, 5_000), min_size=1, max_size=6),
    st.integers(0, 99),
    st.integers(8, 40),
)
def test_the_mean_is_the_exact_one_to_the_bound_that_is_stated(weights, seed, bits):
    found = np.random.default_rng(seed).normal(size=(len(weights), 3, 4))
    plan = layout(record(x=found[0]), len(weights), bits)
    vectors = [
        plan.vector(record(x=x), weighing(w)).words
        for x, w in zip(found, weights, strict=True)
    ]
    mean = plan.mean(vectors, [])
    total = math.fsum(weights)
    expected = np.tensordot(weights, found, 1) / total
    bound = len(weights) / (2 ** (bits + 1) * total) + 1e-12
    # The weight itself is rounded to 2^-33, which only odd weights feel.
    bound += len(weights) * 2**-33 / total * np.abs(expected).max()
    np.testing.assert_allclose(mean.arrays["x"].numpy(), expected, rtol=0, atol=bound)
    assert mean.metrics["num-examples"] == pytest.approx(total, abs=1e-8)


def test_large_and_small_metrics_are_both_kept():
    plan = layout(record(x=np.zeros(1)))
    told = {"loss": 3e-5, "bytes": 7e11}
    vectors = [plan.vector(record(x=np.zeros(1)), weighing(w, **told)) for w in (10, 3)]
    assert vectors[0].metrics == ("bytes", "loss")
    mean = plan.mean([v.words for v in vectors], vectors[0].metrics).metrics
    assert mean["loss"] == pytest.approx(3e-5, rel=1e-5)
    assert mean["bytes"] == pytest.approx(7e11, rel=1e-12)
    assert mean["num-examples"] == 13


@pytest.mark.parametrize(
    ("dtype", "after"),
    [("float16", "float16"), ("float32", "float32"), ("int64", "float64")],
)
def test_types_are_those_that_fedavg_gives(dtype, after):
    """It multiplies by a Python float, which keeps floats and lifts integers."""
    value = np.array([[1, 2], [3, 4]], dtype)
    assert (value * 0.5).dtype == after
    plan = layout(record(x=value, scalar=value[0, 0]))
    words = plan.vector(record(x=value, scalar=value[0, 0]), weighing(2)).words
    mean = plan.mean([words, words], []).arrays
    assert mean["x"].numpy().dtype == after
    assert mean["x"].numpy().tolist() == value.tolist()
    assert mean["scalar"].numpy().shape == ()


def test_the_largest_number_that_fits_is_summed_and_the_next_is_refused():
    value = 2.0**31 / 4 / 8
    plan = layout(record(x=np.zeros(1)), clients=4)
    just = record(x=np.array([np.nextafter(value, 0)]))
    words = plan.vector(just, weighing(8)).words
    assert plan.mean([words] * 4, []).arrays["x"].numpy()[0] == pytest.approx(value)
    with pytest.raises(
        DataError, match=r"'x'.*4 clients.*less than 5.37e\+08.*bits=31"
    ):
        plan.vector(record(x=np.array([-value])), weighing(8))


def test_the_bits_that_the_error_names_do():
    big = record(x=np.array([1.0, -7e11]))
    with pytest.raises(DataError, match="fraction_bits=") as caught:
        layout(big, clients=3).vector(big, weighing(5))
    bits = int(str(caught.value).partition("fraction_bits=")[2].split()[0])
    layout(big, 3, bits).vector(big, weighing(5))
    with pytest.raises(DataError, match="too large"):
        layout(big, 3, bits + 1).vector(big, weighing(5))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["array", "metric", "weight"])
def test_what_is_not_finite_is_refused(value, where):
    at = {where: value}
    arrays = record(x=np.array([0.0, at.get("array", 1.0)]))
    told = weighing(at.get("weight", 1.0), loss=at.get("metric", 1.0))
    with pytest.raises(
        DataError, match=r"NaN or infinity|it must be the client's weight"
    ):
        layout(arrays).vector(arrays, told)


@pytest.mark.parametrize(
    ("came", "told"),
    [
        ({"x": np.zeros((3, 2))}, r"'x': sent \(2, 3\), came back \(3, 2\)"),
        ({"y": np.zeros((2, 3))}, r"'x': sent \(2, 3\), came back not"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(1)}, "'y': sent not, came back"),
    ],
)
def test_arrays_of_other_names_or_shapes_are_refused(came, told):
    with pytest.raises(DataError, match=told):
        layout(record(x=np.zeros((2, 3)))).vector(record(**came), weighing(1))


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"loss": 1.0}, "'num-examples' is None"),
        ({"num-examples": -1}, "0 or more"),
        ({"num-examples": 1, "losses": [1.0, 2.0]}, "'losses' is a list"),
    ],
)
def test_metrics_that_cannot_be_summed_are_refused(metrics, told):
    arrays = record(x=np.zeros(1))
    with pytest.raises(DataError, match=told):
        layout(arrays).vector(arrays, MetricRecord(metrics))


@pytest.mark.parametrize("bits", [0, 53, -1])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(DataError, match="1 to 52"):
        layout(record(x=np.zeros(1)), bits=bits)


def test_sums_of_other_lengths_of_noise_and_of_no_weight_are_refused():
    arrays = record(x=np.zeros(3))
    plan = layout(arrays)
    words = plan.vector(arrays, weighing(0)).words
    with pytest.raises(DataError, match=r"shape \(5,\).*must be \(6,\)"):
        plan.mean([words, words[1:]], [])
    with pytest.raises(DataError, match="noise"):
        plan.mean([words, words + np.uint64(77)], [])
    with pytest.raises(DataError, match=r"sum to 0\.0"):
        plan.mean([words, words], [])
