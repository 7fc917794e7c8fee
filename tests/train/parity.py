"""Split training held to PEFT's on the unsplit model."""

from __future__ import annotations

import torch


def assert_trained_alike(found, expected, start):
    """Compare (losses, state) of a split run with (losses, parameters) of PEFT's."""
    losses, state = found
    wanted_losses, wanted = expected
    torch.testing.assert_close(losses, wanted_losses, atol=2e-5, rtol=2e-5)
    assert state.dense.keys() == wanted.keys()
    for key, value in wanted.items():
        got = torch.from_numpy(state.dense[key])
        torch.testing.assert_close(got, value.detach(), atol=1e-4, rtol=1e-3)
        assert (state.dense[key] != start.dense[key]).any(), key
