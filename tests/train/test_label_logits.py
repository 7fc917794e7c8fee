"""Logits where labels are, and nowhere else: ragged chats against the unsplit model."""

from __future__ import annotations

import copy

import pytest
import torch

from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.split.passes import takes_positions
from atlas_flwr.train.evaluation import ROWS, evaluate
from atlas_flwr.train.step import Step, batch_loss, model_inputs, task_loss
from atlas_flwr.trunk import (
    LocalTrunk,
    SessionSpec,
    TrunkEngine,
    connect,
    serve_local,
)
from atlas_flwr.wire import CODECS
from tests.families import FAMILIES, build
from tests.train.batches import ragged_chats

DECODERS = [name for name in FAMILIES if build(name).get_output_embeddings()]


def gradients(model, loss):
    loss.backward()
    return {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def whole_loss(model, batch):
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if takes_positions(model):
        given["position_ids"] = batch.position_ids
    return model(**given, labels=batch.labels).loss


@pytest.mark.parametrize("family", DECODERS)
def test_ragged_chats_have_the_unsplit_models_loss_and_gradients(family):
    batch, model = ragged_chats(), build(family)
    parts = partition(copy.deepcopy(model), SplitPlan(1, 1))
    split = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk))
    same = copy.deepcopy(model)
    wanted = whole_loss(model, batch)
    expected = gradients(model, wanted)
    found = gradients(same, batch_loss(same, batch))
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, atol=1e-6, rtol=1e-4)
    loss = batch_loss(split, batch)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    head, tail = split.get_input_embeddings(), split.tail.get_output_embeddings()
    table, out = model.get_input_embeddings(), model.get_output_embeddings()
    ours, theirs = [head.weight.grad, tail.weight.grad], [table.weight, out.weight]
    if table.weight is out.weight:  # whose gradient is of both ends
        ours, theirs = [head.weight.grad + tail.weight.grad], [out.weight]
        if head.weight is tail.weight:
            ours = [tail.weight.grad]
    for own, whole in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, whole.grad, atol=1e-6, rtol=1e-4)


def test_the_lm_head_sees_no_more_rows_than_there_are_labels():
    batch, (model, seen) = ragged_chats(), (build("gemma3"), [])
    model.lm_head.register_forward_hook(
        lambda m, given, out: seen.append(out.shape[:-1])
    )
    batch_loss(model, batch)
    found = evaluate(model, [batch], ())
    labels = int((batch.labels != -100).sum())
    assert seen == [(1, labels)] * 2
    assert found.tokens == batch.label_count == labels
    assert labels < batch.labels.numel() / 4


class Weighed(LocalTrunk):
    """Note how many positions the logits are of that are answered."""

    def loss(self, call, labels, logits_to_keep=0):
        reply = super().loss(call, labels, logits_to_keep)
        self.seen = [*getattr(self, "seen", ()), reply.logits.shape[:2].numel()]
        return reply


def test_a_vanilla_trunks_logits_come_in_pieces_and_the_scores_are_the_whole_models():
    batch, model = ragged_chats(rows=9, length=40), build("llama")
    parts = partition(copy.deepcopy(model), SplitPlan(2, None))
    trunk = Weighed(parts.trunk)
    found = evaluate(SplitModel(parts.head, None, trunk), [batch], ())
    wanted = evaluate(model, [batch], ())
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert (found.accuracy, found.tokens, found.examples) == (
        wanted.accuracy,
        wanted.tokens,
        9,
    )
    assert max(trunk.seen) <= ROWS < batch.logits_to_keep * len(batch)
    assert sum(trunk.seen) <= batch.logits_to_keep * len(batch)


@pytest.mark.parametrize("most", [1, 12, 1000])
def test_no_more_labels_are_scored_at_once_than_may_be_and_the_scores_are_the_same(
    most,
):
    batch, (model, seen) = ragged_chats(rows=6), (build("llama"), [])
    wanted = evaluate(model, [batch], ())
    model.lm_head.register_forward_hook(lambda m, given, out: seen.append(out.shape[1]))
    found = evaluate(model, [batch], (), most)
    assert sum(seen) == found.tokens == wanted.tokens == batch.label_count
    assert max(seen) <= max(most, 5)  # labels of a row
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert found.accuracy == wanted.accuracy


def test_a_loss_is_not_left_in_the_model():
    model, batch = build("llama"), ragged_chats()
    batch_loss(model, batch)
    assert model(input_ids=batch.input_ids).logits.shape[:2] == batch.input_ids.shape


@pytest.mark.parametrize("family", DECODERS)
def test_a_vanilla_trunk_answers_the_loss_alone_and_it_is_the_same(family):
    batch, model = ragged_chats(), build(family)
    found = []
    for alone in (True, False):
        parts = partition(copy.deepcopy(model), SplitPlan(2, None))
        split = SplitModel(parts.head, None, LocalTrunk(parts.trunk))
        given = model_inputs(split, batch)
        out = split(
            **given,
            labels=batch.labels,
            logits_to_keep=batch.logits_to_keep,
            loss_alone=alone,
        )
        assert (out.logits is None) == alone
        found.append((out.loss.detach(), gradients(split, out.loss)))
        found[-1][1].update({n: p.grad for n, p in parts.trunk.named_parameters()})
    (loss, grads), (expected, wanted) = found
    torch.testing.assert_close(loss, expected)
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_no_logits_come_back_and_a_share_crosses_unrounded(codec):
    batch, plan = ragged_chats(), SplitPlan(2, None)
    parts = partition(build("llama"), plan)
    engine = TrunkEngine(parts.trunk)
    with serve_local("alone", engine) as address:
        token = engine.open(SessionSpec(plan))
        link = connect(address, token=token, codec=codec)
        split = SplitModel(parts.head, None, link)
        whole = task_loss(Step(split, batch, 0)).task
        third = task_loss(Step(split, batch, 0, 3 * batch.label_count)).task
    torch.testing.assert_close(third, whole, rtol=1e-6, atol=0)
    assert link.meter.total_down < 2 * (batch.input_ids.numel() * 32 * 4 + 1000)
