# SPDX-License-Identifier: Apache-2.0
"""Noise that nobody can take away: from the system's generator, not from torch's.

Torch's generator on a CPU has 2^32 seeds, whatever it is seeded with, and who has what
was sent can try them all. Nor does a better seed do: where noise is known, as at the
places of a template, for which a server computes what would be sent without, its state
follows from some hundred numbers, and with it all other noise of the round.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["SystemGenerator", "normal", "uniform"]

BITS = 52  # of a number, so that half a step beside 0 and 1 is one, too


class SystemGenerator(torch.Generator):
    """Stands for the system's generator where one of torch's is asked for."""


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw numbers between 0 and 1."""
    if not isinstance(generator, SystemGenerator):
        return torch.rand(*shape, generator=generator)
    words = np.frombuffer(os.urandom(8 * math.prod(shape)), np.uint64)
    drawn = ((words >> np.uint64(64 - BITS)) + 0.5) / 2.0**BITS
    return torch.from_numpy(drawn).reshape(*shape)


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw numbers of mean 0 and deviation 1, normal ones."""
    if not isinstance(generator, SystemGenerator):
        return torch.randn(*shape, generator=generator)
    found: Tensor = torch.special.ndtri(uniform(shape, generator))
    return found
