"""A whole run of ATLAS with a secure sum for each cluster, beside one without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas_flwr.lora.flattening import unflatten
from atlas_flwr.server_apps.checkpoint import load_checkpoint
from tests.server_apps.test_run import run, summary

WHOLE = {
    "nodes": 6,
    "num_clusters": 2,
    "split": "none",
    "ranks": "uniform",
    "lora_rank": 1,
    "local_steps": 1,
    "evaluate_every": 2,
}


def groups(folder):
    saved = load_checkpoint(folder.checkpoint_dir)
    return {g: unflatten(saved.state, f"group/{g}") for g in saved.values["groups"]}


def product(state, name) -> torch.Tensor:
    found = state.factors[name].delta().double()
    return found + state.rest[name].double() if name in state.rest else found


@pytest.mark.slow
def test_a_run_with_secure_sums_gives_the_adapters_of_one_without(tmp_path):
    plain = run(tmp_path, **WHOLE, run_name="plain")
    secure = run(tmp_path, **WHOLE, run_name="secure", secure_aggregation=True)
    expected, found = groups(plain), groups(secure)
    assert expected.keys() == found.keys() == {"0", "1"}
    for group, state in expected.items():
        for name in state.factors:
            wanted, got = product(state, name), product(found[group], name)
            # A sum is off by 1e-7, and the second round trains on from there.
            assert float((got - wanted).norm() / wanted.norm()) < 5e-5, name
        for key, value in state.dense.items():
            np.testing.assert_allclose(found[group].dense[key], value, atol=1e-5)
    before, after = (summary(f)["per_round"][-1] for f in (plain, secure))
    assert after["mean_loss"] == pytest.approx(before["mean_loss"], rel=1e-5)
    assert {r["event"] for r in secure.records()}.isdisjoint({"client-trained"})
    assert {p.name for p in (secure.path / "adapters").iterdir()} == {
        p.name for p in (plain.path / "adapters").iterdir()
    }
