"""The memory model against the tensors that are really alive, over families."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch

from atlas_flwr.budget import TrunkSession, client_memory, trunk_memory
from atlas_flwr.data import Batch
from atlas_flwr.lora import (
    Scaling,
    attach,
    attach_ia3,
    ia3_shapes,
    linear_names,
)
from atlas_flwr.split import SplitModel, SplitPlan, part_info, partition
from atlas_flwr.split.cut import skeleton
from atlas_flwr.split.passes import run_blocks, takes_positions
from atlas_flwr.train.alignment import StartingPoint
from atlas_flwr.train.allocation_meter import LiveBytes
from atlas_flwr.train.footprint import trace_footprint
from atlas_flwr.train.initial import initial_state, initial_vectors
from atlas_flwr.train.outline import Outline
from atlas_flwr.train.step import Step, batch_loss, task_loss
from atlas_flwr.trunk import SessionSpec, TrunkEngine
from atlas_flwr.types import TrunkCall, TrunkClient
from tests.families import FAMILIES, UNKNOWN_TO_PEFT, build
from tests.train.batches import ragged_chats

ALL = ("all-linear",)
KEPT = 8
slow, param = pytest.mark.slow, pytest.param
few = pytest.mark.parametrize("family", ["llama-tied", "gpt2", "bert", "qwen2"])
every = pytest.mark.parametrize("family", FAMILIES)
two = pytest.mark.parametrize(
    "family", ["llama-tied", "bert", *(param(f, marks=slow) for f in ("gpt2", "qwen2"))]
)


class Echo(TrunkClient):
    def forward(self, call):
        return call.hidden.clone()

    def backward(self, step, grad):
        return grad.clone()

    def loss(self, call, labels, logits_to_keep=0):
        raise NotImplementedError


@cache
def outline_of(family):
    made, config = FAMILIES[family]
    return Outline(skeleton(made, config))


@cache
def architecture_of(family):
    return outline_of(family).architecture(ALL)


def adapted(part, rank=1):
    part.requires_grad_(False)
    attach(part, dict.fromkeys(linear_names(part), rank), Scaling(1.0))
    return part


def padded_batch(rows, length, causal):
    ids = torch.randint(3, 61, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    labels = ids if causal else ids[:, 0] % 5
    positions = (mask.cumsum(1) - 1).clamp(min=0) if causal else None
    kept = KEPT if causal else 0
    return Batch(ids, mask, labels, labels, positions, logits_to_keep=kept)


def client(family, head, tail, dtype=torch.float32):
    parts = partition(build(family).to(dtype), SplitPlan(head, tail))
    return SplitModel(adapted(parts.head), adapted(parts.tail), Echo())


def peak_of(model, run):
    """The most bytes that are alive while it runs, beside the model's own."""
    with LiveBytes() as live:
        live.ignore([*model.parameters(), *model.buffers()])
        run()
    return live.peak


def unique(*parts):
    found = {p.data_ptr(): p for part in parts for p in part.parameters()}
    return list(found.values())


@every
@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(2, 1), SplitPlan(1, None)])
def test_weights_and_adapters_are_those_of_the_real_parts(family, plan):
    architecture = architecture_of(family)
    parts = partition(build(family), plan)
    sides = [part for part in (parts.head, parts.tail) if part is not None]
    own = unique(*sides)
    found = client_memory(
        architecture, head=plan.head, tail=plan.tail, ranks=3, batch=2, length=8
    )
    assert found.weights == sum(p.nbytes for p in own)
    for side in sides:
        adapted(side, rank=3)
    trained = sum(p.nbytes for p in unique(*sides) if p.requires_grad)
    dense = 0
    if plan.tail is not None and not architecture.vocabulary:
        base = parts.tail.base_model_prefix
        named = parts.tail.named_parameters()
        dense = sum(p.nbytes for name, p in named if not name.startswith(base))
    assert found.adapters == 4 * trained + 3 * dense


@every
def test_a_trunks_weights_are_those_of_the_real_part(family):
    architecture = architecture_of(family)
    for plan in (SplitPlan(1, 1), SplitPlan(2, None)):
        trunk = partition(build(family), plan).trunk
        found = trunk_memory(
            architecture,
            sessions=[],
            batch=2,
            length=8,
            covers=(plan.head, plan.tail),
        )
        assert found.weights == sum(p.nbytes for p in unique(trunk))


@every
def test_a_clients_step_keeps_alive_what_was_predicted(family):
    architecture = architecture_of(family)
    causal = architecture.vocabulary > 0
    for (head, tail), (rows, length) in (
        ((1, 1), (3, 24)),
        ((2, 1), (6, 40)),
        ((1, 2), (2, 33)),
    ):
        model, batch = client(family, head, tail), padded_batch(rows, length, causal)
        seen = peak_of(model, lambda m=model, b=batch: batch_loss(m, b).backward())
        found = client_memory(
            architecture,
            head=head,
            tail=tail,
            ranks=1,
            batch=rows,
            length=length,
            logits_to_keep=KEPT,
        )
        # The prediction counts A x of rank 1 twice: a few numbers a token.
        assert found.activations + found.logits == pytest.approx(seen, rel=0.04)


@pytest.mark.parametrize(
    "family",
    [
        param(
            family, marks=() if family in ("gemma3", "opt", "bert", "qwen2") else slow
        )
        for family in sorted(set(FAMILIES) - UNKNOWN_TO_PEFT)
    ],
)
def test_an_ia3_clients_step_keeps_alive_what_was_predicted(family):
    architecture = outline_of(family).architecture(ALL, adapter="ia3")
    causal = architecture.vocabulary > 0
    for (head, tail), (rows, length) in (((1, 1), (3, 24)), ((2, 1), (6, 40))):
        parts = partition(build(family), SplitPlan(head, tail))
        trained = 0
        for part in (parts.head, parts.tail):
            part.requires_grad_(False)
            ones = {n: np.ones(s, np.float32) for n, s in ia3_shapes(part).items()}
            trained += sum(p.nbytes for p in attach_ia3(part, ones).values())
        model = SplitModel(parts.head, parts.tail, Echo())
        batch = padded_batch(rows, length, causal)
        seen = peak_of(model, lambda m=model, b=batch: batch_loss(m, b).backward())
        found = client_memory(
            architecture,
            head=head,
            tail=tail,
            rank=0,
            batch=rows,
            length=length,
            logits_to_keep=KEPT,
        )
        assert found.activations + found.logits == pytest.approx(seen, rel=0.04)
        assert found.adapters == 4 * trained + 12 * architecture.dense_params


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "qwen2"])
def test_a_ragged_chat_keeps_alive_what_the_memory_model_says_of_its_labels(family):
    rows, length = 4, 40
    batch = ragged_chats(rows, length)
    model = client(family, 1, 1)
    seen = peak_of(model, lambda: batch_loss(model, batch).backward())
    assert batch.label_count % rows == 0
    found = client_memory(
        architecture_of(family),
        head=1,
        tail=1,
        ranks=1,
        batch=rows,
        length=length,
        logits_to_keep=batch.label_count // rows + 1,
    )
    assert found.activations + found.logits == pytest.approx(seen, rel=0.1)


@every
def test_a_block_keeps_the_inputs_of_adapted_layers_only(family):
    architecture = architecture_of(family)
    names, rows, length = [*architecture.adapted], 4, 32

    def alive(chosen):
        trunk = partition(build(family), SplitPlan(1, 1)).trunk
        trunk.requires_grad_(False)
        ends = re.compile(rf"\.\d+\.({'|'.join(map(re.escape, chosen))})$")
        local = [n for n in linear_names(trunk) if ends.search(n)]
        attach(trunk, dict.fromkeys(local, 1), Scaling(1.0))
        batch = padded_batch(rows, length, architecture.vocabulary > 0)
        hidden = torch.randn(rows, length, architecture.hidden, requires_grad=True)
        with LiveBytes() as live:
            live.ignore([*trunk.parameters(), *trunk.buffers(), hidden])
            kept = run_blocks(
                trunk,
                inputs_embeds=hidden,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids if takes_positions(trunk) else None,
            )
            assert kept.requires_grad
            return live.live

    def predicted(chosen):
        session = TrunkSession(1, 1, dict.fromkeys(chosen, 1))
        sizes = {"batch": rows, "length": length}
        return trunk_memory(architecture, sessions=[session], **sizes).activations

    all_alive, all_predicted = alive(names), predicted(names)
    for chosen in ([names[0]], names[1:3], [names[-1]]):
        less = all_predicted - predicted(chosen)
        # A x of rank 1 is counted twice in the whole: one number a token and layer.
        # The first block's input was there before.
        low = 4 * rows * length * 3 * (len(names) - len(chosen))
        low += 4 * rows * length * architecture.hidden
        assert 0 <= less - (all_alive - alive(chosen)) <= low


@few
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("adapter", ["lora", "ia3"])
def test_a_trunks_steps_keep_alive_what_was_predicted(family, recompute, adapter):
    outline = outline_of(family)
    architecture = outline.architecture(ALL, adapter=adapter)
    plan, rows, length, count = SplitPlan(1, 1), 4, 32, 3
    trunk = partition(build(family), plan).trunk
    info = part_info(trunk)
    blocks = range(info.start, info.stop)
    if adapter == "ia3":
        shapes = ia3_shapes(outline.model)
        mine = {n: s for n, s in shapes.items() if info.block_of(n) in blocks}
        state = initial_vectors(mine)
    else:
        shapes = outline.shapes(ALL)
        mine = {n: s for n, s in shapes.items() if info.block_of(n) in blocks}
        state = initial_state(mine, rank=1, scaling=Scaling(1.0), seed=0)
    width = architecture.hidden
    batch = padded_batch(rows, length, architecture.vocabulary > 0)
    engine = TrunkEngine(trunk, recompute=recompute)
    tokens = [engine.open(SessionSpec(plan, state)) for _ in "abc"]
    with LiveBytes() as live:
        live.ignore([*trunk.parameters(), *trunk.buffers()])
        for step in range(3):
            for token in tokens:
                hidden = torch.randn(rows, length, width)
                call = TrunkCall(hidden, batch.attention_mask, batch.position_ids, step)
                engine.forward(token, call)
                del hidden, call
            for token in tokens:
                engine.backward(token, step, torch.randn(rows, length, width))
    found = trunk_memory(
        architecture,
        sessions=[TrunkSession(1, 1, int(adapter == "lora"))] * count,
        batch=rows,
        length=length,
        in_flight=count,
        recompute=recompute,
    )
    # What sessions train was there before, but for the moments: 8 of 16 bytes.
    alive = found.activations + found.remembered + found.adapters // 2
    assert alive == pytest.approx(live.peak, rel=0.06)


def test_bfloat16_halves_hidden_states_but_not_what_adapters_keep():
    model = outline_of("bert").model
    full = trace_footprint(model, ALL)
    half = trace_footprint(model, ALL, torch.bfloat16)
    assert full is not None
    assert half is not None
    assert half.hidden.token == full.hidden.token / 2
    assert 0.5 < half.block.token / full.block.token < 1.5


@two
def test_a_clients_aligned_steps_keep_alive_what_was_predicted(family):
    architecture = outline_of(family).architecture(ALL, aligned=True)
    causal, steps = architecture.vocabulary > 0, 3
    for (head, tail), (rows, length) in (((1, 1), (3, 24)), ((2, 1), (6, 40))):
        model, kept = client(family, head, tail), []
        given = [padded_batch(rows, length, causal) for _ in range(steps)]

        def round_(model=model, given=given, kept=kept):
            start = StartingPoint.of(model, given)
            kept += start.answers
            for index, batch in enumerate(given):
                step = Step(model, batch, index)
                task_loss(step).plus(0.5 * start.divergence(step)).total().backward()
                model.zero_grad()

        seen = peak_of(model, round_)
        sizes = {"batch": rows, "length": length, "logits_to_keep": KEPT}
        found = client_memory(
            architecture, head=head, tail=tail, ranks=1, aligned_steps=steps, **sizes
        )
        assert found.remembered == sum(start.nbytes for start in kept)
        alive = found.activations + found.logits + found.remembered
        assert alive == pytest.approx(seen, rel=0.04)


@two
def test_a_clients_step_in_bfloat16_keeps_alive_what_was_predicted(family):
    architecture = outline_of(family).architecture(ALL, dtype=torch.bfloat16)
    for (head, tail), (rows, length) in (((1, 1), (3, 24)), ((2, 1), (6, 40))):
        model = client(family, head, tail, torch.bfloat16)
        own = unique(model.head, model.tail)
        trained = sum(p.nbytes for p in own if p.requires_grad)
        batch = padded_batch(rows, length, architecture.vocabulary > 0)
        seen = peak_of(model, lambda m=model, b=batch: batch_loss(m, b).backward())
        found = client_memory(
            architecture,
            head=head,
            tail=tail,
            ranks=1,
            batch=rows,
            length=length,
            logits_to_keep=KEPT,
            dtype_bytes=2,
        )
        assert found.weights == sum(p.nbytes for p in own if not p.requires_grad)
        assert found.adapters == 4 * trained + 14 * architecture.dense_params
        assert found.activations + found.logits == pytest.approx(seen, rel=0.04)


def test_only_the_adapted_layers_inputs_are_kept():
    outline = outline_of("llama")
    few = outline.architecture(("q_proj", "v_proj")).footprint
    most = outline.architecture(ALL).footprint
    assert few is not None
    assert most is not None
    # The MLP's product (48 wide) is kept only for the adapter of down_proj.
    assert most.block.token - few.block.token >= 4 * 48


def test_a_model_too_small_to_cut_in_three_has_no_footprint():
    made, config = FAMILIES["llama"]
    short = type(config)(**{**config.to_dict(), "num_hidden_layers": 2})
    outline = Outline(skeleton(made, short))
    assert trace_footprint(outline.model, ALL) is None
    architecture = outline.architecture(ALL)
    found = client_memory(architecture, head=1, tail=None, ranks=1, batch=2, length=8)
    assert found.activations > 0
