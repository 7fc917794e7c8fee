# SPDX-License-Identifier: Apache-2.0
r"""What clients of a secure sum send: weighted arrays and metrics as 64-bit words.

Client i with weight :math:`w_i` turns a number x of its arrays into the word
:math:`\lfloor 2^b w_i x \rceil \bmod 2^{64}`, b being the bits after the point. Every
client keeps its words under :math:`2^{63} / n` in size, so that the sum of n is right
in two's complement; a number that would not fit is refused, never wrapped or clipped.
The mean differs from the exact one by :math:`n / (2^{b+1} \sum_i w_i)` at most, not
counting float64's own rounding.

A vector begins with the word 1, whose sum is the number of clients: where a mask was
left, it is noise, and so is noticed. Then come the weight and the metrics times the
weight, which may be large (bytes) or small (losses), in two words each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from numpy.typing import NDArray

from atlas_flwr.errors import DataError

__all__ = ["FEWEST", "SECURE", "SecureMean", "SumLayout", "Vector"]

SECURE = "secure-sum"  # the record, in messages and in a client's state
FEWEST = 2  # a sum of one hides nothing
MOST_BITS = 52  # a float64 has no more
_COARSE = 2.0**16  # step of a metric's upper word
_FINE = 2.0**-32  # step of its lower one


@dataclass(frozen=True)
class Vector:
    """One client's words, and what its metrics are called.

    Attributes
    ----------
    words : NDArray
        Shape (1 + 2 (1 + metrics) + numbers,), uint64.
    metrics : tuple[str, ...]
        Sorted, without the weight.
    """

    words: NDArray[np.uint64]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class SecureMean:
    """What a sum comes to.

    Attributes
    ----------
    arrays : ArrayRecord
        Weighted mean, in the floating type that FedAvg would give it.
    metrics : MetricRecord
        Weighted means, and the sum of the weights.
    rounding : float
        How far a number of the arrays may be off.
    """

    arrays: ArrayRecord
    metrics: MetricRecord
    rounding: float


@dataclass(frozen=True)
class SumLayout:
    """How arrays and metrics become words, the same for a whole group.

    Attributes
    ----------
    arrays : dict[str, tuple]
        Shape and dtype of each array, as the server sent them. Their words come in
        order of their names.
    clients : int
        Most clients of the group.
    bits : int
        Bits after the point.
    weighted_by : str
        The metric that is the weight.

    Raises
    ------
    DataError
        If the bits are not 1 to 52.
    """

    arrays: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
    clients: int
    bits: int
    weighted_by: str

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MOST_BITS:
            raise DataError(f"fraction_bits={self.bits}; allowed: 1 to {MOST_BITS}")

    @classmethod
    def of(
        cls, arrays: ArrayRecord, clients: int, bits: int, weighted_by: str
    ) -> SumLayout:
        """Take the layout from what was sent to train on."""
        found = {key: array.numpy() for key, array in arrays.items()}
        shapes = {key: (value.shape, value.dtype) for key, value in found.items()}
        return cls(shapes, clients, bits, weighted_by)

    def vector(self, arrays: ArrayRecord, metrics: MetricRecord) -> Vector:
        """Turn a client's arrays and metrics into words.

        Raises
        ------
        DataError
            If arrays are not those that were sent, of the same shapes; if the weight is
            missing or negative; if a metric is a list; if a number is not finite, or
            too large to be summed.
        """
        weight, names, values = self._numbers(metrics)
        numbers = np.array([weight, *(weight * value for value in values)])
        self._check_finite("weight and metrics", numbers)
        coarse = np.rint(numbers / _COARSE)
        fine = np.rint((numbers - coarse * _COARSE) / _FINE)
        self._check_range("a metric times its weight", coarse, _COARSE)
        words = [np.ones(1), coarse, fine]
        self._check_shapes(arrays)
        for key in sorted(self.arrays):
            value = np.asarray(arrays[key].numpy(), np.float64).ravel()
            self._check_finite(f"array {key!r}", value)
            scaled = np.rint(value * weight * 2.0**self.bits)
            self._check_range(f"array {key!r} times its weight", scaled)
            words.append(scaled)
        whole = np.concatenate(words).astype(np.int64).view(np.uint64)
        return Vector(whole, names)

    def mean(
        self, vectors: Sequence[NDArray[np.uint64]], names: Sequence[str]
    ) -> SecureMean:
        """Add the masked vectors of a whole group, and divide by its weight.

        Parameters
        ----------
        vectors : Sequence[NDArray]
            Shape (words,), uint64.
        names : Sequence[str]
            Names of the metrics.

        Raises
        ------
        DataError
            If a vector is of another length, the sum is noise, or all weights are 0.
        """
        starts = np.cumsum([1, 1 + len(names), 1 + len(names)])
        keys = sorted(self.arrays)
        sizes = [math.prod(self.arrays[key][0]) for key in keys]
        length = int(starts[-1]) + sum(sizes)
        for vector in vectors:
            if vector.shape != (length,) or vector.dtype != np.uint64:
                raise DataError(
                    f"a masked vector of shape {vector.shape} and {vector.dtype}; it "
                    f"must be ({length},) and uint64"
                )
        words = np.add.reduce(vectors).view(np.int64)
        if words[0] != len(vectors):
            raise DataError(
                f"the sum of {len(vectors)} masked vectors is noise: the clients did "
                "not mask for the same group"
            )
        _, coarse, fine, rest = np.split(words, starts)
        numbers = coarse * _COARSE + fine * _FINE
        weight = float(numbers[0])
        if not weight > 0:
            raise DataError(
                f"the weights ({self.weighted_by!r}) sum to {weight}; somebody must "
                "have examples"
            )
        means = [float(value) / weight for value in numbers[1:]]
        told = dict(zip(names, means, strict=True))
        scaled = rest / (2.0**self.bits * weight)
        parts = dict(zip(keys, np.split(scaled, np.cumsum(sizes)[:-1]), strict=True))
        arrays = {
            key: Array(
                np.asarray(parts[key].reshape(shape), np.result_type(dtype, 1.0))
            )
            for key, (shape, dtype) in self.arrays.items()
        }
        record = MetricRecord({**told, self.weighted_by: weight})
        rounding = len(vectors) / (2.0 ** (self.bits + 1) * weight)
        return SecureMean(ArrayRecord(arrays), record, rounding)

    def _numbers(
        self, metrics: MetricRecord
    ) -> tuple[float, tuple[str, ...], list[float]]:
        found: dict[str, float] = {}
        for name, value in metrics.items():
            if isinstance(value, list):
                raise DataError(
                    f"metric {name!r} is a list; only numbers are summed: send them "
                    "under a name each"
                )
            found[name] = float(value)
        weight = found.pop(self.weighted_by, None)
        if weight is None or not weight >= 0:
            raise DataError(
                f"metric {self.weighted_by!r} is {weight}; it must be the client's "
                "weight, 0 or more"
            )
        names = tuple(sorted(found))
        return weight, names, [found[name] for name in names]

    def _check_shapes(self, arrays: ArrayRecord) -> None:
        came = {key: array.numpy().shape for key, array in arrays.items()}
        sent = {key: shape for key, (shape, _) in self.arrays.items()}
        odd = [
            f"{key!r}: sent {sent.get(key, 'not')}, came back {came.get(key, 'not')}"
            for key in sorted({*came, *sent})
            if came.get(key) != sent.get(key)
        ]
        if odd:
            raise DataError(
                "a secure sum takes the arrays that were sent, of the same shapes; "
                + "; ".join(odd)
            )

    def _check_finite(self, what: str, values: NDArray[np.float64]) -> None:
        if not np.isfinite(values).all():
            raise DataError(f"{what}: NaN or infinity, which would spoil the whole sum")

    def _check_range(
        self, what: str, words: NDArray[np.float64], step: float | None = None
    ) -> None:
        largest, limit = np.abs(words).max(initial=0.0), 2.0**63 / self.clients
        if largest < limit:
            return
        unit = step or 2.0**-self.bits
        fits = self.bits - int(np.floor(np.log2(largest / limit))) - 1
        mend = f"; fraction_bits={fits} would do" if step is None and fits > 0 else ""
        raise DataError(
            f"{what} is {largest * unit:.3g}: too large to be summed over "
            f"{self.clients} clients, allowed is less than {limit * unit:.3g}{mend}"
        )
