"""Remedies on one client's round: each does its part, in their order."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from atlas_flwr.config import RunConfig
from atlas_flwr.errors import DataError
from atlas_flwr.lora import AdapterState, Scaling
from atlas_flwr.remedies import REMEDIES, ClientHooks, RoundContext, ServerHooks
from atlas_flwr.remedies.auxiliary_tail import AuxiliarySteps
from atlas_flwr.remedies.chain import ClientChain, ServerChain
from atlas_flwr.remedies.moving_average import KeptShare
from atlas_flwr.remedies.personal_layers import PersonalLayers
from atlas_flwr.remedies.proximal import ProximalTerm
from atlas_flwr.train.loop import train
from atlas_flwr.train.step import StepLoss, task_loss
from atlas_flwr.types import OptimizerSpec
from tests.train.splits import KINDS, batches, split_model


def now(**keys):
    return RoundContext(
        RunConfig(**keys),
        entries={},
        round=1,
        client=0,
        plan=None,
        before=1,
        scaling=Scaling(16.0),
        store=lambda: pytest.fail("nothing is to be remembered"),
        start=lambda ranks, dense: AdapterState(),
    )


class Named(ClientHooks):
    """Writes its name down wherever it is asked."""

    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    def incoming(self, state):
        self.seen.append(("in", self.name))
        return state

    def trained(self, state):
        self.seen.append(("out", self.name))
        return state

    def step(self, step, proceed):
        found = proceed(step)
        self.seen.append(("step", self.name))
        return found

    def metrics(self):
        return {self.name: 1}


def test_what_goes_to_the_server_leaves_in_the_reverse_of_how_it_came():
    seen = []
    chain = ClientChain([Named("a", seen), Named("b", seen)])
    chain.trained(chain.incoming(AdapterState()))
    assert seen == [("in", "a"), ("in", "b"), ("out", "b"), ("out", "a")]


def test_the_first_is_the_outermost_of_a_step():
    seen = []
    chain = ClientChain([Named("a", seen), Named("b", seen)])
    inner = StepLoss(torch.ones(()))
    assert chain.step(None, lambda step: inner) is inner
    assert seen == [("step", "b"), ("step", "a")]


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two remedies report a metric 'a'"):
        ClientChain([Named("a", []), Named("a", [])]).metrics()


def test_layers_are_kept_whoever_names_them():
    class Keeps(ServerHooks):
        def personal(self, plan, state):
            return PersonalLayers({"q": 2})

    class KeepsToo(ServerHooks):
        def personal(self, plan, state):
            return PersonalLayers({"v": 1}, ("bias",))

    chain = ServerChain([ServerHooks(), Keeps(), ServerHooks(), KeepsToo()])
    assert chain.personal(None, None) == PersonalLayers({"q": 2, "v": 1}, ("bias",))
    assert ServerChain([ServerHooks()]).personal(None, None) is None


def test_without_a_key_no_remedy_changes_anything():
    links = [remedy.client(now()) for remedy in REMEDIES]
    servers = [remedy.server(RunConfig(), None) for remedy in REMEDIES]
    assert all(type(link) is ClientHooks for link in links)
    assert all(type(server) is ServerHooks for server in servers)


def test_penalties_are_beside_the_tasks_loss_and_in_the_gradient():
    model = torch.nn.Linear(2, 1, bias=False)
    term = ProximalTerm(0.5)
    term.begin(SimpleNamespace(model=model), [])
    with torch.no_grad():
        model.weight += 3.0
    loss = term.step(None, lambda step: StepLoss(model.weight.sum()))
    assert loss.task.item() == model.weight.sum().item()
    assert loss.penalty.item() == pytest.approx(0.5 / 2 * 2 * 9.0)
    loss.total().backward()
    torch.testing.assert_close(model.weight.grad, torch.full((1, 2), 1 + 0.5 * 3.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("local_steps", [1, 3])
def test_an_auxiliary_tail_crosses_in_one_step_of_k_plus_one(kind, local_steps):
    torch.manual_seed(0)
    model, given = split_model(kind), batches(kind, 8)
    trunk = model.trunk
    hooks = AuxiliarySteps().client(now(auxiliary_steps=local_steps))
    hooks.begin(SimpleNamespace(model=model), given)
    objective = partial(hooks.step, proceed=task_loss)
    done = train(model, given, OptimizerSpec(1e-3), objective=objective)
    assert done.steps == 8
    assert trunk.calls == 2 * 8 // (local_steps + 1)


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_a_moving_average_cannot_keep_everything(share):
    with pytest.raises(DataError, match="from 0 to below 1"):
        KeptShare(share)
