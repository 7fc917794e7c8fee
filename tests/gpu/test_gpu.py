"""What runs on a CPU runs on a real GPU, to the same losses: `make test-gpu`."""

from __future__ import annotations

import pytest
import torch

from tests.runs_on_devices import ATLAS, RUNS, losses

ROUNDED = {"int8": 1e-2, "int4": 1e-1}  # a last bit may fall into their next step

pytestmark = pytest.mark.gpu  # where there is none they fail, and say so


@pytest.fixture(autouse=True)
def exact_products():
    """Without TF32, so that products are as exact as a CPU's."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ROUNDED])
def test_a_run_has_the_losses_of_one_on_a_cpu(tmp_path, name):
    expected = losses(tmp_path, **RUNS[name])
    got = losses(tmp_path, **RUNS[name], device="cuda")
    assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_on_the_wire_stays_rounding(tmp_path, name):
    expected = losses(tmp_path, **RUNS[name])
    got = losses(tmp_path, **RUNS[name], device="cuda")
    assert got == pytest.approx(expected, rel=ROUNDED[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("split", ["u-shaped", "vanilla"])
def test_half_precision_is_near_single(tmp_path, dtype, split):
    given = {**ATLAS, "split": split, "aggregation": "truncate"}
    expected = losses(tmp_path, **given)
    got = losses(tmp_path, **given, device="cuda", dtype=dtype)
    assert got == pytest.approx(expected, rel=3e-2)


@pytest.mark.parametrize("split", ["u-shaped", "vanilla"])
@pytest.mark.parametrize("where", [("cpu", "cuda"), ("cuda", "cpu")])
def test_clients_and_trunk_may_be_on_unlike_devices(tmp_path, split, where):
    given = {**ATLAS, "split": split}
    client, trunk = where
    got = losses(tmp_path, **given, device=client, trunk_device=trunk)
    assert got == pytest.approx(losses(tmp_path, **given), rel=1e-4)


def test_a_client_keeps_within_its_budget_of_the_gpu(tmp_path):
    given = {**ATLAS, "device": "cuda", "devices": "20MiB,28MiB"}
    assert losses(tmp_path, **given)
