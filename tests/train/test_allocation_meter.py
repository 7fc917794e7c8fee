from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from atlas_flwr.train.allocation_meter import LiveBytes

KIB = 1024


def floats(kib):
    return torch.empty(kib * KIB // 4)


def test_a_tensor_counts_from_its_making_to_its_end():
    with LiveBytes() as seen:
        one = floats(4)
        assert seen.live == 4 * KIB
        two = floats(8)
        del one
        assert seen.live == 8 * KIB
        three = floats(2)
    assert (seen.live, seen.peak) == (10 * KIB, 12 * KIB)
    del two, three
    assert seen.live == 0


def test_views_and_in_place_operations_take_nothing():
    with LiveBytes() as seen:
        one = floats(4)
        views = [one.view(2, -1), one[:5], one.add_(1.0), one.detach()]
        assert seen.live == 4 * KIB
        del one
        assert seen.live == 4 * KIB
        views.clear()
    assert seen.live == 0


def test_what_autograd_keeps_lives_until_its_backward():
    x = torch.ones(KIB, requires_grad=True)
    with LiveBytes() as seen:
        y = x.exp().exp().sum()  # exp keeps its result, 4 KiB each
        assert seen.live == 2 * 4 * KIB + 4
        y.backward()
        del y
        assert x.grad is not None
        assert seen.live == 4 * KIB  # the gradient


def test_what_is_ignored_does_not_count_when_an_operation_returns_it():
    x = floats(4)
    with LiveBytes() as seen:
        seen.ignore([x])
        x.add_(1.0)
    assert seen.peak == 0


def test_a_new_peak_begins_at_what_is_alive():
    with LiveBytes() as seen:
        kept = floats(2)
        floats(8)
        seen.restart()
        assert seen.peak == seen.live == kept.untyped_storage().nbytes()


@pytest.mark.parametrize("fake", [False, True])
def test_fake_tensors_count_as_real_ones(fake):
    def work():
        layer = torch.nn.Linear(64, 32)
        with LiveBytes() as seen:
            seen.ignore([*layer.parameters()])
            layer(torch.ones(8, 64)).relu().sum().backward()
        return seen.live, seen.peak

    if not fake:
        x, out, grads = 8 * 64 * 4, 8 * 32 * 4, (64 + 1) * 32 * 4
        live, peak = work()
        assert live == grads
        assert x + 2 * out <= peak <= x + 4 * out + grads
        return
    real = work()
    with FakeTensorMode():
        assert work() == real
