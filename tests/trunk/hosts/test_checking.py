# SPDX-License-Identifier: Apache-2.0
"""A guest that repeats its round finds a host that lies, late or in gradients alone."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace

import pytest
import torch

from atlas_flwr.budget import Repeated, client_memory
from atlas_flwr.errors import TrunkError
from atlas_flwr.lora import AdapterState
from atlas_flwr.split import SplitModel, SplitPlan, load_parts
from atlas_flwr.split.cut import skeleton
from atlas_flwr.train.outline import Outline
from atlas_flwr.trunk import EngineTrunk, SessionSpec, SkippingTrunk
from atlas_flwr.trunk.hosts.checking import CheckedTrunk
from atlas_flwr.trunk.hosts.own_trunk import OwnTrunk
from atlas_flwr.trunk.passing import PassingTrunk
from atlas_flwr.trunk.source import TrunkSource
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import FAMILIES, batch, build
from tests.trunk.engine.test_parity import adapters

PLAN, LAYERS, STEPS = SplitPlan(2, 1), 5, 3
ADAMW = OptimizerSpec(lr=0.01, weight_decay=0.1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny model on disk."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    build("llama").save_pretrained(path)
    return TrunkSource(str(path), PLAN)


@dataclass
class Liar(PassingTrunk):
    """A host that is sound but from a step on, in forward or in backward passes."""

    answers: int = STEPS
    gradients: int = STEPS

    def forward(self, call):
        answer = self.trunk.forward(call)
        lies = call.step is None or call.step >= self.answers
        return answer * 1.02 if lies else answer

    def backward(self, step, grad):
        back = self.trunk.backward(step, grad)
        return back * 1.02 if step >= self.gradients else back


def checked(source, optimizer=ADAMW, theirs=ADAMW, lie=lambda host: host, dtype=""):
    """Connect a guest to a host, which it checks."""
    torch.manual_seed(0)
    engine = replace(source, dtype=dtype or source.dtype).engine()
    state = adapters(build("llama"), PLAN.trunk_range(LAYERS))
    spec = SessionSpec(PLAN, state, optimizer)
    token = engine.open(replace(spec, optimizer=theirs))
    of_plan, info = lambda plan: replace(source, plan=plan), engine.base.info
    own = OwnTrunk(of_plan, spec, LAYERS, info.block_of)
    guest = CheckedTrunk(lie(EngineTrunk(engine, token)), own)
    return guest, engine.adapters, token


def model(source, trunk):
    parts = load_parts(source.path, PLAN, dtype=getattr(torch, source.dtype))
    return SplitModel(parts.head, parts.tail, trunk)


def trained(source, trunk, steps=STEPS):
    split = model(source, trunk)
    for pad in ("", "right", "left")[:steps]:
        split(**batch("llama", pad)).loss.backward()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_that_are_repeated_come_to_the_bits_of_a_sound_host(source, accumulate):
    optimizer = replace(ADAMW, accumulate=accumulate)
    guest, adapters_of, token = checked(source, optimizer=optimizer, theirs=optimizer)
    trained(source, guest)
    assert [found.off for found in guest.departures()] == [0.0] * 2 * STEPS
    assert guest.checked == STEPS
    theirs = adapters_of(token).factors
    mine = {
        k: f for own in guest.own._learners.values() for k, f in own.factors.items()
    }
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name].B, f.B) for name, f in theirs.items())


@pytest.mark.parametrize(
    ("found", "given"),
    [
        ("answer of step 2", {"lie": lambda host: Liar(host, answers=2)}),
        ("gradient of step 1", {"lie": lambda host: Liar(host, gradients=1)}),
        ("answer of step 1", {"theirs": replace(ADAMW, lr=0.0)}),
    ],
    ids=["late", "in-gradients", "learns-nothing"],
)
def test_a_host_that_lies_after_its_first_step_is_found(source, found, given):
    guest, *_ = checked(source, **given)
    trained(source, guest)
    with pytest.raises(TrunkError, match=f"found the trunk's {found} off by"):
        guest.settle()


def test_no_step_is_computed_before_the_round_ends_nor_kept_after_it(source):
    guest, *_ = checked(source)
    trained(source, guest)
    assert (guest._crossed.keys(), guest._open, guest.checked) == ({0, 1, 2}, {}, 0)
    assert not guest.own._learners
    guest.settle()
    assert (guest._crossed, guest.checked) == ({}, STEPS)


def test_a_block_that_is_not_in_use_holds_no_weights(source):
    guest, *_ = checked(source)
    trained(source, guest, steps=1)
    held = guest.own._held
    with held(2) as (base, _):
        weights = [weakref.ref(p) for p in base.trunk.parameters()]
        assert all(weight().device.type == "cpu" for weight in weights)
    assert not any(weight() is not None for weight in weights)
    assert all(p.is_meta for p in base.trunk.parameters())
    guest.settle()


@dataclass
class Rounding(PassingTrunk):
    """A host that answers in a guest's precision, whatever it computes in."""

    def forward(self, call):
        return self.trunk.forward(call).to(call.hidden.dtype)

    def backward(self, step, grad):
        return self.trunk.backward(step, grad).to(grad.dtype)


def begun_and_told(source, **given):
    """Check a round; return what it began with, and what is told and handed over."""
    guest, adapters_of, token = checked(source, **given)
    trained(source, guest)
    guest.settle()
    return guest.own.spec.state, guest.computed(), adapters_of(token)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rounds", ["alike", "otherwise"])
def test_what_a_sound_host_hands_over_is_never_found_off(source, dtype, rounds):
    given = {} if rounds == "alike" else {"lie": Rounding, "dtype": "float64"}
    begun, told, handed = begun_and_told(replace(source, dtype=dtype), **given)
    found = told.departure(begun, handed)
    found.check()
    assert (found.off == 0) == (rounds == "alike")


def changed(begun, handed, change):
    """Change what was learned, by layer."""
    return AdapterState(
        {
            name: replace(
                f,
                A=begun.factors[name].A + change(f.A - begun.factors[name].A),
                B=begun.factors[name].B + change(f.B - begun.factors[name].B),
            )
            for name, f in handed.factors.items()
        }
    )


@pytest.mark.parametrize(
    ("change", "off"),
    [
        (torch.zeros_like, 1.0),
        (torch.neg, 2.0),
        (lambda learned: learned * 1.2, 0.2),
        (lambda learned: learned * torch.nan, float("nan")),
    ],
    ids=["nothing-learned", "turned-round", "too-far", "no-numbers"],
)
def test_a_host_that_answers_rightly_and_hands_over_other_adapters_is_found(
    source, change, off
):
    begun, told, handed = begun_and_told(source)
    found = told.departure(begun, changed(begun, handed, change))
    assert found.off == pytest.approx(off, nan_ok=True)
    with pytest.raises(TrunkError, match="found the trunk's adapters off by"):
        found.check()


def test_a_change_of_one_layer_is_seen_at_its_share_of_what_all_have_learned(source):
    begun, told, handed = begun_and_told(source)
    name = next(iter(handed.factors))
    other = handed.factors[name].B.flip(0)
    spoilt = AdapterState(
        {**handed.factors, name: replace(handed.factors[name], B=other)}
    )
    moved = (other - handed.factors[name].B).norm()
    learned = torch.cat(
        [
            (getattr(f, side) - getattr(begun.factors[n], side)).flatten()
            for n, f in handed.factors.items()
            for side in "AB"
        ]
    ).norm()
    # 64 numbers tell a norm to a tenth or so, and this is of two.
    assert told.departure(begun, spoilt).off == pytest.approx(
        float(moved / learned), rel=0.5
    )


def test_one_text_of_an_evaluation_is_compared(source):
    with torch.no_grad():
        for lie, is_sound in ((lambda host: host, True), (Liar, False)):
            guest, *_ = checked(source, lie=lie)
            for pad in ("right", "left"):
                model(source, guest)(**batch("llama", pad))
            (found,) = guest.departures()
            assert (found.off <= found.allowed) == is_sound


def test_steps_whose_gradients_a_remedy_keeps_raise_no_false_alarm(source):
    guest, *_ = checked(source)
    skipping = SkippingTrunk(guest, threshold=1.0)
    trained(source, skipping)
    assert skipping.skipped
    guest.settle()
    assert guest.checked == STEPS - skipping.skipped


def test_what_is_kept_for_a_check_is_what_the_memory_model_says(source):
    outline = Outline(skeleton(*FAMILIES["llama"]))
    rows, length, count = 4, 40, 2
    sizes = {"head": 2, "tail": 1, "ranks": 3, "batch": rows, "length": length}
    architecture = outline.architecture(("all-linear",))
    guest, *_ = checked(source)
    shape = rows, length, architecture.hidden
    for step in range(count):
        guest.forward(TrunkCall(torch.randn(shape), step=step))
        guest.backward(step, torch.randn(shape))
    kept = [t for c in guest._crossed.values() for t in (c.answer, c.grad, c.back)]
    kept += [c.call.hidden for c in guest._crossed.values()]
    found = client_memory(architecture, **sizes, repeated=Repeated(count, 3))
    before = client_memory(architecture, **sizes)
    assert found.remembered - before.remembered == sum(t.nbytes for t in kept)
