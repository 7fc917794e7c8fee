from __future__ import annotations

import time
from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch

from atlas_flwr.errors import (
    AdapterError,
    PlanError,
    SessionError,
    TrunkBusy,
    TrunkError,
    TrunkLost,
)
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import (
    SessionSpec,
    TrunkEngine,
    TrunkHost,
    TrunkSource,
    connect,
    serve_local,
)
from atlas_flwr.types import TrunkCall
from atlas_flwr.wire.codecs import CODECS
from tests.families import build

PLAN = SplitPlan(1, 1)


@pytest.mark.parametrize(
    ("address", "token", "message"),
    [
        ("tcp://x", "t", "ray://"),
        ("nothing", "t", "schemes"),
        ("ray://x", None, "token"),
    ],
)
def test_addresses_that_cannot_work_are_refused(address, token, message):
    with pytest.raises(TrunkError, match=message):
        connect(address, token=token)


def test_a_local_address_reaches_the_engine_only_while_it_is_served():
    engine = TrunkEngine(partition(build("llama"), PLAN).trunk)
    with serve_local("here", engine) as address:
        trunk = connect(address, token=engine.open(SessionSpec(PLAN)))
        assert trunk.forward(TrunkCall(torch.zeros(1, 3, 32))).shape == (1, 3, 32)
    with pytest.raises(TrunkLost, match="ray://"):
        connect(address, token="x")


@pytest.fixture(scope="module")
def cluster():
    """A Ray of our own, where `ray start` was said to have begun another."""
    from atlas_flwr.trunk.transports.ray_cluster import own_ray

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_ADDRESS", "127.0.0.1:9")
        with own_ray():
            yield


@pytest.mark.parametrize("slow_starts", [2, 3])
def test_a_ray_that_starts_slowly_is_asked_three_times(slow_starts, monkeypatch):
    import ray

    from atlas_flwr.trunk.transports.ray_cluster import own_ray

    asked = []

    def init(**keys):
        asked.append(keys)
        if len(asked) <= slow_starts:
            raise Exception("The current node timed out during startup. This could ...")

    monkeypatch.setattr(ray, "init", init)
    told = nullcontext() if slow_starts < 3 else pytest.raises(TrunkError, match="did")
    with told, own_ray():
        pass
    assert len(asked) == 3


def test_a_ray_that_cannot_start_is_not_asked_again(monkeypatch):
    import ray

    from atlas_flwr.trunk.transports.ray_cluster import own_ray

    def init(**keys):
        raise ValueError("no such key")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ValueError, match="no such key"), own_ray():
        pass


def test_without_ray_its_trunk_is_told_apart_from_a_lost_one():
    from atlas_flwr.trunk.transports.ray import start_ray_trunk

    with pytest.raises(TrunkLost, match="same Ray cluster"):
        connect("ray://anywhere", token="t")
    with pytest.raises(TrunkError, match="did not start"):
        start_ray_trunk("t", TrunkSource("nowhere", PLAN), timeout=0.1)


def test_a_ray_trunk_that_cannot_load_says_why_and_leaves_its_name(cluster, tmp_path):
    from atlas_flwr.trunk.transports.ray import start_ray_trunk

    build("llama").save_pretrained(tmp_path)
    impossible = TrunkSource(str(tmp_path), SplitPlan(4, 1))
    with pytest.raises(PlanError, match="leaves none to the trunk"):
        start_ray_trunk("t", impossible)  # and the next test takes the name


def test_a_gpu_that_no_machine_has_is_not_waited_for(cluster, tmp_path):
    from atlas_flwr.trunk.transports.ray import start_ray_trunk

    source = TrunkSource(str(tmp_path), PLAN)
    with pytest.raises(TrunkError, match=r"wants 1 of a GPU.*none of the 1 machines"):
        start_ray_trunk("g", source, num_gpus=1.0)


def test_a_machine_out_of_reach_is_lost_to_the_owner_and_asked_again_by_clients(
    monkeypatch,
):
    import ray
    from ray.exceptions import ActorUnavailableError

    from atlas_flwr.trunk.transports.ray import RayTrunk, RayTrunkHost
    from atlas_flwr.trunk.transports.requests import Request, Verb

    def get(reference, timeout):
        raise ActorUnavailableError("its machine does not answer\nfor long", None)

    monkeypatch.setattr(ray, "get", get)
    host = RayTrunkHost(MagicMock(), "t")
    for ask in (host.ping, host.stats, lambda: host.close("token")):
        with pytest.raises(TrunkLost, match=r"does not answer.*resume"):
            ask()
    client = RayTrunk(token="t", codec=CODECS["raw"], actor=MagicMock())
    with pytest.raises(TrunkBusy, match="right now"):
        client.exchange(Request(Verb.FORWARD, "t", "raw", b""))


def until_it_fails(ask):
    """Ask until Ray knows of a death, which takes a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        ask()


# It failed once in a whole run of the tests, and never by itself; not understood yet.
@pytest.mark.slow
def test_text_goes_on_over_ray_where_its_cache_was_lost(cluster, tmp_path):
    from atlas_flwr.trunk.transports.ray import start_ray_trunk

    model = build("llama")
    model.save_pretrained(tmp_path)
    host = start_ray_trunk("texts", TrunkSource(str(tmp_path), PLAN), threads=2)
    far = connect(host.address, token=host.open(SessionSpec(PLAN)))
    parts = partition(model, PLAN)
    split = SplitModel(parts.head, parts.tail, far).eval()
    ids, settings = torch.tensor([[4, 5, 6]]), {"max_new_tokens": 3, "pad_token_id": 0}
    cache = split.new_cache()
    got = split.generate(ids, past_key_values=cache, **settings)
    assert host.stats().caches == 1
    far.forget(cache.texts)
    got = split.generate(got, past_key_values=cache, **settings)
    assert cache.rebuilt == 1
    assert torch.equal(got, model.generate(ids, **{**settings, "max_new_tokens": 6}))
    host.stop()


def test_a_ray_trunk_answers_as_an_engine_here_and_its_death_is_told(cluster, tmp_path):
    import ray

    from atlas_flwr.trunk.transports.ray import start_ray_trunk

    model = build("llama")
    model.save_pretrained(tmp_path)
    host = start_ray_trunk("t", TrunkSource(str(tmp_path), PLAN), threads=2)
    engine = TrunkEngine(partition(model, PLAN).trunk)
    far = connect(host.address, token=host.open(SessionSpec(PLAN)))
    near_token = engine.open(SessionSpec(PLAN))
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    call = TrunkCall(torch.randn(2, 4, 32), mask, step=0)
    grad = torch.randn(2, 4, 32)
    expected = engine.forward(near_token, call)
    assert torch.equal(far.forward(call), expected)
    assert torch.equal(far.backward(0, grad), engine.backward(near_token, 0, grad))
    sent = far.meter.total_up
    assert 2 * 2 * 4 * 32 * 4 < sent < 2 * 2 * 4 * 32 * 4 + 1024
    stats = host.stats()
    assert (stats.steps, stats.bytes_in) == (1, sent)
    assert isinstance(host, TrunkHost)
    with pytest.raises(TrunkError, match="'t'"):
        start_ray_trunk("t", TrunkSource(str(tmp_path), PLAN))

    with pytest.raises(SessionError, match="not open"):
        connect(host.address, token="guess").forward(call)
    stranger = AdapterState({"x": LoraFactors(torch.zeros(1, 2), torch.zeros(2, 1))})
    with pytest.raises(AdapterError, match="'x'"):
        host.open(SessionSpec(PLAN, stranger))

    ray.kill(host.actor)
    for ask in (
        lambda: far.forward(call),
        host.ping,
        lambda: connect(host.address, token="x"),
    ):
        with pytest.raises(TrunkLost, match="resume"):
            until_it_fails(ask)
