"""Texts that the trunk keeps: within limits, apart, and never wrong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from atlas_flwr.errors import CacheLost, SessionError, TrunkError, WireError
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import EngineTrunk, Limits, SessionSpec, TrunkEngine
from atlas_flwr.trunk.transports.requests import Request, Verb
from atlas_flwr.trunk.transports.service import FrameService
from atlas_flwr.types import Continuation, OptimizerSpec, Role, TrunkCall
from atlas_flwr.wire import CODECS, encode_tensors
from tests.families import build

PLAN = SplitPlan(1, 1)
ROW = 3 * 2 * 2 * 8 * 4  # bytes of a position: blocks, keys and values, heads, width


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("llama")


def engine_of(model, clock=None, **limits):
    trunk = partition(model, PLAN).trunk
    return TrunkEngine(trunk, limits=Limits(**limits), clock=clock or Clock())


def begin(engine, token, texts=0, length=4, rows=1):
    call = TrunkCall(torch.ones(rows, length, 32))
    return engine.extend(token, call, Continuation(texts, 0))


def go_on(engine, token, texts=0, turn=1, rows=1, **place):
    call = TrunkCall(torch.ones(rows, 1, 32))
    return engine.extend(token, call, Continuation(texts, turn, **place))


def test_the_account_tells_texts_and_their_bytes(model):
    engine = engine_of(model)
    token = engine.open(SessionSpec(PLAN))
    begin(engine, token, length=4, rows=2)
    assert (engine.stats().caches, engine.stats().cache_bytes) == (1, 2 * 4 * ROW)
    go_on(engine, token, rows=2)
    assert engine.stats().cache_bytes == 2 * 5 * ROW
    engine.forget(token, 0)
    assert (engine.stats().caches, engine.stats().cache_bytes) == (0, 0)


def test_over_the_count_those_used_longest_ago_are_forgotten(model):
    engine = engine_of(model, caches=2)
    token = engine.open(SessionSpec(PLAN))
    begin(engine, token, 0)
    begin(engine, token, 1)
    go_on(engine, token, 0)
    begin(engine, token, 2)
    with pytest.raises(CacheLost, match="send them whole"):
        go_on(engine, token, 1)
    go_on(engine, token, 0, turn=2)
    assert engine.stats().evicted_caches == 1


def test_over_their_bytes_texts_of_other_sessions_are_forgotten(model):
    engine = engine_of(model, cache_bytes=10 * ROW)
    first, second = (engine.open(SessionSpec(PLAN)) for _ in range(2))
    begin(engine, first, length=6)
    begin(engine, second, length=4)
    go_on(engine, second)
    with pytest.raises(CacheLost):
        go_on(engine, first)
    assert engine.stats().cache_bytes == 5 * ROW


def test_texts_that_are_idle_are_forgotten_when_others_come(model):
    clock = Clock()
    engine = engine_of(model, clock, idle_seconds=10)
    token = engine.open(SessionSpec(PLAN))
    begin(engine, token, 0)
    clock.now = 11.0
    begin(engine, token, 1)
    assert engine.stats().caches == 1


def test_a_closed_session_leaves_no_texts(model):
    engine = engine_of(model)
    token = engine.open(SessionSpec(PLAN))
    begin(engine, token)
    engine.close(token)
    assert engine.stats().caches == 0
    with pytest.raises(SessionError):
        go_on(engine, token)


def test_another_session_cannot_go_on_with_texts(model):
    engine = engine_of(model)
    first, second = (engine.open(SessionSpec(PLAN)) for _ in range(2))
    begin(engine, first)
    with pytest.raises(CacheLost):
        go_on(engine, second)
    go_on(engine, first)


def test_a_call_that_comes_twice_is_not_counted_twice(model):
    engine = engine_of(model)
    token = engine.open(SessionSpec(PLAN))
    begin(engine, token)
    go_on(engine, token)
    with pytest.raises(CacheLost, match="before call 2"):
        go_on(engine, token)  # its answer was lost on the way


def test_texts_at_adapters_that_have_learned_since_are_lost(model):
    engine = engine_of(model)
    name = "model.layers.2.self_attn.q_proj"
    factors = LoraFactors(torch.randn(2, 32), torch.randn(32, 2), 1.0)
    state = AdapterState({name: factors})
    token = engine.open(SessionSpec(PLAN, state, OptimizerSpec()))
    begin(engine, token)
    engine.forward(token, TrunkCall(torch.randn(1, 4, 32), step=0))
    engine.backward(token, 0, torch.randn(1, 4, 32))
    with pytest.raises(CacheLost, match="after 1 updates"):
        go_on(engine, token)


@pytest.mark.parametrize(
    ("call", "order", "message"),
    [
        (TrunkCall(torch.ones(1, 1, 32)), torch.tensor([2]), "for 2 texts"),
        (TrunkCall(torch.ones(1, 1, 32)), torch.tensor([[0]]), "for 2 texts"),
        (TrunkCall(torch.ones(2, 1, 32), torch.ones(2, 4)), None, "attention_mask"),
        (
            TrunkCall(torch.ones(2, 1, 32), position_ids=torch.ones(1, 1)),
            None,
            "position_ids",
        ),
        (TrunkCall(torch.ones(2, 1, 31)), None, "takes"),
    ],
)
def test_what_cannot_go_on_is_refused_and_leaves_nothing(model, call, order, message):
    engine = engine_of(model)
    token = engine.open(SessionSpec(PLAN))
    begin(engine, token, rows=2)
    with pytest.raises(TrunkError, match=message):
        engine.extend(token, call, Continuation(0, 1, order))
    assert engine.stats().caches == 0


def test_no_more_is_taken_back_than_is_there(model):
    engine = engine_of(model)
    token = engine.open(SessionSpec(PLAN))
    whole = TrunkCall(torch.ones(1, 4, 32))
    engine.extend(token, whole, Continuation(0, 0, past=0))
    with pytest.raises(TrunkError, match="5 positions of the 4"):
        go_on(engine, token, past=5)


def test_texts_that_were_begun_without_drafts_are_begun_again_with_them(model):
    engine = engine_of(model)
    token = engine.open(SessionSpec(PLAN))
    begin(engine, token)
    with pytest.raises(CacheLost, match="without drafts"):
        go_on(engine, token, past=3)


def test_a_place_that_is_none_is_refused(model):
    engine = engine_of(model)
    token = engine.open(SessionSpec(PLAN))
    place = torch.zeros(4, dtype=torch.int32)
    frame = encode_tensors(CODECS["raw"], {"place": (place, Role.ACTIVATION)})
    with pytest.raises(WireError, match="2 numbers or 3"):
        FrameService(engine).answer(Request(Verb.FORGET, token, "raw", frame))


def test_only_a_model_that_writes_keeps_texts():
    plan = SplitPlan(1, None)
    engine = TrunkEngine(partition(build("llama-classifier"), plan).trunk)
    token = engine.open(SessionSpec(plan))
    with pytest.raises(TrunkError, match="use_cache=False"):
        begin(engine, token)


def adapted(model, seed):
    """Return a state with an adapter, and a model that has it in its weights."""
    generator = torch.Generator().manual_seed(seed)
    name = "model.layers.2.self_attn.q_proj"
    A, B = (torch.randn(s, generator=generator) for s in ((2, 32), (32, 2)))
    whole = build("llama")
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        whole.get_submodule(name).weight += B @ A
    return AdapterState({name: LoraFactors(A, B, 1.0)}), whole


def test_several_chats_at_once_each_have_their_own_adapters(model):
    engine, parts = engine_of(model), partition(model, PLAN)
    pairs = [adapted(model, seed) for seed in range(4)]
    ids = torch.tensor([[5, 6, 7, 8]])
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}

    def chat(state):
        trunk = EngineTrunk(engine, engine.open(SessionSpec(PLAN, state)), 60.0)
        split = SplitModel(parts.head, parts.tail, trunk).eval()
        return split.generate(ids, **settings)

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(chat, [state for state, _ in pairs]))
    expected = [whole.generate(ids, **settings) for _, whole in pairs]
    assert all(map(torch.equal, got, expected))
    assert len({tuple(text[0].tolist()) for text in got}) > 1


def test_a_chat_goes_on_beside_a_session_that_trains(model):
    engine, parts = engine_of(model), partition(model, PLAN)
    state, whole = adapted(model, 0)
    chatting, training = (engine.open(SessionSpec(PLAN, state)) for _ in range(2))
    ids = torch.tensor([[5, 6, 7, 8]])
    trunk = EngineTrunk(engine, chatting)
    split, text = SplitModel(parts.head, parts.tail, trunk).eval(), ids
    cache = split.new_cache()
    for step in range(6):
        text = split.generate(
            text,
            attention_mask=torch.ones_like(text),
            past_key_values=cache,
            max_new_tokens=1,
            pad_token_id=0,
        )
        engine.forward(training, TrunkCall(torch.randn(2, 4, 32), step=step))
        engine.backward(training, step, torch.randn(2, 4, 32))
    expected = whole.generate(ids, max_new_tokens=6, pad_token_id=0)
    assert torch.equal(text, expected)
    assert cache.rebuilt == 0


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_a_codec_rounds_what_crosses_as_in_training(model, codec):
    from atlas_flwr.trunk import connect, serve_local

    ids, sizes = torch.tensor([[5, 6, 7, 8]]), {}
    for name in ("raw", codec):
        parts = partition(model, PLAN)
        engine = TrunkEngine(parts.trunk)
        with serve_local("coded", engine) as address:
            token = engine.open(SessionSpec(PLAN))
            trunk = connect(address, token=token, codec=name)
            split = SplitModel(parts.head, parts.tail, trunk).eval()
            cache = split.new_cache()
            with torch.no_grad():
                logits = split(input_ids=ids, past_key_values=cache).logits
                whole = split(input_ids=ids).logits
        torch.testing.assert_close(logits, whole)
        sizes[name] = trunk.meter.total_up
    assert sizes[codec] < sizes["raw"]


@pytest.mark.parametrize("fails", range(7))
def test_a_text_that_memory_ends_within_is_written_on_as_if_there_were_more(
    model, monkeypatch, fails
):
    """What a pass that failed halfway has left in the caches is not gone on with."""
    engine, parts = engine_of(model), partition(model, PLAN)
    extend, count = engine.base.extend, iter(range(99))

    def full(*given):
        answer = extend(*given)
        if next(count) == fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer

    monkeypatch.setattr(engine.base, "extend", full)
    trunk = EngineTrunk(engine, engine.open(SessionSpec(PLAN)), 60.0)
    split = SplitModel(parts.head, parts.tail, trunk).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}
    beams = {"num_beams": 3, "do_sample": False}
    expected = model.generate(ids, **settings, **beams)
    assert torch.equal(split.generate(ids, **settings, **beams), expected)


def test_a_session_that_is_closed_while_it_writes_leaves_no_texts(model, monkeypatch):
    engine = engine_of(model)
    token, extend = engine.open(SessionSpec(PLAN)), engine.base.extend

    def meanwhile(*given):
        engine.close(token)
        return extend(*given)

    monkeypatch.setattr(engine.base, "extend", meanwhile)
    begin(engine, token)
    assert (engine.stats().sessions, engine.stats().caches) == (0, 0)
