from __future__ import annotations

import pytest
import torch

from atlas_flwr.lora import widen
from tests.families import batch, build


def classifier(dtype):
    return build("bert").to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_wide_classifier_on_a_narrow_base_answers_in_float32(dtype):
    model, given = classifier(dtype), batch("bert")
    before = dict(model.named_parameters())
    narrow = model(**given).logits
    widen(model, ["classifier.weight", "classifier.bias"])
    wide = model(**given).logits
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, narrow.float(), atol=0.02, rtol=0.02)
    after = dict(model.named_parameters())
    assert all(after[name] is value for name, value in before.items())
    found = {name for name, value in after.items() if value.dtype == torch.float32}
    assert found == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_wide_stays_as_it_is(dtype):
    model, given = classifier(dtype), batch("bert")
    before = model(**given).logits
    widen(model, ["classifier.weight"])
    assert torch.equal(model(**given).logits, before)


def test_widening_twice_is_widening_once():
    model = classifier(torch.bfloat16)
    for _ in "ab":
        widen(model, ["classifier.weight"])
    assert len(model.classifier._forward_pre_hooks) == 1
