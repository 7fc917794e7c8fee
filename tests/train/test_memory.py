from __future__ import annotations

import pytest
import torch

from atlas_flwr.budget import give_back_freed_memory
from atlas_flwr.train.memory import PeakMeter

MIB = 1 << 20


def _many() -> list[torch.Tensor]:
    """Take 64 MiB in pieces that glibc keeps in its heap when they are freed."""
    return [torch.ones(MIB // 64) for _ in range(1024)]


@pytest.mark.skipif(not give_back_freed_memory(), reason="needs glibc")
def test_memory_that_was_freed_before_does_not_hide_what_is_taken() -> None:
    taken = _many()
    last = taken.pop()  # at the heap's end, which glibc would give back by itself
    del taken
    with PeakMeter() as meter:
        again = _many()
    assert last is not None
    assert len(again) == 1024
    assert 63 * MIB < meter.peak_bytes < 80 * MIB
