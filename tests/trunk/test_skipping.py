# SPDX-License-Identifier: Apache-2.0
"""Gradients that are not sent: which, what it saves, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.errors import SessionError, TrunkError
from atlas_flwr.lora import Scaling, attach, extract, load
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.train.model import adapted_split
from atlas_flwr.trunk import (
    EngineTrunk,
    Limits,
    LocalTrunk,
    SessionSpec,
    SkippingTrunk,
    TrunkEngine,
    connect,
    serve_local,
)
from atlas_flwr.types import LossReply, OptimizerSpec, Role, TrunkCall, TrunkClient
from atlas_flwr.wire import CODECS, encode_tensors
from tests.families import batch, build
from tests.trunk.engine.test_parity import adapters

PLAN = SplitPlan(1, 1)
ADAMW = OptimizerSpec(lr=0.02, weight_decay=0.1)


class Log(TrunkClient):
    """Writes down what reaches it."""

    def __init__(self):
        self.forwards, self.backwards = [], []

    def forward(self, call):
        self.forwards.append(call.step)
        return call.hidden

    def backward(self, step, grad):
        self.backwards.append((step, float(grad.flatten()[0])))
        return 2 * grad

    def loss(self, call, labels, logits_to_keep=0):
        return LossReply(None, call.hidden, None)


def sizes(trunk, *given):
    """Take a step for each size of gradient; return what came back."""
    answers = []
    for step, size in enumerate(given):
        trunk.forward(TrunkCall(torch.zeros(1, 2, 3), step=step))
        answers.append(trunk.backward(step, torch.full((1, 2, 3), size)))
    return answers


def sent(log):
    return [pytest.approx(size) for _, size in log.backwards]


def test_a_gradient_below_is_kept_and_one_above_is_sent():
    log = Log()
    trunk = SkippingTrunk(log, 0.5)
    answers = sizes(trunk, 4.0, 1.9, 2.1)  # the mean: 4, then 0.9 * 4 + 0.1 * 1.9
    assert sent(log) == [4.0, 2.1]
    assert answers[1] is None
    assert torch.equal(answers[2], torch.full((1, 2, 3), 4.2))
    assert trunk.skipped == 1


def test_the_running_mean_is_exponential_and_over_skipped_ones_too():
    given = [3.0, 1.0, 0.2, 5.0, 2.0, 0.1, 1.6, 0.7, 0.9, 4.0]
    log, mean, wanted = Log(), given[0], [given[0]]
    sizes(SkippingTrunk(log, 0.6), *given)
    for size in given[1:]:
        if size >= 0.6 * mean:
            wanted.append(size)
        mean = 0.9 * mean + 0.1 * size
    assert sent(log) == wanted
    assert 2 < len(wanted) < len(given)


def test_gradients_that_shrank_for_good_are_sent_again_after_a_while():
    log = Log()
    sizes(SkippingTrunk(log, 0.5), 1.0, *[0.1] * 40)
    assert 1 < len(log.backwards) < 41
    assert sent(log)[1:] == [0.1] * (len(log.backwards) - 1)


def test_the_size_does_not_depend_on_shape_or_sign_or_dtype():
    log = Log()
    trunk = SkippingTrunk(log, 0.9)
    for step, (shape, dtype) in enumerate(
        [((1, 2, 3), torch.float32), ((4, 5, 3), torch.bfloat16), ((1, 1, 3), None)]
    ):
        grad = torch.full(shape, (-1.0) ** step, dtype=dtype)
        trunk.forward(TrunkCall(torch.zeros(shape), step=step))
        trunk.backward(step, grad)
    assert len(log.backwards) == 3


@pytest.mark.parametrize("given", [[1.0, 1e-9, 0.0], [0.0, 0.0, 0.0]])
def test_threshold_0_sends_everything_under_its_own_number(given):
    log = Log()
    trunk = SkippingTrunk(log, 0.0)
    sizes(trunk, *given)
    assert [step for step, _ in log.backwards] == log.forwards == [0, 1, 2]
    assert trunk.skipped == 0


def test_the_last_step_is_sent_however_small():
    log = Log()
    sizes(SkippingTrunk(log, 0.5, steps=3), 1.0, 0.01, 0.01)
    assert sent(log) == [1.0, 0.01]


def test_a_gradient_that_is_not_finite_is_not_kept_back():
    log = Log()
    sizes(SkippingTrunk(log, 1.0), 1.0, float("nan"))
    assert len(log.backwards) == 2


def test_the_number_of_a_skipped_step_is_taken_by_the_next():
    log = Log()
    sizes(SkippingTrunk(log, 0.5), 1.0, 0.1, 0.1, 1.0, 1.0)
    assert log.forwards == [0, 1, 1, 1, 2]
    assert [step for step, _ in log.backwards] == [0, 1, 2]


def test_with_several_passes_open_no_number_is_given_twice():
    log = Log()
    trunk = SkippingTrunk(log, 0.5)
    for step in (7, 8):
        trunk.forward(TrunkCall(torch.zeros(1, 2, 3), step=step))
    trunk.backward(8, torch.ones(1, 2, 3))
    trunk.backward(7, torch.full((1, 2, 3), 0.1))  # 8 is newer: 7 is not free
    trunk.forward(TrunkCall(torch.zeros(1, 2, 3), step=9))
    assert log.forwards == [7, 8, 9]


def test_a_step_is_back_propagated_once():
    trunk = SkippingTrunk(Log(), 0.5)
    sizes(trunk, 1.0)
    with pytest.raises(SessionError, match="back-propagated before"):
        trunk.backward(0, torch.ones(1, 2, 3))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_an_impossible_threshold_is_refused(threshold):
    with pytest.raises(TrunkError, match="from 0 to 1"):
        SkippingTrunk(Log(), threshold)


def test_a_pass_that_no_backward_follows_and_a_vanilla_one_are_passed_on():
    log = Log()
    trunk, hidden = SkippingTrunk(log, 0.5), torch.ones(1, 2, 3)
    assert trunk.forward(TrunkCall(hidden)) is hidden
    assert trunk.loss(TrunkCall(hidden, step=0), None).logits is hidden
    assert log.forwards == [None]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("llama")


SCALES = [1.0, 0.1, 1.0, 0.1, 1.0]  # two of five are small


def take_steps(trunk, scales, only=None):
    """Steps of random numbers whose gradients have the given sizes."""
    generator = torch.Generator().manual_seed(0)
    for step, scale in enumerate(scales):
        hidden, grad = torch.randn(2, 2, 4, 32, generator=generator).unbind()
        if only is None or step in only:
            trunk.forward(TrunkCall(hidden, step=step))
            trunk.backward(step, scale * grad)
            yield step


def opened(model, **limits):
    engine = TrunkEngine(partition(model, PLAN).trunk, limits=Limits(**limits))
    return engine, engine.open(SessionSpec(PLAN, adapters(model, range(1, 4)), ADAMW))


def trained(engine, token):
    return [t for f in engine.adapters(token).factors.values() for t in (f.A, f.B)]


def test_bytes_fall_by_the_two_transfers_of_each_skipped_gradient(model):
    used = {}
    for threshold in (0.0, 0.5):
        engine, token = opened(model)
        with serve_local("skips", engine) as address:
            trunk = SkippingTrunk(connect(address, token=token), threshold)
            list(take_steps(trunk, SCALES))
        used[threshold] = trunk.meter.total_up, trunk.meter.total_down
        assert engine.stats().bytes_in == trunk.meter.total_up
    grad = {"grad": (torch.zeros(2, 4, 32), Role.GRADIENT)}
    saved = 2 * len(encode_tensors(CODECS["raw"], grad))
    assert used[0.0] == (used[0.5][0] + saved, used[0.5][1] + saved)


def test_the_trunk_ends_as_if_skipped_steps_had_never_been(model):
    engine, token = opened(model)
    list(take_steps(SkippingTrunk(EngineTrunk(engine, token), 0.5), SCALES))
    other, alone = opened(model)
    list(take_steps(EngineTrunk(other, alone), SCALES, only=(0, 2, 4)))
    assert all(map(torch.equal, trained(engine, token), trained(other, alone)))
    assert engine.stats().steps == 3


def test_skipped_steps_leave_room_for_later_ones(model):
    engine, token = opened(model, passes=1, passes_per_session=4)
    trunk = SkippingTrunk(EngineTrunk(engine, token), 0.5, steps=7)
    scales = [1.0, 0.1, 0.1, 0.1, 1.0, 0.1, 0.1]
    kept = [engine.stats().passes for _ in take_steps(trunk, scales)]
    assert kept == [0, 1, 1, 1, 0, 1, 0]
    assert trunk.skipped == 4


def test_training_is_that_of_the_whole_model_with_no_gradient_below_the_tail():
    """Head and trunk stand still in skipped steps, moments and decay included."""
    model = build("llama")
    threshold, blocks = 0.6, range(model.config.num_hidden_layers)
    state = adapters(model, blocks)
    batches = [(share, batch("llama")) for share in 2 * SCALES]
    parts = partition(model, PLAN)
    engine = TrunkEngine(parts.trunk)
    middle = [n for n in state.factors if int(n.split(".")[2]) in blocks[1:-1]]
    outer = [n for n in state.factors if n not in middle]
    token = engine.open(SessionSpec(PLAN, state.select(middle), ADAMW))
    trunk = SkippingTrunk(EngineTrunk(engine, token), threshold)
    sides = (parts.head, parts.tail, trunk)
    with adapted_split(*sides, state.select(outer), Scaling(6.0)) as client:
        steps = adamw(client.model)
        for share, given in batches:
            (share * client.model(**given).loss).backward()
            steps.step()
            steps.zero_grad()
        found = {**client.state().factors, **engine.adapters(token).factors}

    attach(model, dict.fromkeys(state.factors, 3), Scaling(6.0))
    load(model, state.factors)
    seen, mean, skipped, steps = [], None, 0, adamw(model)
    last = model.model.layers[len(blocks) - 2]
    last.register_forward_hook(lambda *passed: seen.append(passed[2]))
    for share, given in batches:
        loss = share * model(**given).loss
        seen[-1].retain_grad()
        loss.backward()
        size = float(seen[-1].grad.square().mean().sqrt())
        before = size if mean is None else mean
        mean = 0.9 * before + 0.1 * size
        if size < threshold * before:
            skipped += 1
            for name, parameter in model.named_parameters():
                if f"layers.{blocks[-1]}." not in name:
                    parameter.grad = None
        steps.step()
        steps.zero_grad()
    assert trunk.skipped == skipped
    assert 1 < skipped < 8
    for name, wanted in extract(model).items():
        torch.testing.assert_close(found[name].A, wanted.A, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found[name].B, wanted.B, atol=1e-4, rtol=1e-3)


def adamw(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=ADAMW.lr, weight_decay=ADAMW.weight_decay)


def test_no_gradient_at_all_comes_to_the_head():
    model = build("llama")
    parts = partition(model, PLAN)
    state = adapters(model, [0])
    trunk = SkippingTrunk(LocalTrunk(parts.trunk), 1.0)
    with adapted_split(parts.head, parts.tail, trunk, state, Scaling(6.0)) as client:
        parameters = [p for p in client.model.parameters() if p.requires_grad]
        for share, has in ((1.0, True), (0.01, False)):
            client.model.zero_grad()
            (share * client.model(**batch("llama")).loss).backward()
            assert all((p.grad is not None) == has for p in parameters)


def test_text_is_written_through_it_as_without_it():
    torch.manual_seed(0)
    model = build("llama")
    parts = partition(model, SplitPlan(1, 1))
    trunk = SkippingTrunk(LocalTrunk(parts.trunk), 0.5)
    split = SplitModel(parts.head, parts.tail, trunk).eval()
    ids, settings = torch.tensor([[5, 6, 7]]), {"max_new_tokens": 4, "pad_token_id": 0}
    assert trunk.keeps_caches
    assert torch.equal(split.generate(ids, **settings), model.generate(ids, **settings))
