"""Small runs learn what they learned when their losses were last written down."""

from __future__ import annotations

import json

import pytest

from tests.golden.record import KEPT
from tests.runs_on_devices import RUNS, losses

GOLDEN = json.loads(KEPT.read_text())
# The others take their minutes with `make test-slow`, or are held against the same
# losses on the stand-in for a GPU (`tests/server_apps/test_devices.py`).
AT_ONCE = ("align-auxiliary", "personal-vanilla", "skip-gradients", "ema")


def test_every_run_has_golden_losses():
    assert GOLDEN.keys() == RUNS.keys()


@pytest.mark.parametrize(
    "name",
    [n if n in AT_ONCE else pytest.param(n, marks=pytest.mark.slow) for n in RUNS],
)
def test_a_run_has_its_golden_losses(tmp_path, name):
    # The last bits depend on the machine; a changed remedy moves far more than these.
    assert losses(tmp_path, **RUNS[name]) == pytest.approx(GOLDEN[name], rel=1e-4)
