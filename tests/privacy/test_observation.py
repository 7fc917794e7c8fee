"""What is recorded of a run: both sides of the cut, and nothing changed by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from atlas_flwr.data import Batch, resolve_model
from atlas_flwr.lora import (
    AdapterState,
    LoraFactors,
    Scaling,
    ia3_key,
    ia3_shapes,
)
from atlas_flwr.privacy import Observation, Recording, Truth
from atlas_flwr.privacy.knowledge import PublicModel
from atlas_flwr.privacy.observation import packed, unpacked
from atlas_flwr.privacy.recorder import RecordingTrunk
from atlas_flwr.split import SplitPlan, part_info, partition
from atlas_flwr.train.model import adapted_split
from atlas_flwr.types import LossReply, Role, TrunkCall, TrunkClient
from atlas_flwr.wire import codec_named

WIDTH = 8


class Doubling(TrunkClient):
    def forward(self, call):
        return 2 * call.hidden

    def backward(self, step, grad):
        return 2 * grad

    def loss(self, call, labels, logits_to_keep=0):
        return LossReply(None, call.hidden, None)


def recorder(codec="raw", limit=2**20):
    about = {"client": "3", "round": 1, "cut": "2/1"}
    return RecordingTrunk(Doubling(), codec=codec_named(codec), limit=limit, **about)


def batch():
    """Two texts, of which the first is padded on the left and both end in a label."""
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    ids = torch.tensor([[0, 5, 6, 9], [4, 5, 6, 8]])
    labels = torch.tensor([[-100, -100, -100, 9], [-100, -100, -100, 8]])
    return Batch(ids, mask, labels, torch.tensor([1, 0]))


def crossed(trunk, step=0, hidden=None):
    texts = batch()
    hidden = torch.randn(2, 4, WIDTH) if hidden is None else hidden
    with trunk.reading(texts):
        trunk.forward(TrunkCall(hidden, texts.attention_mask, step=step))
    grad = torch.randn(2, 4, WIDTH)
    trunk.backward(step, grad)
    return hidden, grad


def test_each_text_is_kept_with_what_came_back_and_without_its_padding():
    trunk = recorder()
    hidden, grad = crossed(trunk)
    first, second = trunk.observations
    assert torch.equal(first.hidden, hidden[0, 1:])
    assert torch.equal(second.hidden, hidden[1])
    assert torch.equal(first.answer, 2 * hidden[0, 1:])
    assert torch.equal(second.gradient, grad[1])
    truth = trunk.truths[0]
    assert truth.ids.tolist() == [5, 6, 9]
    assert truth.answer.tolist() == [False, False, True]
    assert truth.label == 1


def test_passes_that_are_no_training_steps_are_not_kept():
    trunk = recorder()
    trunk.forward(TrunkCall(torch.randn(2, 4, WIDTH), step=0))
    with trunk.reading(batch()):
        trunk.forward(TrunkCall(torch.randn(2, 4, WIDTH)))
    assert not trunk.observations


@pytest.mark.parametrize("codec", ["int8", "int4", "fp16"])
def test_what_is_kept_is_what_the_trunk_decodes(codec):
    trunk = recorder(codec)
    hidden, _ = crossed(trunk)
    found = codec_named(codec)
    wanted = found.decode(found.encode(hidden.numpy(), Role.ACTIVATION))
    kept = trunk.observations[1].hidden
    assert torch.equal(kept, torch.from_numpy(wanted.copy())[1])
    assert not torch.equal(kept, hidden[1])


def test_no_more_is_kept_than_the_limit_allows():
    trunk = recorder(limit=1)
    for step in range(5):
        crossed(trunk, step)
    assert len(trunk.observations) == 2


def test_a_vanilla_trunk_is_recorded_without_gradients():
    trunk, texts = recorder(), batch()
    with trunk.reading(texts):
        trunk.loss(
            TrunkCall(torch.randn(2, 4, WIDTH), texts.attention_mask, step=0), None
        )
    assert [o.gradient for o in trunk.observations] == [None, None]
    assert [o.answer for o in trunk.observations] == [None, None]


def factors(seed):
    generator = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(*s, generator=generator) for s in ((2, 4), (4, 2)))
    return LoraFactors(A, B, 0.5)


def test_a_recording_survives_being_written():
    def text(length, sent):
        values = [torch.randn(length, WIDTH) for _ in range(3)]
        gradient = values[2] if sent else None
        return Observation("3", 2, 7, "2/1", values[0], values[1], gradient)

    seen = [text(3, True), text(5, False)]
    truths = [
        Truth(torch.arange(len(o.hidden)), torch.zeros(len(o.hidden)).bool(), 1)
        for o in seen
    ]
    state = AdapterState({"a.0": factors(0)}, {}, {"a.1": factors(1)})
    back = AdapterState({"a.0": factors(2)}, {"b": np.ones(3)})
    told = Recording("3", 2, SplitPlan(2, 1), state, seen, truths, back)
    found = unpacked(packed(told))
    assert unpacked(packed(replace(told, update=None))).update is None
    assert (found.client, found.round, found.plan) == ("3", 2, SplitPlan(2, 1))
    for before, after in zip(seen, found.observations, strict=True):
        assert torch.equal(before.hidden, after.hidden)
        assert torch.equal(before.answer, after.answer)
    assert torch.equal(found.observations[0].gradient, seen[0].gradient)
    assert found.observations[1].gradient is None
    assert torch.equal(found.truths[1].ids, torch.arange(5))
    assert torch.equal(found.adapters.factors["a.0"].B, factors(0).B)
    assert torch.equal(found.adapters.folded["a.1"].A, factors(1).A)
    assert torch.equal(found.update.factors["a.0"].B, factors(2).B)
    assert found.update.dense["b"].tolist() == [1, 1, 1]


def of_lora(side):
    names = [part_info(side).global_name(n) for n in ia3_shapes(side)]
    shapes = [side.get_submodule(n).weight.shape for n in ia3_shapes(side)]
    return AdapterState(
        {
            name: LoraFactors(torch.randn(2, n), torch.randn(m, 2), 0.5)
            for name, (m, n) in zip(names, shapes, strict=True)
        }
    )


def of_ia3(side):
    info = part_info(side)
    return AdapterState(
        {},
        {
            ia3_key(info.global_name(n)): torch.rand(shape).numpy()
            for n, shape in ia3_shapes(side).items()
        },
    )


@pytest.mark.parametrize("made", [of_lora, of_ia3])
def test_the_attackers_head_is_the_clients_with_any_kind_of_adapter(made):
    path, plan = resolve_model("tiny").path, SplitPlan(1, 1)
    parts, ids = partition(path, plan), torch.arange(5, 13)[None]
    bare = parts.head(input_ids=ids).last_hidden_state
    state = made(parts.head)
    trunk = Doubling()
    with adapted_split(parts.head, parts.tail, trunk, state, Scaling()) as client:
        sent = client.sides[0].module(input_ids=ids).last_hidden_state
    seen = Observation("3", 2, 0, "1/1", sent[0].detach(), None, None)
    known = PublicModel(
        lambda plan: partition(path, plan),
        [Recording("3", 2, plan, state, [seen], [])],
    )
    guessed = known.head(seen)(input_ids=ids).last_hidden_state
    torch.testing.assert_close(guessed, sent)
    assert (bare - sent).norm() > 0.01 * sent.norm()
