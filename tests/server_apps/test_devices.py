"""Whole runs on a stand-in for a GPU: nothing meets a tensor of another device.

They are held against the golden losses, which are a CPU's (``tests/golden``).
"""

from __future__ import annotations

import json

import pytest

from atlas_flwr.errors import ConfigError
from atlas_flwr.train import device, weights
from tests.golden.record import KEPT
from tests.runs_on_devices import ATLAS, RUNS, losses
from tests.stand_in_gpu import DEVICE, stand_in_gpu

GOLDEN = json.loads(KEPT.read_text())


@pytest.fixture
def stand_in(monkeypatch):
    def chosen(name):
        return str(DEVICE) if name == "cuda" else name

    monkeypatch.setattr(weights, "chosen_device", chosen)
    with stand_in_gpu():
        yield


# The others take their minutes with `make test-slow`.
AT_ONCE = ("encoder", "two-rounds-both")
EACH = [
    name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.slow)
    for name in RUNS
]


@pytest.mark.parametrize("name", EACH)
def test_a_run_on_a_gpu_has_the_losses_of_one_on_a_cpu(tmp_path, stand_in, name):
    got = losses(tmp_path, **RUNS[name], device="cuda")
    assert got == pytest.approx(GOLDEN[name], rel=1e-4)


@pytest.mark.parametrize(
    ("split", "client", "trunk"),
    [
        ("u-shaped", "cpu", "cuda"),
        pytest.param("vanilla", "cuda", "cpu", marks=pytest.mark.slow),
        pytest.param("u-shaped", "cuda", "cpu", marks=pytest.mark.slow),
        pytest.param("vanilla", "cpu", "cuda", marks=pytest.mark.slow),
    ],
)
def test_clients_and_trunk_may_be_on_unlike_devices(
    tmp_path, stand_in, split, client, trunk
):
    given = {**ATLAS, "split": split}
    got = losses(tmp_path, **given, device=client, trunk_device=trunk)
    assert got == pytest.approx(GOLDEN[split], rel=1e-4)


def test_a_gpu_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device='cuda'.*or set device='cpu'"):
        device.chosen_device("cuda")
    assert device.chosen_device("auto") == "cpu"


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:", "cuda:x", "meta", ""])
def test_what_is_no_device_is_said(name):
    with pytest.raises(ConfigError, match="is no device; write cpu, cuda"):
        device.chosen_device(name)


def test_a_gpu_is_one_of_those_that_there_are(monkeypatch):
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: 2)
    assert [device.chosen_device(f"cuda{which}") for which in ("", ":1")]
    with pytest.raises(ConfigError, match="sees 2 GPU"):
        device.chosen_device("cuda:2")
