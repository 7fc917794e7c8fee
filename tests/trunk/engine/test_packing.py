"""Texts that stand behind one another in a row: each alone, and nothing lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ModernBertConfig, ModernBertForSequenceClassification

from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import SessionSpec, TrunkEngine
from atlas_flwr.trunk.engine.packing import Apart, Packing, packing_of
from atlas_flwr.types import TrunkCall
from tests.families import build

PLAN = SplitPlan(1, 1)
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def mask_of(texts, total=12, left=True):
    mask = torch.zeros(len(texts), total, dtype=torch.long)
    for row, length in zip(mask, texts, strict=True):
        row[total - length :] = int(left)
        row[:length] = int(not left) or row[:length]
    return mask


@given(lengths, st.booleans(), st.integers(1, 40))
def test_every_position_has_a_place_of_its_own_beside_its_text(texts, left, longest):
    real = mask_of(texts, left=left).bool()
    packing = Packing.of(real, longest)
    assert len(set(packing.places.tolist())) == sum(texts)
    width = packing.positions.shape[1]
    assert width <= max(longest, *texts)
    for number, places in enumerate(packing.places.split(texts)):
        first = int(places[0])
        assert places.tolist() == list(range(first, first + len(places)))
        assert first // width == int(places[-1]) // width
        assert packing.positions.flatten()[places].tolist() == list(range(len(places)))
        assert set(packing.texts.flatten()[places].tolist()) == {number}


@given(lengths)
def test_rows_come_back_as_they_were_packed(texts):
    packing = Packing.of(mask_of(texts).bool())
    rows = torch.randn(sum(texts), 3)
    packed = packing.packed(rows)
    assert torch.equal(packing.unpacked(packed), rows)
    torch.testing.assert_close(packed.sum(), rows.sum())


def call(texts, **changes):
    mask = mask_of(texts)
    given = {
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp_min(0),
        "padding_unread": True,
        **changes,
    }
    return TrunkCall(torch.randn(len(texts), 12, 32), **given)


@pytest.mark.parametrize(
    ("texts", "changes"),
    [
        ([12, 12], {}),
        ([11, 12, 12], {}),  # a row of 35 for 36 is not worth it
        ([3, 12], {"position_ids": torch.arange(12).expand(2, -1)}),
        ([3, 12], {"attention_mask": None}),
        ([3, 0], {}),
    ],
)
def test_what_cannot_or_need_not_be_packed_is_left(texts, changes):
    assert packing_of(call(texts, **changes)) is None


def test_the_blocks_run_on_the_real_positions_alone_where_none_reads_others():
    torch.manual_seed(0)
    engine = TrunkEngine(partition(build("llama"), PLAN).trunk)
    seen = []
    engine.base.trunk.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(
            (args[0] if args else kwargs["hidden_states"]).shape
        ),
        with_kwargs=True,
    )
    assert engine.base.keeps_apart is Apart.POSITIONS
    seen.clear()
    session = engine.open(SessionSpec(PLAN))
    engine.forward(session, call([3, 12, 5]))
    engine.forward(session, call([3, 12, 5], padding_unread=False))
    assert seen == [torch.Size([1, 20, 32]), torch.Size([3, 12, 32])]


def test_one_mask_is_not_given_to_a_model_with_windows():
    config = ModernBertConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        local_attention=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    model = ModernBertForSequenceClassification(config).eval()
    base = TrunkEngine(partition(model, PLAN).trunk).base
    assert base.keeps_apart in (None, Apart.POSITIONS)
