# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a piece of work, measured."""

from __future__ import annotations

import gc
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from atlas_flwr.budget import give_back_freed_memory

__all__ = ["PeakMeter", "resident_bytes"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass
class PeakMeter:
    """Measure the largest resident memory inside a ``with`` block, less that before it.

    On Linux the kernel's high-water mark is reset first, so that the block's own peak
    is seen (``method == "reset"``). Elsewhere the mark is that of the whole process
    since it began, and earlier peaks hide smaller ones (``method == "process"``). What
    was freed before and is kept by glibc is given back first: it would count as being
    there before, and the block could take it unseen.

    On a GPU it is the memory of the GPU that this process's tensors take (``method ==
    "device"``).

    Parameters
    ----------
    device : str
        Where the work is done.

    Attributes
    ----------
    peak_bytes : int
        Set when the block ends.
    method : str
        How it was measured.
    """

    device: str = "cpu"
    peak_bytes: int = 0
    method: str = "process"
    _before: int = 0

    def __enter__(self) -> PeakMeter:
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
            self.method = "device"
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        if _CLEAR.exists():
            give_back_freed_memory()
            _CLEAR.write_text("5")
            self.method = "reset"
        self._before = resident_bytes()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.peak_bytes = self.so_far()

    def so_far(self) -> int:
        """Return the peak since the block began."""
        if self.method == "device":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _high_water(self.method)
        return max(peak - self._before, 0)


def resident_bytes() -> int:
    """Return this process's resident memory now (its maximum where /proc is absent)."""
    return _status("VmRSS") if _STATUS.exists() else _high_water("process")


def _high_water(method: str) -> int:
    if method == "reset":
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024
