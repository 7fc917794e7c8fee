# SPDX-License-Identifier: Apache-2.0
"""Calls that cross as frames: the same numbers, counted bytes, refused nonsense."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from atlas_flwr.errors import TrunkError, WireError
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import (
    EngineTrunk,
    Limits,
    SessionSpec,
    TrunkEngine,
    TrunkHost,
    connect,
    serve_local,
)
from atlas_flwr.trunk.transports.requests import Request, Verb
from atlas_flwr.trunk.transports.service import FrameService
from atlas_flwr.types import (
    MOST_IN_FLIGHT,
    Continuation,
    LossReply,
    OptimizerSpec,
    Role,
    TrunkCall,
)
from atlas_flwr.wire import CODECS, encode_tensors
from tests.families import batch, build
from tests.trunk.engine.test_parity import adapters

PLAN = SplitPlan(1, 1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("llama")


@pytest.fixture
def engine(model):
    return TrunkEngine(partition(model, PLAN).trunk)


def call(step=0, rows=2):
    mask = torch.ones(rows, 4, dtype=torch.int64)
    mask[0, 0] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return TrunkCall(torch.randn(rows, 4, 32), mask, positions, step)


def test_raw_frames_give_the_bits_of_direct_calls(engine):
    direct = EngineTrunk(engine, engine.open(SessionSpec(PLAN)))
    with serve_local("raw", engine) as address:
        framed = connect(address, token=engine.open(SessionSpec(PLAN)))
    given, grad = call(), torch.randn(2, 4, 32)
    assert torch.equal(framed.forward(given), direct.forward(given))
    assert torch.equal(framed.backward(0, grad), direct.backward(0, grad))


@pytest.mark.parametrize("spares", [False, True])
def test_a_mask_may_number_texts(engine, spares):
    direct = EngineTrunk(engine, engine.open(SessionSpec(PLAN)))
    with serve_local("numbers", engine) as address:
        token = engine.open(SessionSpec(PLAN))
        framed = connect(address, token=token, spares_padding=spares)
    mask = torch.tensor([[0, 256, 256, 512], [1, 1, 1, 1]])
    given = TrunkCall(torch.randn(2, 4, 32), mask)
    real = mask != 0
    found, wanted = framed.forward(given), direct.forward(given)
    torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-4)


def test_raw_frames_give_the_bits_of_direct_vanilla_calls(model):
    plan = SplitPlan(2, None)
    engine = TrunkEngine(partition(model, plan).trunk)
    direct = EngineTrunk(engine, engine.open(SessionSpec(plan)))
    with serve_local("vanilla", engine) as address:
        framed = connect(address, token=engine.open(SessionSpec(plan)))
    labels = torch.randint(0, 61, (2, 4))
    for given, wanted in ((call(), labels), (call(None), labels), (call(None), None)):
        here, there = framed.loss(given, wanted, 2), direct.loss(given, wanted, 2)
        for name in ("loss", "logits", "grad"):
            one, other = getattr(here, name), getattr(there, name)
            assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_lossy_codecs_round_the_crossing_and_little_else(model, codec):
    given = batch("llama")
    losses = {}
    for name in ("raw", codec):
        parts = partition(model, PLAN)
        engine = TrunkEngine(parts.trunk)
        with serve_local("lossy", engine) as address:
            token = engine.open(SessionSpec(PLAN))
            trunk = connect(address, token=token, codec=name)
            losses[name] = SplitModel(parts.head, parts.tail, trunk)(**given).loss
    assert losses[codec] != losses["raw"]
    torch.testing.assert_close(losses[codec], losses["raw"], rtol=0.01, atol=0)


def test_a_head_that_learns_nothing_is_sent_no_gradient_and_the_trunk_learns_on():
    given, found = batch("llama"), {}
    for learns in (True, False):
        torch.manual_seed(0)
        whole = build("llama")
        parts = partition(whole, PLAN)
        parts.head.requires_grad_(learns)
        engine = TrunkEngine(parts.trunk)
        token = engine.open(SessionSpec(PLAN, adapters(whole, range(1, 4))))
        with serve_local("mute", engine) as address:
            trunk = connect(address, token=token)
        SplitModel(parts.head, parts.tail, trunk)(**given).loss.backward()
        found[learns] = engine.adapters(token).factors, trunk.meter.down[Role.GRADIENT]
    assert found[True][1] > 4 * 32 * given["input_ids"].numel()
    assert found[False][1] == 0
    for name, expected in found[True][0].items():
        assert torch.equal(found[False][0][name].B, expected.B)


def test_client_and_trunk_count_the_same_bytes(engine):
    with serve_local("count", engine) as address:
        trunk = connect(address, token=engine.open(SessionSpec(PLAN)), codec="int8")
    trunk.forward(call())
    trunk.backward(0, torch.randn(2, 4, 32))
    stats = engine.stats()
    assert (trunk.meter.total_up, trunk.meter.total_down) == (
        stats.bytes_in,
        stats.bytes_out,
    )
    assert set(trunk.meter.up) == {Role.ACTIVATION, Role.GRADIENT}


def test_a_message_weighs_its_tensors_and_little_more(engine):
    with serve_local("weight", engine) as address:
        trunk = connect(address, token=engine.open(SessionSpec(PLAN)))
    trunk.forward(TrunkCall(torch.randn(8, 16, 32), torch.ones(8, 16), step=0))
    hidden = 8 * 16 * 32 * 4
    assert hidden < trunk.meter.total_up < 1.1 * hidden


def test_a_busy_trunk_is_asked_again_until_it_has_room(model):
    engine = TrunkEngine(partition(model, PLAN).trunk, limits=Limits(passes=1))
    first = EngineTrunk(engine, engine.open(SessionSpec(PLAN)))
    first.forward(call())
    with serve_local("busy", engine) as address:
        second = connect(address, token=engine.open(SessionSpec(PLAN)))
    asked = []
    exchange = second.exchange

    def watched(request):
        asked.append(request)
        if len(asked) == 2:
            first.backward(0, torch.randn(2, 4, 32))
        return exchange(request)

    second.exchange = watched
    second.forward(call())
    assert len(asked) == 2
    assert second.meter.total_up == 2 * len(asked[0].frame)


ABOVE = torch.ones(1, 1, 4, 4).triu(1) == 1
MASKS = {
    "added": torch.zeros(1, 1, 4, 4).masked_fill(ABOVE, -1e9),
    "infinite": torch.zeros(1, 1, 4, 4).masked_fill(ABOVE, -torch.inf),
    "bool": ~ABOVE,
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_of_who_reads_whom_cross_as_they_are(engine, mask, codec):
    seen, forward = [], engine.forward
    engine.forward = lambda t, c: seen.append(c) or forward(t, c)
    with serve_local("mask", engine) as address:
        trunk = connect(address, engine.open(SessionSpec(PLAN)), codec=codec)
    answer = trunk.forward(TrunkCall(torch.ones(1, 4, 32), mask))
    assert torch.equal(seen[0].attention_mask, mask)
    assert answer.isfinite().all()


@pytest.mark.parametrize("codec", CODECS)
def test_labels_that_are_no_classes_cross_as_they_are(model, codec):
    """As those of a regression, or of several classes at once."""
    plan, labels = SplitPlan(2, None), torch.tensor([[0.1, 1.0], [-2.0, 0.3]])
    engine = TrunkEngine(partition(model, plan).trunk)
    seen = []
    engine.loss = lambda t, c, given, keep: seen.append(given) or LossReply(*3 * [None])
    with serve_local("labels", engine) as address:
        trunk = connect(address, engine.open(SessionSpec(plan)), codec=codec)
    trunk.loss(TrunkCall(torch.ones(2, 4, 32), step=0), labels)
    assert torch.equal(seen[0], labels)


@pytest.mark.parametrize("codec", CODECS)
def test_the_largest_logit_stays_the_largest_whatever_the_codec(model, codec):
    """Of many models all are far below 0, which a number that is left out is not."""
    plan, logits = SplitPlan(2, None), torch.linspace(-90, -20, 64).expand(2, 4, 64)
    engine = TrunkEngine(partition(model, plan).trunk)
    engine.loss = lambda *_: LossReply(None, logits, None)
    engine.extend = lambda *_: logits
    with serve_local("logits", engine) as address:
        trunk = connect(address, engine.open(SessionSpec(plan)), codec=codec)
    given = TrunkCall(torch.ones(2, 4, 32))
    for found in (
        trunk.loss(given, None).logits,
        trunk.extend(given, Continuation(0, 0)),
    ):
        largest, _ = found.max(-1)
        assert torch.equal(found[..., -1], largest)
        torch.testing.assert_close(found, logits, atol=90 / 13, rtol=0)


def test_padding_is_spared_of_all_batches_that_are_in_flight(model):
    count = MOST_IN_FLIGHT
    limits = Limits(passes=count, passes_per_session=count)
    engine = TrunkEngine(partition(model, PLAN).trunk, limits=limits)
    spec = SessionSpec(PLAN, optimizer=OptimizerSpec(accumulate=count))
    with serve_local("spared", engine) as address:
        trunk = connect(address, engine.open(spec), spares_padding=True)
    for step in range(count):
        trunk.forward(call(step))
    grad, sent = torch.ones(2, 4, 32), [trunk.meter.total_up]
    grad[0, 0] = 0
    for step in range(count):
        trunk.backward(step, grad)
        sent.append(trunk.meter.total_up)
    assert len({after - before for before, after in pairwise(sent)}) == 1


@pytest.mark.parametrize(
    ("verb", "names", "step", "codec", "message"),
    [
        (Verb.FORWARD, ["grad"], 0, "raw", "without 'hidden'"),
        (Verb.BACKWARD, ["hidden"], 0, "raw", "without 'grad'"),
        (Verb.BACKWARD, ["grad"], None, "raw", "without a step"),
        (Verb.FORWARD, ["hidden"], 0, "zip", "allowed: raw"),
        (Verb.FORWARD, ["hidden"], 0, "fp16", "configured alike"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    engine, verb, names, step, codec, message
):
    service, token = FrameService(engine), engine.open(SessionSpec(PLAN))
    tensors = {name: (torch.randn(1, 4, 32), Role.GRADIENT) for name in names}
    frame = encode_tensors(CODECS["int8"], tensors)
    if codec == "raw":
        frame = encode_tensors(CODECS["raw"], tensors)
    with pytest.raises(WireError, match=message):
        service.answer(Request(verb, token, codec, frame, step))


def test_two_engines_cannot_be_served_under_one_name(model, engine):
    other = TrunkEngine(partition(model, PLAN).trunk)
    with (
        serve_local("taken", engine),
        pytest.raises(TrunkError, match="served already"),
        serve_local("taken", other),
    ):
        pass


def test_a_certificate_is_refused_where_there_is_no_tls(engine):
    with (
        serve_local("plain", engine) as address,
        pytest.raises(TrunkError, match="no TLS"),
    ):
        connect(address, token="t", ca="authority.crt")


def test_an_engine_is_a_host(engine):
    assert isinstance(engine, TrunkHost)
    engine.ping()


def test_importing_the_trunk_imports_neither_ray_nor_torch():
    import subprocess
    import sys

    code = (
        "import sys, atlas_flwr.trunk, atlas_flwr.wire; "
        "sys.exit(any(name in sys.modules for name in ('ray', 'torch', 'flwr')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
