# SPDX-License-Identifier: Apache-2.0
"""The codec that a link gets: measured where there is one, and raw where not."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.config import load_config
from atlas_flwr.errors import SessionError
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import SessionSpec, TrunkEngine, connect, serve_local
from atlas_flwr.trunk.hosts.chain import ChainTrunk, codecs_of
from atlas_flwr.trunk.passing import PassingTrunk
from atlas_flwr.trunk.transports import link
from atlas_flwr.trunk.transports.grpc_channel import GrpcChannel, GrpcTrunk
from atlas_flwr.trunk.transports.link import (
    CodecCost,
    chosen_codec,
    codec_for,
    link_speed,
)
from atlas_flwr.trunk.transports.local import LoopbackTrunk
from atlas_flwr.wire import codec_named
from tests.families import build

PLAN = SplitPlan(1, 1)
COSTS = {
    "raw": CodecCost(4.0, 0.3e-9),
    "int8": CodecCost(1.0, 1e-9),
    "int4": CodecCost(0.56, 3e-9),
}
MB = 1e6


times = st.floats(1e-11, 1e-5)


@dataclass(kw_only=True)
class Wire(LoopbackTrunk):
    """A link that takes time on a clock of its own."""

    speed: float
    latency: float
    now: float = 0.0
    hiccups: list[float] = field(default_factory=list)

    @property
    def has_wire(self):
        return True

    def exchange(self, request):
        answer = super().exchange(request)
        both = len(request.frame) + len(answer)
        self.now += 2 * self.latency + both / self.speed
        self.now += self.hiccups.pop() if self.hiccups else 0.0
        return answer

    def clock(self):
        return self.now


@pytest.fixture(scope="module")
def engine():
    return TrunkEngine(partition(build("llama"), PLAN).trunk)


@pytest.fixture
def near(engine):
    with serve_local("link", engine) as address:
        yield connect(address, engine.open(SessionSpec(PLAN)), codec="auto")


def wire(near, speed, latency, **rest):
    made = {"token": near.token, "service": near.service, "codec": codec_named("raw")}
    return Wire(**made, speed=speed, latency=latency, **rest)


def test_within_a_process_auto_is_raw_and_sends_nothing_to_find_out(near):
    assert near.codec.name == "raw"
    assert near.meter.total_up == near.meter.total_down == 0


@pytest.mark.parametrize("latency", [0.0, 0.002, 0.3])
@pytest.mark.parametrize("speed", [0.1 * MB, 3 * MB, 50 * MB, 900 * MB])
def test_a_links_speed_is_found_whatever_its_latency(near, speed, latency):
    slow = wire(near, speed, latency)
    assert link_speed(slow, slow.clock) == pytest.approx(speed, rel=0.02)


def test_a_hiccup_of_a_busy_machine_is_not_taken_for_a_slow_link(near):
    slow = wire(near, 50 * MB, 0.01, hiccups=[0, 2.0, 0, 0, 1.0, 0, 3.0, 0, 2.0])
    assert link_speed(slow, slow.clock) == pytest.approx(50 * MB, rel=0.02)


def test_what_measuring_sends_is_counted_and_is_little(near):
    slow = wire(near, 1 * MB, 0.05)
    link_speed(slow, slow.clock)
    assert 0 < slow.meter.total_up < 200_000


@pytest.mark.parametrize(
    ("speed", "name"), [(1 * MB, "int4"), (100 * MB, "int8"), (2000 * MB, "raw")]
)
def test_the_slower_a_link_the_fewer_bytes_cross_it(near, monkeypatch, speed, name):
    monkeypatch.setattr(link, "codec_costs", lambda: COSTS)
    slow = wire(near, speed, 0.01)
    assert codec_for(slow, slow.clock).name == name


def test_the_codecs_on_this_machine_are_measured_as_they_are():
    costs = link.codec_costs()
    assert [*costs] == ["raw", "int8", "int4"]
    sizes = [cost.size for cost in costs.values()]
    assert sizes == pytest.approx([4, 1, 0.5625], rel=0.02)
    assert all(cost.seconds > 0 for cost in costs.values())


@given(st.floats(1e3, 1e12), st.tuples(times, times, times))
def test_what_is_chosen_is_never_predicted_to_be_slower_than_raw(speed, seconds):
    sizes = {"raw": 4.0, "int8": 1.0, "int4": 0.56}
    costs = {
        name: CodecCost(size, took)
        for (name, size), took in zip(sizes.items(), seconds, strict=True)
    }
    took = {name: cost.size / speed + cost.seconds for name, cost in costs.items()}
    name = chosen_codec(speed, costs)
    assert took[name] <= took["raw"]
    assert name == "raw" or took["raw"] > 2e-8


def test_only_a_session_that_is_open_is_answered(engine, near):
    engine.close(near.token)
    with pytest.raises(SessionError, match="not open"):
        near.echo(10)


@pytest.mark.parametrize(("scheme", "far"), [("grpc", False), ("grpcs", True)])
def test_a_link_with_tls_is_measured_and_one_without_stays_on_its_machine(scheme, far):
    channel = GrpcChannel(f"{scheme}://127.0.0.1:1", None, "")
    trunk = GrpcTrunk(token="t", codec=codec_named("raw"), channel=channel)
    assert trunk.has_wire is far


def test_the_codec_is_told_through_what_stands_before_the_trunk(near):
    other = wire(near, 1.0, 0.0)
    other.codec = codec_named("int4")
    assert codecs_of(PassingTrunk(near)) == "raw"
    assert codecs_of(PassingTrunk(ChainTrunk([near, other, near]))) == "raw+int4"


def test_what_is_compared_or_written_down_crosses_as_it_is():
    assert load_config({}).link_codec == "auto"
    assert load_config({"record-wire": True}).link_codec == "raw"
    assert load_config({"record-wire": True, "codec": "int8"}).link_codec == "int8"
    peers = {"trunk": "peers", "peer-memory": "1GiB", "peer-checks": 0.1}
    assert load_config(peers).link_codec == "raw"
