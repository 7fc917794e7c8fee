# SPDX-License-Identifier: Apache-2.0
"""Sessions that share a pass, against each of them alone."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from atlas_flwr.lora import AdapterState, LoraFactors, ia3_key
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import SessionSpec, TrunkEngine
from atlas_flwr.trunk.engine.base import SharedBase
from atlas_flwr.trunk.engine.batching import JoiningBatcher, can_join
from atlas_flwr.trunk.engine.work import Backward, Beginning, Ending, Evaluation
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import FAMILIES, build
from tests.trunk.engine.test_parity import adapters

WHOLE, SPEC = SplitPlan(1, 1), OptimizerSpec(lr=0.01)
LAYER = "model.layers.1.self_attn.q_proj"
DECODERS = ["llama", "gemma3", "gpt2", "gpt-neox", "qwen2"]


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    model = build("llama")
    return model, TrunkEngine(partition(model, WHOLE).trunk)


def served(family="llama"):
    torch.manual_seed(0)
    model = build(family)
    return model, TrunkEngine(partition(model, WHOLE).trunk)


def opened(engine, state, plan=WHOLE, spec=SPEC, **settings):
    token = engine.open(SessionSpec(plan, state, spec, **settings))
    return engine._table._sessions[token]


def lowered(state, rank, scale):
    """Fewer directions, at another scale."""
    return AdapterState(
        {
            name: LoraFactors(f.A[:rank], f.B[:, :rank], scale)
            for name, f in state.factors.items()
        }
    )


def call(engine, shape=(2, 5), mask=None, step=0, seed=0, positions=None):
    drawn = torch.randn(
        *shape, engine.base.width, generator=torch.Generator().manual_seed(seed)
    )
    return engine.base.received(TrunkCall(drawn, mask, positions, step))


def closeness(got, wanted):
    got, wanted = (t.detach().flatten().double() for t in (got, wanted))
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-12))


def values(session):
    return torch.cat([p.detach().flatten() for p in session.parameters])


def grads(engine, calls):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(c.hidden.shape, generator=generator) for c in calls]


def check_joined_is_apart(engine, sessions, calls):
    """Compare answers and gradients of one pass with those of separate passes."""
    batcher, given = JoiningBatcher(engine.base), grads(engine, calls)
    kinds = {
        batcher.kind(Beginning(s, c)) for s, c in zip(sessions, calls, strict=True)
    }
    assert len(kinds) == 1
    assert None not in kinds
    apart = []
    for session, one, grad in zip(sessions, calls, given, strict=True):
        output = engine.base.run(session, one)
        inputs = [one.hidden, *session.parameters]
        found = torch.autograd.grad(output, inputs, grad)
        apart.append((output.detach(), found[0], [g.flatten() for g in found[1:]]))
    works = [Beginning(s, c) for s, c in zip(sessions, calls, strict=True)]
    passes = batcher.run(works)
    before = [values(session) for session in sessions]
    joint = {id(p.joint.joint) for p in passes}
    assert len(joint) == 1
    back = batcher.run(
        [
            Backward(s, c, 0, p, g)
            for s, c, p, g in zip(sessions, calls, passes, given, strict=True)
        ]
    )
    for k, (answer, hidden, parameters) in enumerate(apart):
        assert closeness(passes[k].answer, answer) < 1e-5
        assert closeness(back[k], hidden) < 1e-5
        if parameters:
            # AdamW's first mean is a tenth of the gradient.
            (buffer,) = sessions[k].learner.buffers
            learned = torch.cat([piece.mean for piece in buffer._pieces]) * 10
            assert closeness(learned, torch.cat(parameters)) < 1e-5
            assert not torch.equal(values(sessions[k]), before[k])


@pytest.mark.parametrize("family", FAMILIES)
def test_sessions_of_one_shape_share_a_pass(family):
    model, engine = served(family)
    sessions = [opened(engine, adapters(model, range(1, 4), seed=k)) for k in range(3)]
    calls = [call(engine, seed=k) for k in range(3)]
    check_joined_is_apart(engine, sessions, calls)


def joined(engine, states):
    """Take a joined step; return all answers, and both kinds of gradients."""
    sessions = [opened(engine, state) for state in states]
    calls = [call(engine, seed=k) for k in range(len(states))]
    batcher = JoiningBatcher(engine.base)
    works = [Beginning(s, c) for s, c in zip(sessions, calls, strict=True)]
    passes = batcher.run(works)
    each = zip(sessions, calls, passes, grads(engine, calls), strict=True)
    back = batcher.run([Backward(s, c, 0, p, g) for s, c, p, g in each])
    pieces = [piece for s in sessions for piece in s.learner.buffers[0]._pieces]
    found = [[p.answer for p in passes], back, [piece.mean for piece in pieces]]
    return [torch.cat([t.flatten() for t in tensors]) for tensors in found]


@pytest.mark.parametrize("rank", [2, 1])  # equal to the others', and not
def test_factors_rounded_as_the_base_add_less_error_than_the_base_does(
    monkeypatch, rank
):
    torch.manual_seed(0)
    model = build("llama").to(torch.bfloat16)
    states = [adapters(model, range(1, 4), seed=k) for k in range(3)]
    states[1] = lowered(states[1], rank, states[1].factors[LAYER].scale)
    exact = TrunkEngine(partition(copy.deepcopy(model).float(), WHOLE).trunk)
    wanted = joined(exact, states)
    engine = TrunkEngine(partition(model, WHOLE).trunk)
    plain = joined(engine, states)
    monkeypatch.setattr(SharedBase, "rounded", torch.bfloat16)
    rounded = joined(engine, states)
    for got, before, right in zip(rounded, plain, wanted, strict=True):
        assert not torch.equal(got, before)
        assert closeness(got, before) < closeness(before, right)


@pytest.mark.parametrize("family", [*DECODERS, "bert", "distilbert"])
def test_sessions_of_unlike_ranks_lengths_batches_and_cuts_share_a_pass(family):
    model, engine = served(family)
    full = adapters(model, range(1, 4))
    early = adapters(model, range(1, 2), seed=1)
    late = adapters(model, range(3, 4), seed=2)
    sessions = [
        opened(engine, full),
        opened(engine, lowered(full, 1, 0.5)),
        opened(engine, early, SplitPlan(1, 3)),
        opened(engine, late, SplitPlan(3, 1)),
        opened(engine, lowered(late, 2, 3.0), SplitPlan(2, 1)),
        opened(engine, AdapterState()),
    ]
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, 4:] = 0
    left = torch.ones(1, 3, dtype=torch.long)
    left[0, :1] = 0
    calls = [
        call(engine, (2, 5), seed=0),
        call(engine, (2, 6), mask, seed=1),
        call(engine, (1, 3), left, seed=2),
        call(engine, (3, 2), seed=3),
        call(engine, (1, 1), seed=4),
        call(engine, (2, 4), seed=5),
    ]
    real = [slice(None), mask.bool(), left.bool(), *[slice(None)] * 3]
    batcher, given = JoiningBatcher(engine.base), grads(engine, calls)
    for grad, rows in zip(given, real, strict=True):  # padding has no loss
        kept = torch.zeros_like(grad)
        kept[rows] = grad[rows]
        grad.copy_(kept)
    passes = batcher.run(
        [Beginning(s, c) for s, c in zip(sessions, calls, strict=True)]
    )
    wanted = []
    for session, one, grad in zip(sessions, calls, given, strict=True):
        output = engine.base.run(session, one)
        inputs = [one.hidden, *session.parameters]
        wanted.append((output, torch.autograd.grad(output, inputs, grad)))
    back = batcher.run(
        [
            Backward(s, c, 0, p, g)
            for s, c, p, g in zip(sessions, calls, passes, given, strict=True)
        ]
    )
    for k, (output, (hidden, *parameters)) in enumerate(wanted):
        assert closeness(passes[k].answer[real[k]], output[real[k]]) < 1e-5
        assert closeness(back[k], hidden) < 1e-5
        if parameters:
            (buffer,) = sessions[k].learner.buffers
            learned = torch.cat([piece.mean for piece in buffer._pieces]) * 10
            flat = torch.cat([g.flatten() for g in parameters])
            assert closeness(learned, flat) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_folds_vectors_and_probes_share_a_pass_with_others(family):
    model, engine = served(family)
    state = adapters(model, range(1, 4))
    names = list(state.factors)
    shapes = {name: f.shape for name, f in state.factors.items()}
    vectors = {}
    for k, name in enumerate(names):
        m, n = shapes[name]
        size = (1, n) if k % 2 else (m, 1)
        vectors[ia3_key(name)] = (0.5 + torch.rand(size)).numpy()
    folds = {
        name: LoraFactors(torch.randn(2, n), 0.1 * torch.randn(m, 2), 0.5)
        for name, (m, n) in shapes.items()
    }
    engine.share("group", folds)
    shared = {"folds": dict.fromkeys(folds, 0)}
    origin = AdapterState(state.factors, origin="group")
    sessions = [
        opened(engine, state),
        opened(engine, AdapterState({}, vectors)),
        opened(engine, origin, **shared),
        opened(engine, state, probe=True),
        opened(engine, AdapterState(state.factors, folded=folds)),
    ]
    check_joined_is_apart(engine, sessions, [call(engine, seed=k) for k in range(5)])
    alike = [opened(engine, AdapterState({}, vectors)) for _ in range(2)]
    check_joined_is_apart(engine, alike, [call(engine, seed=k) for k in range(2)])


def test_a_probe_sees_its_own_session_alone():
    found = {}
    for others in (0, 2):
        model, engine = served()
        state = adapters(model, range(1, 4))
        sessions = [opened(engine, state, probe=True)]
        sessions += [opened(engine, state) for _ in range(others)]
        calls = [call(engine, seed=k) for k in range(len(sessions))]
        batcher = JoiningBatcher(engine.base)
        works = list(zip(sessions, calls, strict=True))
        passes = batcher.run([Beginning(s, c) for s, c in works])
        batcher.run(
            [
                Backward(s, c, 0, p, g)
                for (s, c), p, g in zip(
                    works, passes, grads(engine, calls), strict=True
                )
            ]
        )
        found[others] = sessions[0].probe.means()
    assert found[0].keys() == found[2].keys()
    for name, value in found[0].items():
        assert found[2][name] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("late", [1, 2])  # the graph is used for two of three
def test_a_probe_sees_each_step_once_whoever_comes_back_first(late):
    model, engine = served()
    state = adapters(model, range(1, 4))
    wanted = opened(engine, state, probe=True)
    sessions = [opened(engine, state, probe=True) for _ in range(3)]
    calls = [call(engine, seed=k) for k in range(3)]
    batcher, given = JoiningBatcher(engine.base), grads(engine, calls)
    (alone,) = batcher.run([Beginning(wanted, calls[2])])
    batcher.run([Backward(wanted, calls[2], 0, alone, given[2])])
    passes = batcher.run(
        [Beginning(s, c) for s, c in zip(sessions, calls, strict=True)]
    )
    works = [
        Backward(s, c, 0, p, g)
        for s, c, p, g in zip(sessions, calls, passes, given, strict=True)
    ]
    for some in (works[: 3 - late], works[3 - late :]):
        batcher.run(some)
    for session in sessions:
        assert set(session.probe.passes.values()) == {1}
    found = sessions[2].probe.means()
    for name, value in wanted.probe.means().items():
        assert found[name] == pytest.approx(value, rel=1e-4)


def test_a_joined_evaluation_keeps_no_graph(llama):
    model, engine = llama
    sessions = [opened(engine, adapters(model, range(1, 4), seed=k)) for k in range(2)]
    calls = [call(engine, step=None, seed=k) for k in range(2)]
    works = [Evaluation(s, c) for s, c in zip(sessions, calls, strict=True)]
    for work, answer in zip(works, JoiningBatcher(engine.base).run(works), strict=True):
        assert not answer.requires_grad
        assert closeness(answer, engine.base.run(work.session, work.call)) < 1e-5


@pytest.mark.parametrize("come", [(0, 1, 2, 3), (0, 1, 2), (0, 1), (3,)])
def test_who_comes_back_late_is_run_again_to_the_same_gradients(llama, come):
    """The graph of a joined pass is used once, for most of its rows, or not at all."""
    model, engine = llama
    sessions = [opened(engine, adapters(model, range(1, 4), seed=k)) for k in range(4)]
    calls = [call(engine, seed=k) for k in range(4)]
    batcher, given = JoiningBatcher(engine.base), grads(engine, calls)
    passes = batcher.run(
        [Beginning(s, c) for s, c in zip(sessions, calls, strict=True)]
    )
    wanted = []
    for session, one, grad in zip(sessions, calls, given, strict=True):
        output = engine.base.run(session, one)
        wanted.append(torch.autograd.grad(output, [one.hidden], grad)[0])
    late = [k for k in range(4) if k not in come]
    for group in (come, late[:1], late[1:]):
        if group:
            works = [
                Backward(sessions[k], calls[k], 0, passes[k], given[k]) for k in group
            ]
            for k, back in zip(group, batcher.run(works), strict=True):
                assert closeness(back, wanted[k]) < 1e-5


def test_a_graph_that_is_in_use_is_not_dropped_by_who_comes_to_another_pass(
    llama, monkeypatch
):
    """With several passes at once, the two thirds of one and the rest of another."""
    model, engine = llama
    sessions = [opened(engine, adapters(model, range(1, 4), seed=k)) for k in range(3)]
    calls = [call(engine, seed=k) for k in range(3)]
    batcher, given = JoiningBatcher(engine.base), grads(engine, calls)
    passes = batcher.run(
        [Beginning(s, c) for s, c in zip(sessions, calls, strict=True)]
    )
    wanted = []
    for session, one, grad in zip(sessions, calls, given, strict=True):
        output = engine.base.run(session, one)
        wanted.append(torch.autograd.grad(output, [one.hidden], grad)[0])
    works = [
        Backward(s, c, 0, p, g)
        for s, c, p, g in zip(sessions, calls, passes, given, strict=True)
    ]
    differentiate, late = torch.autograd.grad, []

    def beside(*inputs, **settings):
        if not late:
            late.append(None)
            other = threading.Thread(target=lambda: late.extend(batcher.run(works[2:])))
            other.start()
            other.join()
        return differentiate(*inputs, **settings)

    monkeypatch.setattr(torch.autograd, "grad", beside)
    back = [*batcher.run(works[:2]), *late[1:]]
    assert len(back) == 3
    for got, expected in zip(back, wanted, strict=True):
        assert closeness(got, expected) < 1e-5


def test_who_has_left_for_the_host_since_harms_nobody_of_its_pass(llama):
    """A client that is slow: its parameters are other tensors when it comes back."""
    model, engine = llama
    state = adapters(model, range(1, 4))
    states = [state, lowered(state, 1, 0.5), state]
    sessions = [opened(engine, one) for one in states]
    calls = [call(engine, seed=k) for k in range(3)]
    batcher, given = JoiningBatcher(engine.base), grads(engine, calls)
    wanted = []
    for session, one, grad in zip(sessions, calls, given, strict=True):
        output = engine.base.run(session, one)
        wanted.append(torch.autograd.grad(output, [one.hidden], grad)[0])
    passes = batcher.run(
        [Beginning(s, c) for s, c in zip(sessions, calls, strict=True)]
    )
    sessions[2].log.begin(0, passes[2])
    sessions[2].log.forget_graphs()
    sessions[2].learner.move(torch.device("cpu"))
    works = [
        Backward(s, c, 0, p, g)
        for s, c, p, g in zip(sessions, calls, passes, given, strict=True)
    ]
    found = [*batcher.run(works[:2]), *batcher.run(works[2:])]
    for got, expected in zip(found, wanted, strict=True):
        assert closeness(got, expected) < 1e-5


@pytest.mark.parametrize("recompute", [False, True])
def test_a_remembered_step_holds_no_rows_of_others(llama, recompute):
    """Clients end a round at steps of their own, and wait for the slowest."""
    model, engine = llama
    sessions = [opened(engine, adapters(model, range(1, 4), seed=k)) for k in range(3)]
    calls = [call(engine, seed=k) for k in range(3)]
    batcher, given = JoiningBatcher(engine.base), grads(engine, calls)
    passes = batcher.run(
        [Beginning(s, c, recompute) for s, c in zip(sessions, calls, strict=True)]
    )
    works = [
        Backward(s, c, 0, p, g)
        for s, c, p, g in zip(sessions, calls, passes, given, strict=True)
    ]
    back = batcher.run(works)
    log, found = sessions[0].log, passes[0]
    wanted = found.answer.clone(), back[0].clone()
    found.grad, found.given = back[0], given[0]
    log.complete(0, found)
    assert torch.equal(found.answer, wanted[0])
    assert torch.equal(found.grad, wanted[1])
    held = (found.answer, found.grad, found.given, found.call.hidden)
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}
    assert sum(storages.values()) == log.remembered_bytes


def test_gradients_that_wait_for_a_step_hold_no_rows_of_others(llama):
    model, engine = llama
    spec = OptimizerSpec(lr=0.01, accumulate=2)
    states = [adapters(model, range(1, 4), seed=k) for k in range(3)]
    sessions = [opened(engine, state, spec=spec) for state in states]
    calls = [call(engine, seed=k) for k in range(3)]
    batcher, given = JoiningBatcher(engine.base), grads(engine, calls)
    passes = batcher.run(
        [Beginning(s, c) for s, c in zip(sessions, calls, strict=True)]
    )
    batcher.run(
        [
            Backward(s, c, 0, p, g)
            for s, c, p, g in zip(sessions, calls, passes, given, strict=True)
        ]
    )
    for session in sessions:
        (buffer,) = session.learner.buffers
        assert buffer._sum.untyped_storage().nbytes() == buffer.values.nbytes


def test_a_session_with_a_broken_gradient_harms_nobody_else(llama, monkeypatch):
    """As on a GPU, where it is found out after the pass."""
    monkeypatch.setattr(Backward, "__post_init__", _unchecked)
    model, engine = llama
    sessions = [opened(engine, adapters(model, range(1, 4), seed=k)) for k in range(3)]
    calls = [call(engine, seed=k) for k in range(3)]
    batcher, given = JoiningBatcher(engine.base), grads(engine, calls)
    given[1][0, 0, 0] = torch.inf
    before = [values(s) for s in sessions]
    passes = batcher.run(
        [Beginning(s, c) for s, c in zip(sessions, calls, strict=True)]
    )
    works = [
        Backward(s, c, 0, p, g)
        for s, c, p, g in zip(sessions, calls, passes, given, strict=True)
    ]
    back = batcher.run(works)
    assert "NaN or infinity" in str(back[1])
    assert torch.equal(values(sessions[1]), before[1])
    for k in (0, 2):
        assert torch.isfinite(back[k]).all()
        assert torch.isfinite(values(sessions[k])).all()
        assert not torch.equal(values(sessions[k]), before[k])


def _unchecked(work):
    from atlas_flwr.trunk.engine.work import Finite

    work.finite = Finite(work.grad)


def test_what_cannot_stand_beside_others_runs_alone(llama):
    model, engine = llama
    session = opened(engine, adapters(model, range(1, 4)))
    plain = call(engine)
    assert can_join(session, plain)
    packed = torch.tensor([[0, 1, 0, 1, 2]] * 2)
    ones = torch.ones(2, 5, dtype=torch.long)
    for changes, joins in (
        ({"attention_mask": ones}, True),
        ({"attention_mask": torch.zeros(2, 1, 5, 5)}, False),
        ({"position_ids": packed}, False),
        ({"position_ids": packed, "attention_mask": ones}, True),
        ({"position_ids": packed[:1], "attention_mask": ones}, False),
    ):
        assert can_join(session, replace(plain, **changes)) is joins
    norm = "layers.0.input_layernorm.weight"
    dense = AdapterState({}, {norm: torch.ones(32).numpy()})
    assert not can_join(opened(engine, dense), plain)
    batcher = JoiningBatcher(engine.base)
    assert batcher.kind(Ending(session, plain)) is None
    with_positions = call(engine, mask=ones, positions=packed)
    kinds = [batcher.kind(Beginning(session, c)) for c in (plain, with_positions)]
    assert kinds[0] != kinds[1]


def test_a_session_without_a_tail_runs_alone():
    plan = SplitPlan(1, None)
    model = build("llama")
    engine = TrunkEngine(partition(model, plan).trunk)
    session = opened(engine, adapters(model, range(1, 5)), plan)
    assert not can_join(session, call(engine))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_the_families_join(family):
    assert served(family)[1].base.lets_rows_join


class Mixing(nn.Module):
    """A block that lets texts see each other."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden, **kwargs):
        return self.block(hidden, **kwargs) + 0.1 * hidden.mean(0, keepdim=True)


class Routing(nn.Module):
    """A block that shows a layer some of the rows."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        self.expert = nn.Linear(32, 32, bias=False)

    def forward(self, hidden, **kwargs):
        out = self.block(hidden, **kwargs)
        flat = hidden.flatten(0, 1)
        chosen = flat[:, 0] > 0
        added = torch.zeros_like(flat)
        added[chosen] = self.expert(flat[chosen])
        return out + added.view_as(out)


@pytest.mark.parametrize("strange", [Mixing, Routing])
def test_rows_of_a_model_that_mixes_or_routes_them_do_not_join(strange):
    torch.manual_seed(0)
    trunk = partition(build("llama"), WHOLE).trunk
    trunk.layers[1] = strange(trunk.layers[1])
    engine = TrunkEngine(trunk)
    assert not engine.base.lets_rows_join
    session = opened(engine, AdapterState())
    batcher = JoiningBatcher(engine.base)
    assert batcher.kind(Beginning(session, call(engine))) is None
