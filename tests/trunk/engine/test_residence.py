"""Sessions at the memory limit: some leave the GPU, some wait, no number changes."""

from __future__ import annotations

import threading
import time
import weakref
from functools import partial

import pytest
import torch

from atlas_flwr.errors import TrunkBusy, TrunkError
from atlas_flwr.lora import Scaling
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.train.initial import initial_state
from atlas_flwr.trunk import EngineTrunk, Limits, SessionSpec, TrunkEngine
from atlas_flwr.trunk.engine.buffer import ParameterBuffer, step_together
from atlas_flwr.trunk.engine.residence import PATIENCE
from atlas_flwr.trunk.transports.retry import retry_while_busy
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import build
from tests.stand_in_gpu import DEVICE, OnGpu, stand_in_gpu

PLAN, VANILLA = SplitPlan(1, 1), SplitPlan(1, None)
OPTIMIZER = OptimizerSpec(lr=0.05)


@pytest.fixture(params=["cpu", "gpu"])
def device(request):
    if request.param == "cpu":
        yield torch.device("cpu")
        return
    with stand_in_gpu():
        yield DEVICE


@pytest.fixture
def gpu():
    with stand_in_gpu():
        yield DEVICE


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def made(device, clock=None, plan=PLAN, recompute=False, **limits):
    torch.manual_seed(0)
    trunk = partition(build("llama"), plan).trunk
    if device == DEVICE:
        for module in trunk.modules():
            for kind in (module._parameters, module._buffers):
                for name, value in kind.items():
                    if value is not None:
                        there = value.detach().to(device)
                        kind[name] = (
                            torch.nn.Parameter(there, requires_grad=False)
                            if kind is module._parameters
                            else there
                        )
    limits = Limits(sessions_per_pass=1, **limits)
    return TrunkEngine(
        trunk, limits=limits, clock=clock or Clock(), recompute=recompute
    )


def spec(engine, seed=0, **more):
    state = initial_state(engine.base.shapes, rank=4, scaling=Scaling(8.0), seed=seed)
    return SessionSpec(PLAN, state, OPTIMIZER, **more)


def call(seed, step, rows=2):
    generator = torch.Generator().manual_seed(100 * seed + (step or 0))
    return TrunkCall(torch.randn(rows, 5, 32, generator=generator), step=step)


def grad(seed, step):
    generator = torch.Generator().manual_seed(7 + 100 * seed + step)
    return torch.randn(2, 5, 32, generator=generator)


def trained(engine, clients=3, steps=2, seen=(), **more):
    """Let clients take turns; return all that they were answered and have learned."""
    tokens = [engine.open(spec(engine, seed, **more)) for seed in range(clients)]
    answers, most = [], 0
    for step in range(steps):
        for seed, token in enumerate(tokens):
            answers.append(engine.forward(token, call(seed, step)).cpu().clone())
            back = engine.backward(token, step, grad(seed, step))
            answers.append(back.cpu().clone())
            most = max(most, on_gpu(seen))
    for token in tokens:
        state = engine.adapters(token)
        answers += [t for f in state.factors.values() for t in (f.A, f.B)]
    return answers, most


def on_gpu(made):
    """Bytes of the tensors on the stand-in that are alive, of those that were made."""
    alive = [x.inner.untyped_storage() for ref in made if (x := ref()) is not None]
    return sum({s.data_ptr(): s.nbytes() for s in alive}.values())


@pytest.fixture
def seen(monkeypatch):
    """Return references of all tensors that come to be on the stand-in."""
    found = []
    monkeypatch.setattr(
        OnGpu, "__init__", lambda self, inner: found.append(weakref.ref(self))
    )
    return found


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def session_bytes(device):
    """What one session takes that has done a step."""
    engine = made(device)
    trained(engine, clients=1, steps=1)
    return engine._table.residence.nbytes(engine._table._all())


@pytest.mark.parametrize("more", [{}, {"shared": "all"}, {"probe": True}])
def test_a_limit_changes_no_bit_of_what_clients_are_answered(device, more):
    recompute = bool(more)
    room, _ = trained(made(device, recompute=recompute), **more)
    tight = made(device, recompute=recompute, session_bytes=1)
    found, _ = trained(tight, **more)
    assert same(room, found)


def test_idle_sessions_leave_the_gpu_and_others_take_their_place(gpu, seen):
    one = session_bytes(gpu)
    room, most = trained(made(gpu), clients=5, steps=1, seen=seen)
    tight = made(gpu, session_bytes=2 * one)
    found, less = trained(tight, clients=5, steps=1, seen=seen)
    assert same(room, found)
    assert tight.stats().sessions_in_host >= 3
    assert less < most - 2 * one


def test_a_session_that_has_no_room_is_opened_in_the_host(gpu, seen):
    engine = made(gpu, session_bytes=1)
    before = on_gpu(seen)
    tokens = [engine.open(spec(engine, seed)) for seed in range(5)]
    assert engine.stats().sessions_in_host == len(tokens)
    assert on_gpu(seen) == before


def test_on_a_cpu_nothing_is_said_to_have_moved():
    engine = made(torch.device("cpu"), session_bytes=1)
    trained(engine)
    assert engine.stats().sessions_in_host == 0


def test_beside_open_steps_a_call_over_the_limit_is_pushed_back(device):
    engine = made(device, session_bytes=1)
    one, two = (engine.open(spec(engine, seed)) for seed in range(2))
    engine.forward(one, call(0, 0))
    with pytest.raises(TrunkBusy, match="raise trunk-limit"):
        engine.forward(two, call(1, 0))

    def the_other_goes_on(seconds):
        engine.backward(one, 0, grad(0, 0))

    answer = retry_while_busy(
        lambda: engine.forward(two, call(1, 0)),
        10,
        clock=Clock(),
        sleep=the_other_goes_on,
    )
    alone = made(device)
    expected = alone.forward(alone.open(spec(alone, 1)), call(1, 0))
    assert torch.equal(answer.cpu(), expected.cpu())


def test_a_session_is_not_pushed_back_by_its_own_open_steps(device):
    engine = made(device, session_bytes=1)
    token = engine.open(spec(engine))
    engine.forward(token, call(0, 0))
    engine.forward(token, call(0, 1))


def test_a_client_that_is_slow_loses_its_graph_and_nothing_else(device):
    def run(**limits):
        clock = Clock()
        engine = made(device, clock, **limits)
        one, two = (engine.open(spec(engine, seed)) for seed in range(2))
        engine.forward(one, call(0, 0))
        clock.now += PATIENCE
        engine.forward(two, call(1, 0))
        kept = engine.stats().kept_bytes
        engine.backward(two, 0, grad(1, 0))
        return engine.backward(one, 0, grad(0, 0)).cpu(), kept

    (room, twice), (tight, once) = run(), run(session_bytes=1)
    assert torch.equal(room, tight)
    assert 2 * once == twice


def test_merged_gradients_wait_in_the_host_and_are_stepped_on_as_ever(gpu):
    def run(**limits):
        engine = made(gpu, **limits)
        shared = {"shared": "two", "merge": 4}
        pair = [engine.open(spec(engine, **shared)) for _ in range(2)]
        other = engine.open(spec(engine, 5))
        for step in range(3):
            for seed, token in enumerate(pair):
                engine.forward(token, call(seed, step))
                engine.backward(token, step, grad(seed, step))
            engine.forward(other, call(5, step))  # for which the pair makes room
            engine.backward(other, step, grad(5, step))
        return [f.B for f in engine.adapters(pair[0]).factors.values()]

    assert same(run(), run(session_bytes=1))


@pytest.mark.parametrize("touched", [(True, True), (True, False)])
def test_a_buffer_that_has_moved_steps_to_the_same_bits(gpu, touched):
    def run(moves):
        generator = torch.Generator().manual_seed(0)
        values = [torch.randn(3, 4, generator=generator).to(gpu) for _ in range(2)]
        buffer = ParameterBuffer(values)
        for _ in range(4):
            grads = [torch.randn(3, 4, generator=generator).to(gpu) for _ in values]
            buffer.add([g if t else None for g, t in zip(grads, touched, strict=True)])
            if moves:
                buffer.move(torch.device("cpu"))
                buffer.move(gpu)
            step_together([(OPTIMIZER, [buffer])])
        return [p.detach().cpu() for p in (*buffer.parameters, buffer.values)]

    assert same(run(moves=True), run(moves=False))


def test_what_a_session_was_opened_with_is_let_go():
    engine = made(torch.device("cpu"))
    given = spec(engine)
    held = [weakref.ref(f.A) for f in given.state.factors.values()]
    engine.open(given)
    del given
    assert not any(ref() is not None for ref in held)


# --- an allocator that has no more --------------------------------------------------


class Full:
    """A base whose memory ends at certain passes, counted from 0."""

    def __init__(self, engine, monkeypatch, at, late=False):
        self.at, self.count = set(at), 0
        run = engine.base.run

        def full(session, call):
            number, self.count = self.count, self.count + 1
            answer = run(session, call) if late or number not in self.at else None
            if number in self.at:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return answer

        monkeypatch.setattr(engine.base, "run", full)


@pytest.mark.parametrize("recompute", [False, True])
def test_an_allocator_that_fails_once_is_asked_again(device, monkeypatch, recompute):
    room, _ = trained(made(device, recompute=recompute))
    engine = made(device, recompute=recompute)
    Full(engine, monkeypatch, range(1, 99, 3), late=True)
    found, _ = trained(engine)
    assert same(room, found)


def test_idle_sessions_make_room_when_an_allocator_fails(gpu, monkeypatch):
    engine = made(gpu)
    tokens = [engine.open(spec(engine, seed)) for seed in range(4)]
    Full(engine, monkeypatch, [0])
    engine.forward(tokens[0], call(0, 0))
    assert engine.stats().sessions_in_host == 3


def test_an_allocator_that_fails_again_is_a_busy_trunk(device, monkeypatch):
    engine = made(device)
    token = engine.open(spec(engine))
    Full(engine, monkeypatch, [0, 1])
    with pytest.raises(TrunkBusy, match="no memory left"):
        engine.forward(token, call(0, 0))
    engine.forward(token, call(0, 0))


def test_a_backward_that_found_no_memory_can_be_asked_for_again(device, monkeypatch):
    room = made(device)
    expected = run_one_step(room)
    engine = made(device, recompute=True)
    Full(engine, monkeypatch, [1, 2])

    token = engine.open(spec(engine))
    engine.forward(token, call(0, 0))
    with pytest.raises(TrunkBusy):
        engine.backward(token, 0, grad(0, 0))
    assert torch.equal(engine.backward(token, 0, grad(0, 0)).cpu(), expected)
    assert engine.stats().steps == 1


def run_one_step(engine):
    token = engine.open(spec(engine))
    engine.forward(token, call(0, 0))
    return engine.backward(token, 0, grad(0, 0)).cpu()


def test_other_errors_are_not_taken_for_a_full_memory(monkeypatch):
    engine = made(torch.device("cpu"))
    token = engine.open(spec(engine))

    def broken(session, call):
        raise RuntimeError("shapes")

    monkeypatch.setattr(engine.base, "run", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        engine.forward(token, call(0, 0))


def test_memory_that_ends_within_an_optimiser_step_is_no_busy_trunk(monkeypatch):
    engine = made(torch.device("cpu"))
    token = engine.open(spec(engine))
    engine.forward(token, call(0, 0))

    def full(*given):
        raise MemoryError

    monkeypatch.setattr("atlas_flwr.trunk.engine.batching.step_together", full)
    with pytest.raises(TrunkError, match="between two steps") as found:
        engine.backward(token, 0, grad(0, 0))
    assert not isinstance(found.value, TrunkBusy)


def test_many_clients_at_once_get_through_a_narrow_door_with_the_same_bits():
    def run(**limits):
        engine = made(torch.device("cpu"), passes_at_once=2, **limits)
        tokens = [engine.open(spec(engine, seed)) for seed in range(6)]

        def work(seed):
            trunk = EngineTrunk(engine, tokens[seed])
            for step in range(4):
                ask = partial(trunk.forward, call(seed, step))
                retry_while_busy(ask, 60, sleep=lambda seconds: time.sleep(0.001))
                trunk.backward(step, grad(seed, step))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert engine.stats().steps == 24
        return [
            f.B for token in tokens for f in engine.adapters(token).factors.values()
        ]

    assert same(run(), run(session_bytes=1))
