"""Inner products of updates equal those of the dense matrices."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.lora.update import Update, inner_products


def state(rng, ranks, dense=True):
    factors = {
        name: LoraFactors(
            torch.tensor(rng.normal(size=(rank, 5)), dtype=torch.float32),
            torch.tensor(rng.normal(size=(4, rank)), dtype=torch.float32),
            float(rng.uniform(0.5, 2)),
        )
        for name, rank in ranks.items()
    }
    arrays = {"head": rng.normal(size=3).astype(np.float32), "count": np.array(7)}
    return AdapterState(factors, arrays if dense else {})


def whole(found):
    """All of an update in one vector, formed."""
    parts = []
    for name in ("q", "k"):
        change = torch.zeros(4, 5, dtype=torch.float64)
        for sign, at in ((1, found.after), (-1, found.before)):
            if name in found.after.factors and name in at.factors:
                f = at.factors[name]
                change += sign * f.scale * (f.B.double() @ f.A.double())
        parts.append(change.reshape(-1).numpy())
    dense = np.zeros(3)
    if "head" in found.after.dense:
        dense += found.after.dense["head"].astype(float)
        dense -= found.before.dense["head"].astype(float)
    return np.concatenate([*parts, dense])


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_inner_products_are_those_of_the_formed_updates(seed, count):
    rng = np.random.default_rng(seed)
    updates = []
    for k in range(count):
        layers = ["q", "k"] if rng.random() < 0.7 else ["q"]
        before = {name: int(rng.integers(1, 4)) for name in layers}
        after = {name: int(rng.integers(1, 4)) for name in layers}
        has_head = bool(rng.random() < 0.7)
        pair = state(rng, before), state(rng, after, has_head)
        updates.append(Update(str(k), 1.0, *pair))
    rows = np.stack([whole(found) for found in updates])
    np.testing.assert_allclose(
        inner_products(updates), rows @ rows.T, rtol=1e-6, atol=1e-6
    )


def test_infinities_that_stay_are_no_change():
    before = np.array([0.0, -np.inf, np.inf], np.float32)
    after = np.array([2.0, -np.inf, np.inf], np.float32)
    states = (AdapterState({}, {"mask": value}) for value in (before, after))
    update = Update("a", 1.0, *states)
    assert inner_products([update, update]).tolist() == [[4.0, 4.0], [4.0, 4.0]]


def test_inner_products_are_the_same_to_the_bit_in_whatever_order_layers_come():
    """A checkpoint sorts them, and a resumed run is to have the same numbers."""
    rng = np.random.default_rng(0)
    names = dict.fromkeys(map(str, range(30)), 2)
    updates = [Update("a", 1.0, state(rng, names), state(rng, names)) for _ in "ab"]
    turned = [
        Update(
            u.client, u.weight, u.before, AdapterState(backwards(u.after.factors), {})
        )
        for u in updates
    ]
    plain = [
        Update(u.client, 1.0, u.before, u.after.select(names, {})) for u in updates
    ]
    np.testing.assert_array_equal(inner_products(plain), inner_products(turned))


def backwards(factors):
    return dict(reversed(factors.items()))
