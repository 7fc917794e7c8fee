# SPDX-License-Identifier: Apache-2.0
"""A trunk in several places is one trunk, to the bit."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise

import pytest
import torch

from atlas_flwr.budget.chains import Link
from atlas_flwr.errors import TrunkError
from atlas_flwr.lora import AdapterState
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import Limits, SessionSpec, TrunkEngine, serve_local
from atlas_flwr.trunk.host import Door
from atlas_flwr.trunk.hosts.chain import ChainTrunk, connect_all
from atlas_flwr.trunk.hosts.peer_model import PeerModel, part_of
from atlas_flwr.types import OptimizerSpec
from tests.families import batch, build
from tests.trunk.engine.test_parity import adapters

LAYERS = 5
ALONE = Limits(sessions_per_pass=1)


def served(stack, model, spec, *cuts):
    """Serve the blocks of a session between cuts, each by an engine of its own."""
    ends = [spec.plan.head, *cuts, LAYERS - (spec.plan.tail or 0)]
    doors, states = [], []
    for first, stop in pairwise(ends):
        parts = partition(model, SplitPlan(first, LAYERS - stop or None))
        engine = TrunkEngine(parts.trunk, limits=ALONE)
        info = engine.base.info
        place = PeerModel(range(1, LAYERS), LAYERS, info.block_of, lambda k, n: 0)
        token = engine.open(place.part(spec, Link("", first, stop)))
        name = f"chain-{len(cuts)}-{first}"
        doors.append(Door(stack.enter_context(serve_local(name, engine)), token))
        states.append((engine, token))
    return connect_all(doors, timeout=5.0), states


def trained(family, plan, *cuts):
    torch.manual_seed(0)
    model = build(family)
    blocks = plan.trunk_range(LAYERS)
    spec = SessionSpec(plan, adapters(model, blocks), OptimizerSpec(lr=0.02))
    with ExitStack() as stack:
        trunk, states = served(stack, model, spec, *cuts)
        parts = partition(model, plan)
        split = SplitModel(parts.head, parts.tail, trunk)
        losses = []
        for pad in ("", "right", "left"):
            given = batch(family, pad)
            loss = split(**given).loss
            if plan.tail is not None:
                loss.backward()
            losses.append(loss.detach())
        found = AdapterState()
        for engine, token in states:
            found = found.merged(engine.adapters(token))
    return losses, found.factors


@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(1, None)], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_chain_trains_to_the_bits_of_one_trunk(family, plan):
    losses, expected = trained(family, plan)
    got, found = trained(family, plan, 2, 3)
    assert got == losses
    assert found.keys() == expected.keys()
    for name, factors in expected.items():
        assert torch.equal(found[name].A, factors.A)
        assert torch.equal(found[name].B, factors.B)


@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(1, None)], ids=str)
def test_a_chain_writes_the_text_of_one_trunk_from_caches_in_each_link(plan):
    model, written = build("llama"), []
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    for cuts in ((), (2, 3)):
        with ExitStack() as stack:
            trunk, _ = served(stack, model, SessionSpec(plan), *cuts)
            parts = partition(model, plan)
            split = SplitModel(parts.head, parts.tail, trunk)
            written.append(split.generate(ids, max_new_tokens=6, do_sample=False))
    assert torch.equal(*written)


def test_a_chain_counts_the_bytes_of_all_its_links_and_has_one_at_least():
    plan, model = SplitPlan(1, 1), build("llama")
    with ExitStack() as stack:
        trunk, _ = served(stack, model, SessionSpec(plan), 2)
        parts = partition(model, plan)
        SplitModel(parts.head, parts.tail, trunk)(**batch("llama"))
        first, second = trunk.links
        assert trunk.meter.total_up == first.meter.total_up + second.meter.total_up
        assert min(first.meter.total_up, second.meter.total_down) > 0
    with pytest.raises(TrunkError, match="a chain of no trunks"):
        ChainTrunk([])


def test_a_link_is_not_told_whose_a_session_is():
    spec = SessionSpec(SplitPlan(1, 1), client="3", holder="CN=north")
    part = part_of(spec, Link("north", 1, 3), LAYERS, lambda name: None)
    assert part == SessionSpec(SplitPlan(1, 2))
