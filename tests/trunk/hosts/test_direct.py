# SPDX-License-Identifier: Apache-2.0
"""Hosts that hand on to each other: the same bits, whatever is lost or made twice."""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from threading import Thread

import pytest
import torch

from atlas_flwr.budget.chains import Link
from atlas_flwr.errors import SessionError, TrunkBusy, TrunkError, TrunkLost, WireError
from atlas_flwr.lora import AdapterState
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import (
    Limits,
    Request,
    ServeOptions,
    SessionSpec,
    TrunkEngine,
    serve_grpc,
    serve_local,
)
from atlas_flwr.trunk.host import Door
from atlas_flwr.trunk.hosts.chain import ChainTrunk, connect_all, links_of
from atlas_flwr.trunk.hosts.direct import DirectChain
from atlas_flwr.trunk.hosts.peer_model import part_of
from atlas_flwr.trunk.seams import Handover, seams_between
from atlas_flwr.trunk.transports.certificates import run_identity
from atlas_flwr.trunk.transports.grpc_channel import GrpcTrunk
from atlas_flwr.trunk.transports.handing import Handing
from atlas_flwr.trunk.transports.local import LoopbackTrunk
from atlas_flwr.trunk.transports.requests import Verb
from atlas_flwr.types import OptimizerSpec, Role, TrunkCall
from atlas_flwr.wire.codecs import codec_named
from atlas_flwr.wire.messages import encode_tensors
from tests.families import batch, build
from tests.trunk.engine.test_parity import adapters

LAYERS = 5
PLANS = [SplitPlan(1, 1), SplitPlan(1, None)]
CHAINS = {"relay": ChainTrunk, "direct": DirectChain}


@dataclass
class Fleet:
    """Hosts that hold blocks between cuts, each by an engine of its own."""

    model: object
    plan: SplitPlan
    cuts: tuple[int, ...] = (2, 3)
    limits: Limits = field(default_factory=lambda: Limits(sessions_per_pass=1))
    engines: list = field(default_factory=list)
    places: list = field(default_factory=list)

    def served(self, stack, serve):
        ends = [self.plan.head, *self.cuts, LAYERS - (self.plan.tail or 0)]
        self.links = [Link("", first, stop) for first, stop in pairwise(ends)]
        for number, link in enumerate(self.links):
            cut = SplitPlan(link.first, LAYERS - link.stop or None)
            trunk = partition(self.model, cut).trunk
            engine = TrunkEngine(trunk, limits=self.limits)
            self.engines.append(engine)
            self.places.append((stack.enter_context(serve(number, engine)), ""))
        return self

    def opened(self, spec, order=None):
        """Open a session; return its doors, and the tokens at each engine."""
        doors = []
        seams = seams_between(self.places)
        for link, engine, place, seam in zip(
            self.links, self.engines, self.places, seams, strict=True
        ):
            block_of = engine.base.info.block_of
            part = part_of(spec, link, LAYERS, block_of)
            doors.append(Door(place[0], engine.open(replace(part, seams=seam))))
        return doors

    def learned(self, doors):
        found = AdapterState()
        for engine, door in zip(self.engines, doors, strict=True):
            found = found.merged(engine.adapters(door.token))
        return found.factors


def local(number, engine):
    return serve_local(f"direct-{number}", engine)


def trained(family, plan, chain=None, cuts=(2, 3), codec="raw", spares=False):
    """Train three batches; return losses, what was learned, and the guest's bytes."""
    torch.manual_seed(0)
    model = build(family)
    blocks = plan.trunk_range(LAYERS)
    spec = SessionSpec(plan, adapters(model, blocks), OptimizerSpec(lr=0.02))
    with ExitStack() as stack:
        fleet = Fleet(model, plan, cuts if chain else ()).served(stack, local)
        doors = fleet.opened(spec)
        how = {"chain": chain} if chain else {}
        trunk = connect_all(doors, timeout=5.0, spares_padding=spares, **how)
        for number, way in enumerate(links_of(trunk)):
            way.codec = codec_named(codec if isinstance(codec, str) else codec[number])
        parts = partition(model, plan)
        split = SplitModel(parts.head, parts.tail, trunk)
        losses = []
        for pad in ("", "right", "left"):
            given = batch(family, pad)
            if spares:
                given["labels"] = unpredicted_from_padding(given)
            loss = split(**given).loss
            if plan.tail is not None:
                loss.backward()
            losses.append(loss.detach())
        meter = trunk.meter
        return losses, fleet.learned(doors), (meter.total_up, meter.total_down)


def unpredicted_from_padding(given):
    real = given["attention_mask"] != 0
    before = torch.nn.functional.pad(real, (1, -1))
    return given["labels"].masked_fill(~(real & before), -100)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, factors in expected.items():
        assert torch.equal(found[name].A, factors.A), name
        assert torch.equal(found[name].B, factors.B), name


@pytest.mark.parametrize("cuts", [(2,), (2, 3)], ids=str)
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_direct_chain_trains_to_the_bits_of_one_trunk(family, plan, cuts):
    losses, expected, _ = trained(family, plan)
    got, found, _ = trained(family, plan, DirectChain, cuts)
    assert got == losses
    same(found, expected)


@pytest.mark.parametrize("spares", [False, True])
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", ("raw", "int8", "int4")])
def test_a_codec_rounds_at_each_seam_of_a_direct_chain_as_of_a_relayed_one(
    codec, plan, spares
):
    given = {"codec": codec, "spares": spares}
    relayed, direct = (trained("llama", plan, c, **given) for c in CHAINS.values())
    assert direct[0] == relayed[0]
    same(direct[1], relayed[1])


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_guests_link_carries_a_step_once_however_many_hosts_there_are(plan):
    one = trained("llama", plan)[2]
    for cuts in ((2,), (2, 3)):
        relayed = trained("llama", plan, ChainTrunk, cuts)[2]
        direct = trained("llama", plan, DirectChain, cuts)[2]
        for alone, over_guest, beside in zip(one, relayed, direct, strict=True):
            assert beside - alone < 0.1 * (over_guest - alone) * len(cuts)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_direct_chain_writes_the_text_of_one_trunk_from_caches_in_each_link(plan):
    torch.manual_seed(0)
    model, written = build("llama"), []
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    for chain, cuts in ((ChainTrunk, ()), (DirectChain, (2, 3))):
        with ExitStack() as stack:
            fleet = Fleet(model, plan, cuts).served(stack, local)
            trunk = connect_all(fleet.opened(SessionSpec(plan)), chain=chain)
            parts = partition(model, plan)
            split = SplitModel(parts.head, parts.tail, trunk)
            written.append(split.generate(ids, max_new_tokens=6, do_sample=False))
    assert torch.equal(*written)


# --- what goes wrong -----------------------------------------------------------------


def answered_twice(exchange):
    """Make each call twice, guests' and neighbours', and lose the first answer."""

    def twice(self, request):
        exchange(self, request)
        return exchange(self, request)

    return twice


def lost_between_hosts(exchange):
    """Lose the first answer to each thing that a host hands over."""
    seen = set()

    def lost(self, request):
        answer = exchange(self, request)
        if request.verb is Verb.HAND and (request.token, request.ticket) not in seen:
            seen.add((request.token, request.ticket))
            raise TrunkBusy("the answer was lost")
        return answer

    return lost


def lost_on_the_way_to_guests(exchange):
    """Lose the first answer to each of a guest's calls."""
    seen = set()

    def lost(self, request):
        answer = exchange(self, request)
        call = (request.verb, request.token, request.ticket)
        if request.verb is not Verb.HAND and call not in seen:
            seen.add(call)
            raise TrunkBusy("the answer was lost")
        return answer

    return lost


@pytest.mark.parametrize(
    "fault", [answered_twice, lost_between_hosts, lost_on_the_way_to_guests]
)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_what_is_done_again_steps_no_host_again(monkeypatch, plan, fault):
    losses, expected, _ = trained("llama", plan)
    counted, exchange = [], LoopbackTrunk.exchange
    monkeypatch.setattr(LoopbackTrunk, "exchange", fault(exchange))
    monkeypatch.setattr(Fleet, "learned", counting(Fleet.learned, counted))
    got, found, _ = trained("llama", plan, DirectChain)
    assert got == losses
    same(found, expected)
    # In a vanilla split the loss is all of the step; a batch each.
    assert counted == [3, 3, 3]


def counting(learned, counted):
    def found(self, doors):
        counted.extend(engine.stats().steps for engine in self.engines)
        return learned(self, doors)

    return found


@contextmanager
def opened(plan=PLANS[0], **given):
    torch.manual_seed(0)
    model = build("llama")
    spec = SessionSpec(plan, adapters(model, plan.trunk_range(LAYERS)))
    with ExitStack() as stack:
        fleet = Fleet(model, plan, **given).served(stack, local)
        doors = fleet.opened(spec)
        yield fleet, doors, connect_all(doors, timeout=1.0, chain=DirectChain)


CALL = TrunkCall(torch.randn(2, 4, 32), step=0)


@pytest.mark.parametrize("lost", [1, 2])
def test_an_error_names_the_host_that_was_not_reached(monkeypatch, lost):
    with opened() as (fleet, _, trunk):
        exchange, dead = LoopbackTrunk.exchange, fleet.engines[lost]

        def deadly(self, request):
            if self.service.engine is dead:
                raise TrunkLost("it was killed")
            return exchange(self, request)

        monkeypatch.setattr(LoopbackTrunk, "exchange", deadly)
        said = f"local://direct-{lost}, its neighbour in the chain, .* it was killed"
        with pytest.raises(TrunkLost, match=said):
            trunk.forward(CALL)


def frame_of(name):
    return encode_tensors(codec_named("raw"), {name: (CALL.hidden, Role.ACTIVATION)})


def test_a_neighbours_key_brings_things_and_can_do_nothing_else():
    with opened() as (fleet, doors, trunk):
        first, service = trunk.links[0], trunk.links[0].service
        key = fleet.engines[0].check_open(doors[0].token).seams.key
        hand = Request(Verb.HAND, key, "raw", frame_of("grad"), ticket="t")
        service.answer(hand)
        for verb in (Verb.FORWARD, Verb.BACKWARD, Verb.EXTEND, Verb.LOSS):
            with pytest.raises(SessionError, match="nothing is asked of it"):
                service.answer(replace(hand, verb=verb))
        with pytest.raises(SessionError, match="nothing is asked of it"):
            service.answer(Request(Verb.ECHO, key, "raw", frame_of("echo")))
        with pytest.raises(SessionError, match="not open"):
            service.answer(Request(Verb.BACKWARD, key, "raw", frame_of("grad"), 0))
        with pytest.raises(SessionError, match="only a session's neighbours"):
            service.answer(replace(hand, token=first.token))
        with pytest.raises(SessionError, match="not open"):
            service.answer(replace(hand, token="guessed"))
        fleet.engines[0].close(first.token)
        with pytest.raises(SessionError, match="not open"):
            service.answer(hand)


def test_a_host_that_was_told_of_no_neighbours_says_so_and_hands_nothing_on():
    with opened() as (fleet, doors, trunk):
        engine, service = fleet.engines[0], trunk.links[0].service
        spec = engine.check_open(doors[0].token)
        token = engine.open(replace(spec, seams=None))
        asked = Request(Verb.FORWARD, token, "raw", frame_of("hidden"), ticket="t")
        with pytest.raises(SessionError, match="told of no neighbours"):
            service.answer(asked)


def test_a_host_that_answers_what_it_was_to_hand_on_is_refused(monkeypatch):
    exchange = LoopbackTrunk.exchange
    monkeypatch.setattr(
        LoopbackTrunk, "exchange", lambda s, r: exchange(s, replace(r, ticket=""))
    )
    with opened() as (_, _, trunk), pytest.raises(WireError, match="was to hand to"):
        trunk.forward(CALL)


def test_what_did_not_come_is_said_and_what_came_is_bounded_and_forgotten():
    with opened() as (fleet, doors, trunk):
        last, engine = trunk.links[-1], fleet.engines[-1]
        seams = engine.check_open(doors[-1].token).seams
        handing = last.service.handing
        with pytest.raises(SessionError, match="the hidden that a neighbour"):
            last.forward(CALL, Handover("never", comes=True))
        for number in range(9):
            frame = frame_of("hidden")
            request = Request(Verb.HAND, seams.key, "raw", frame, ticket=str(number))
            last.service.answer(request)
        kept = handing._sessions[seams].come
        assert [*kept] == [(number, "hidden") for number in "5678"]
        assert fleet.limits.passes_per_session == 2


def test_with_a_session_goes_what_came_for_it_and_what_it_had_dialled(monkeypatch):
    closed = []
    monkeypatch.setattr(LoopbackTrunk, "close", lambda self: closed.append(self.token))
    with opened() as (fleet, doors, trunk):
        trunk.forward(CALL)
        services = [link.service for link in trunk.links]
        keys = [
            engine.check_open(door.token).seams.key
            for engine, door in zip(fleet.engines, doors, strict=True)
        ]
        assert [len(service.handing._sessions) for service in services] == [1, 1, 1]
        for engine, door in zip(fleet.engines, doors, strict=True):
            engine.close(door.token)
        gc.collect()
        assert [len(service.handing._sessions) for service in services] == [0, 0, 0]
        assert closed == keys[1:]


def test_hidden_states_that_come_again_late_take_no_gradients_place(monkeypatch):
    """In a vanilla split both have the ticket of their step."""
    vanilla = PLANS[1]
    losses, expected, _ = trained("llama", vanilla)
    exchange, handed = LoopbackTrunk.exchange, []

    def late(self, request):
        if request.verb is Verb.HAND:
            handed.append((self, request))
        before = [(w, r) for w, r in handed if r.ticket == request.ticket]
        answer = exchange(self, request)
        if request.verb is Verb.LOSS:
            for way, again in before:
                exchange(way, again)
        return answer

    monkeypatch.setattr(LoopbackTrunk, "exchange", late)
    got, found, _ = trained("llama", vanilla, DirectChain)
    assert len(handed) == 3 * 4  # a step's hidden states and gradients, at two seams
    assert got == losses
    same(found, expected)


@pytest.mark.parametrize("brought", [(), ("labels",), ("hidden", "grad")], ids=str)
def test_a_neighbour_brings_hidden_states_or_gradients_and_nothing_else(brought):
    given = dict.fromkeys(brought, (CALL.hidden, Role.ACTIVATION))
    frame = encode_tensors(codec_named("raw"), given)
    with opened() as (fleet, doors, trunk):
        key = fleet.engines[0].check_open(doors[0].token).seams.key
        with pytest.raises(WireError, match="it is one of grad, hidden"):
            trunk.links[0].service.answer(Request(Verb.HAND, key, "raw", frame))


def test_a_host_dials_no_other_machine_without_tls():
    with opened() as (fleet, doors, trunk):
        engine, service = fleet.engines[0], trunk.links[0].service
        spec = engine.check_open(doors[0].token)
        far = spec.seams.onward._replace(address="grpc://192.0.2.1:7001")
        token = engine.open(replace(spec, seams=replace(spec.seams, onward=far)))
        asked = Request(Verb.FORWARD, token, "raw", frame_of("hidden"), ticket="t")
        with pytest.raises(TrunkError, match="grpc:// has no TLS"):
            service.answer(asked)


# --- between machines ----------------------------------------------------------------

IDENTITY = run_identity("127.0.0.1")
WHOLE = SplitPlan(1, 1)


@contextmanager
def over_tls(calls=64):
    """Serve two hosts that hold all blocks each, as `atlas-flwr trunk` does."""
    torch.manual_seed(0)
    model = build("llama")
    options = ServeOptions(identity=IDENTITY, calls=calls)
    with ExitStack() as stack:
        engines = [
            TrunkEngine(partition(build("llama"), WHOLE).trunk, own_threads=True)
            for _ in range(2)
        ]
        for engine in engines:
            engine.base.trunk.load_state_dict(engines[0].base.trunk.state_dict())
        places = [
            (stack.enter_context(serve_grpc(engine, options)), IDENTITY.ca.decode())
            for engine in engines
        ]
        yield model, engines, places


def chain_over(engines, places, order, timeout=60.0):
    """Open a session whose blocks are on the hosts in this order."""
    links = [Link("", 1, 2), Link("", 2, 4)]
    seams = seams_between([places[k] for k in order])
    doors = []
    for link, k, seam in zip(links, order, seams, strict=True):
        spec = part_of(SessionSpec(WHOLE), link, LAYERS, lambda _: None)
        token = engines[k].open(replace(spec, seams=seam))
        doors.append(Door(places[k][0], token, places[k][1]))
    return connect_all(doors, timeout=timeout, chain=DirectChain)


@pytest.mark.parametrize("calls", [2, 4])
def test_many_guests_in_both_orders_finish_however_few_threads_hosts_have(
    monkeypatch, calls
):
    exchange = GrpcTrunk.exchange

    def slow(self, request):
        if request.verb is Verb.HAND:
            time.sleep(0.05)  # while which all threads of both hosts hand something on
        return exchange(self, request)

    monkeypatch.setattr(GrpcTrunk, "exchange", slow)
    with over_tls(calls) as (_, engines, places):
        alone = EngineTrunkOf(engines[0])
        hidden = torch.randn(2, 4, 32)
        expected = alone(hidden)
        answers, failed = [], []

        def guest(order):
            try:
                trunk = chain_over(engines, places, order)
                for step in range(3):
                    answers.append(trunk.forward(TrunkCall(hidden, step=step)))
                    trunk.backward(step, torch.ones_like(hidden))
            except Exception as error:
                failed.append(error)

        orders = [(0, 1), (1, 0)] * 6
        threads = [Thread(target=guest, args=(order,), daemon=True) for order in orders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not failed
        assert len(answers) == 3 * len(orders)
        assert all(torch.allclose(a, expected, atol=1e-5) for a in answers)


class EngineTrunkOf:
    """One engine with all blocks."""

    def __init__(self, engine):
        self.engine, self.token = engine, engine.open(SessionSpec(WHOLE))

    def __call__(self, hidden):
        return self.engine.forward(self.token, TrunkCall(hidden))


def test_a_host_waits_less_long_for_its_neighbour_than_its_guest_for_it(monkeypatch):
    with over_tls() as (_, engines, places):
        trunk = chain_over(engines, places, (0, 1), timeout=2.0)
        keep = Handing.keep

        def hangs(self, engine, request, tensors):
            if engine is engines[1]:
                time.sleep(4)
            keep(self, engine, request, tensors)

        monkeypatch.setattr(Handing, "keep", hangs)
        said = f"{places[1][0]}, its neighbour in the chain, .* gave no answer in 2 s"
        with pytest.raises(TrunkError, match=said):
            trunk.forward(CALL)


def test_hosts_count_what_they_hand_to_each_other():
    with over_tls() as (_, engines, places):
        trunk = chain_over(engines, places, (0, 1))
        trunk.forward(CALL)
        sent, came = engines[0].stats().bytes_out, engines[1].stats().bytes_in
        hidden = CALL.hidden.nbytes
        assert hidden < sent < 1.5 * hidden + 1000
        assert hidden < came < 1.5 * hidden + 1000
