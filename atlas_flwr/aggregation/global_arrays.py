# SPDX-License-Identifier: Apache-2.0
"""The arrays that a strategy is started with, and those that it returns each round."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from logging import WARNING

import numpy as np
from flwr.app import ArrayRecord

from atlas_flwr.errors import AdapterError
from atlas_flwr.log import log
from atlas_flwr.lora import AdapterState, Scaling
from atlas_flwr.protocol.layout import Layout

__all__ = ["GlobalArrays", "Ranks"]

Ranks = Mapping[str, int] | int | None


@dataclass
class GlobalArrays:
    """What all clients start from, its layout, and what the next round should bring.

    Parameters
    ----------
    scaling : Scaling
        LoRA's scale on the clients.
    """

    scaling: Scaling = field(default_factory=Scaling)
    _layout: Layout | None = None
    _initial: AdapterState | None = None
    _expected: ArrayRecord | None = None  # a copy, as who has them may change them
    _digests: tuple[str, ...] = ()  # of the first, and of a resumed run's expected ones

    def begin(self, arrays: ArrayRecord) -> None:
        """Take the arrays of a round; the first are the initial ones."""
        if self._layout is None:
            self._layout = Layout.of(arrays, self.scaling)
            for kind in self._layout.nearly:
                log(WARNING, "%s is averaged number by number: near, not exact", kind)
        if self._initial is None:
            self._initial = self._layout.read(arrays, "initial arrays")
            self._digests = (_digest(arrays),)
        self.expect(arrays)

    def expect(self, arrays: ArrayRecord) -> None:
        """Remember what the next round's arrays are, unless somebody changes them."""
        self._expected = ArrayRecord(dict(arrays))

    def are_changed(self, arrays: ArrayRecord) -> bool:
        """Tell whether a round's arrays are other than expected."""
        if self._expected is None:
            return bool(self._digests) and _digest(arrays) not in self._digests
        return not _same(self._expected, arrays)

    @property
    def digests(self) -> tuple[str, ...]:
        """What tells arrays that a resumed run may begin with from changed ones."""
        if self._expected is None:
            return self._digests
        return (*self._digests[:1], _digest(self._expected))

    def restore(self, initial: AdapterState, digests: Iterable[str]) -> None:
        """Take up a run that began with these adapters.

        It goes on with the arrays that it had last, or with those that it began with,
        which say nothing new; any others are taken for changed.
        """
        self._initial, self._digests = initial, tuple(digests)

    @property
    def has_begun(self) -> bool:
        """Whether arrays have come since this object was made."""
        return self._expected is not None

    @property
    def layout(self) -> Layout:
        """Names and shapes of the arrays exchanged."""
        if self._layout is None:
            raise AdapterError("the strategy has not started: call start() first")
        return self._layout

    @property
    def initial(self) -> AdapterState:
        """What all clients start from."""
        if self._initial is None:
            raise AdapterError("the strategy has not started: call start() first")
        return self._initial

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of every adapted layer."""
        return {name: found.shape for name, found in self.initial.factors.items()}

    def ranks(self, given: Ranks) -> dict[str, int]:
        """Return the rank of every adapted layer, none above the layer's own.

        Parameters
        ----------
        given : Mapping[str, int] or int, optional
            By layer, 0 where it has none; one for all; ``None`` for the initial ones.

        Raises
        ------
        AdapterError
            If a layer has none in the initial arrays.
        """
        factors = self.initial.factors
        if given is None:
            return {name: f.rank for name, f in factors.items()}
        if isinstance(given, int):
            return {name: min(given, *f.shape) for name, f in factors.items()}
        strange = sorted(set(given) - set(factors))
        if strange:
            raise AdapterError(
                f"ranks were assigned to {len(strange)} layers that the initial arrays "
                f"do not have, the first: {strange[0]!r}"
            )
        return {name: min(given.get(name, 0), *f.shape) for name, f in factors.items()}


def _digest(arrays: ArrayRecord) -> str:
    found = hashlib.sha256()
    for key, array in arrays.items():
        found.update(f"{key} {array.dtype} {array.shape} ".encode())
        found.update(array.numpy().tobytes())
    return found.hexdigest()


def _same(one: ArrayRecord, other: ArrayRecord) -> bool:
    return one.keys() == other.keys() and all(
        one[key] is other[key]
        or np.array_equal(one[key].numpy(), other[key].numpy(), equal_nan=True)
        for key in one
    )
