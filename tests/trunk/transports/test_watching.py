# SPDX-License-Identifier: Apache-2.0
"""What is seen of a trunk: true numbers, everybody by name, no token and no tensor."""

from __future__ import annotations

import io
import json
import socket
import urllib.error
import urllib.request

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from atlas_flwr.cli import main
from atlas_flwr.errors import SessionError, TrunkError, TrunkLost
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import (
    ServeOptions,
    SessionSpec,
    TrunkEngine,
    connect,
    serve_grpc,
)
from atlas_flwr.trunk.transports.grpc_channel import own_grpc
from atlas_flwr.trunk.transports.metrics import TrunkMetrics, serve_metrics
from atlas_flwr.trunk.transports.owner_requests import Served
from atlas_flwr.trunk.transports.ownership import OwnerService
from atlas_flwr.trunk.transports.service import FrameService
from atlas_flwr.trunk.transports.watching import (
    TOLD,
    Call,
    Calls,
    Journal,
    Watch,
    session_name,
)
from atlas_flwr.types import TrunkCall
from tests.families import build
from tests.trunk.engine.test_parity import adapters

PLAN = SplitPlan(1, 1)
SECRET = "s" * 32
VERBS = ("forward", "backward")
SERVED = Served("first", "llama", "1/1", 4, 32, 0, "float32", "abc")


@pytest.fixture
def seen():
    """Train two steps over gRPC, guess a token and a secret; return what was seen."""
    model = build("llama")
    state = adapters(model, range(1, 4))
    engine = TrunkEngine(partition(model, PLAN).trunk)
    written = io.StringIO()
    journal, metrics = Journal([written]), TrunkMetrics(engine.stats)
    owner = OwnerService(engine, SECRET, SERVED, journal=journal)
    watch = Watch(journal, metrics.heard)
    with serve_grpc(engine, ServeOptions(), owner, watch) as address:
        with own_grpc(address, SECRET, None) as host:
            token = host.open(SessionSpec(PLAN, state, client="7", round=3))
            trunk = connect(address, token=token)
            for step in (0, 1):
                hidden = torch.randn(2, 5, 32)
                answer = trunk.forward(TrunkCall(hidden, step=step))
                trunk.backward(step, torch.ones_like(answer))
            trunk.backward(1, torch.ones_like(answer))  # asked again
            with pytest.raises(TrunkError, match="step 9"):
                trunk.backward(9, torch.ones_like(answer))
            with pytest.raises(SessionError):
                connect(address, token="guessed").forward(TrunkCall(hidden))
            during = metrics.text().decode()
        with (
            pytest.raises(TrunkError, match="not this trunk's owner"),
            own_grpc(address, "x" * 32, None),
        ):
            pass
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    return token, lines, during, engine


def numbers(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_audit_names_who_joined_trained_and_was_refused(seen):
    token, lines, _, _ = seen
    session = session_name(token)
    events = [(line["event"], line.get("session")) for line in lines]
    assert ("joined", session) in events
    (closed,) = [line for line in lines if line["event"] == "closed"]
    assert (closed["session"], closed["steps"]) == (session, 2)
    refused = [line for line in lines if line["event"] == "refused"]
    assert [(r["who"], r["error"]) for r in refused] == [
        ("client", "SessionError"),
        ("client", "SessionError"),
        ("owner", "TrunkError"),
    ]
    of_client = [line for line in lines if line.get("session") == session]
    assert {(line["client"], line["round"]) for line in of_client} == {("7", 3)}
    assert "client" not in refused[1]  # a guessed token is nobody's
    assert len({line["run"] for line in lines if "run" in line}) == 1


def test_steps_in_flight_count_once_however_often_they_are_asked_for():
    written = io.StringIO()
    journal = Journal([written])
    journal.opened("token", "7", 3)
    for step in (1, 0, 3, 2, 0, 1, 2, 3):
        journal.trained("token", step)
    journal.owner("close", "run", "token")
    journal.trained("token", 4)  # its call outlived the session
    journal.owner("close", "run", "token")
    steps = [json.loads(line)["steps"] for line in written.getvalue().splitlines()]
    assert steps == [4, 0]


def test_no_token_and_no_secret_is_written(seen):
    token, lines, text, _ = seen
    written = json.dumps(lines) + text
    assert [s for s in (token, "guessed", SECRET, "x" * 32) if s in written] == []


def test_the_metrics_are_the_engines_account_and_the_clients(seen):
    _, _, text, engine = seen
    found, stats = numbers(text), engine.stats()
    assert found["atlas_trunk_sessions",] == 1
    assert found["atlas_trunk_steps_total",] == stats.steps == 2
    assert found["atlas_trunk_call_seconds_count", "forward"] == 2
    assert found["atlas_trunk_call_seconds_count", "backward"] == 3
    assert found["atlas_trunk_refused_calls_total", "?", "SessionError"] == 1  # unread
    sent = sum(found["atlas_trunk_bytes_total", v, "out"] for v in VERBS)
    assert sent == stats.bytes_out
    assert found["process_resident_memory_bytes",] > 0


def test_where_the_trunk_is_lost_the_metrics_say_so_and_it_is_told_once(seen):
    _, _, _, engine = seen
    there, told = [True], []

    def stats():
        if not there[0]:
            raise TrunkLost("the actor has died")
        return engine.stats()

    metrics = TrunkMetrics(stats, told.append)
    metrics.heard(Call("forward", 0.5))
    with serve_metrics("0", metrics, lambda: True) as url:

        def shown() -> dict[tuple[str, ...], float]:
            with urllib.request.urlopen(f"{url}/metrics", timeout=5) as page:
                return numbers(page.read().decode())

        assert shown()["atlas_trunk_up",] == 1
        there[0] = False
        for _ in range(2):
            found = shown()
            assert found["atlas_trunk_up",] == 0
            assert ("atlas_trunk_sessions",) not in found  # which nobody knows
            assert found["atlas_trunk_call_seconds_count", "forward"] == 1
        assert [str(error) for error in told] == ["the actor has died"]
        there[0] = True
        assert shown()["atlas_trunk_sessions",] == engine.stats().sessions
        there[0] = False
        assert shown()["atlas_trunk_up",] == 0
    assert len(told) == 2


def test_health_is_answered_and_readiness_ends_before_the_trunk(seen):
    _, _, _, engine = seen
    ready = [True]
    with serve_metrics("0", TrunkMetrics(engine.stats), lambda: ready[0]) as url:
        assert url.startswith("http://127.0.0.1:")

        def status(path: str) -> int:
            try:
                return urllib.request.urlopen(url + path, timeout=5).status
            except urllib.error.HTTPError as error:
                return error.code

        assert [status(p) for p in ("/healthz", "/readyz", "/metrics")] == [200] * 3
        ready[0] = False
        assert [status(p) for p in ("/healthz", "/readyz", "/x")] == [200, 503, 404]
    with pytest.raises(TrunkError, match="PORT"), serve_metrics("a", None, bool):
        pass


def test_a_flood_of_refusals_is_counted_and_not_written_out(seen):
    _, _, _, engine = seen
    written, now = io.StringIO(), [0.0]
    watch = Watch(Journal([written], lambda: now[0] + 10))
    for number in range(TOLD + 30):
        watch.answered(FrameService(engine), b"noise%d" % number)
    assert written.getvalue().count("\n") == TOLD
    now[0] = 2.0
    watch.answered(FrameService(engine), b"noise")
    counted, told = map(json.loads, written.getvalue().splitlines()[TOLD:])
    assert (counted["count"], told["event"]) == (30, "refused")


def test_refused_calls_are_counted_once_and_those_that_wait_are_not():
    calls, heard = Calls(), []
    with calls.heard_by(heard.append):
        for error in ("TooFast", "TrunkBusy", "", "SessionError", "TooFast"):
            calls.heard(Call("forward", 0.0, error=error))
    assert calls.refused() == {"SessionError": 1, "TooFast": 2}
    calls.heard(Call("?", 0.0, error="WireError"))
    assert calls.refused() == {"WireError": 1}
    assert calls.refused() == {}
    assert len(heard) == 5


def test_an_audit_file_that_cannot_be_written_is_told_before_anything_is_loaded(
    tmp_path, capsys
):
    app = tmp_path / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text("[tool.flwr.app.config]\nmodel = 'tiny'\n")
    audit = tmp_path / "none" / "audit.jsonl"
    assert main(["trunk", str(app), "--audit", str(audit)]) == 1
    assert "--audit" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named_with_the_keys_that_give_another():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(TrunkError, match=rf"metrics at {port}: .*trunk-metrics"),
            serve_metrics(str(port), None, lambda: True),
        ):
            pass
