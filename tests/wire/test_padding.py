"""Rows of real positions, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.errors import WireError
from atlas_flwr.wire.padding import check_spared, padded, spare_mask, unpadded

masks = st.integers(1, 6).flatmap(
    lambda width: st.lists(
        st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=5
    )
)


@given(masks)
def test_what_is_real_comes_back_and_the_rest_is_zero(rows):
    real = torch.tensor(rows)
    values = torch.randn(*real.shape, 3)
    wanted = torch.where(real[..., None], values, torch.zeros(()))
    assert torch.equal(padded(unpadded(values, real), real), wanted)


@given(masks)
def test_a_mask_spares_where_some_and_not_all_is_real(rows):
    real = torch.tensor(rows)
    found = spare_mask(real.long())
    if 0 < real.sum() < real.numel():
        assert torch.equal(found, real)
    else:
        assert found is None


@pytest.mark.parametrize("mask", [None, torch.zeros(1, 1, 4, 4), torch.zeros(2, 4)])
def test_other_masks_spare_nothing(mask):
    assert spare_mask(mask) is None


def test_rows_that_do_not_fit_the_mask_are_refused():
    with pytest.raises(WireError, match=r"rows of shape \(3, 2\) for a mask with 2"):
        padded(torch.ones(3, 2), torch.tensor([[True, False, True]]))


def test_only_what_is_not_zero_and_finite_tells_that_padding_was_read():
    real = torch.tensor([[False, True]])
    for value in (0.0, float("nan"), float("inf")):
        check_spared(torch.tensor([[[value], [1.0]]]), real, "tail")
    with pytest.raises(WireError, match="batch-size=1"):
        check_spared(torch.tensor([[[1e-9], [1.0]]]), real, "tail")
