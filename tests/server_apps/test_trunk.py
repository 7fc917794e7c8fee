"""The trunks that a run can start."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import get_args, get_type_hints
from unittest.mock import Mock

import pytest

from atlas_flwr.config import RunConfig
from atlas_flwr.errors import SessionError, TrunkLost
from atlas_flwr.protocol.doors import doors_of
from atlas_flwr.report.trunk_events import CallsRefused
from atlas_flwr.server_apps.build import holders_of
from atlas_flwr.server_apps.trunk import TRUNKS, _shown
from atlas_flwr.trunk import connect
from atlas_flwr.trunk.engine.stats import TrunkStats
from atlas_flwr.trunk.transports.watching import Calls
from tests.server_apps.test_run import run, summary


def test_every_word_of_the_key_starts_a_trunk_of_its_own():
    words = get_args(get_type_hints(RunConfig)["trunk"])
    assert sorted(words) == sorted(["auto", *TRUNKS])
    assert len(set(TRUNKS.values())) == len(TRUNKS)


def test_a_client_without_the_certificate_that_is_asked_for_is_named_once(caplog):
    shown = {"0": "north", "1": ""}
    roster = SimpleNamespace(holder=shown.__getitem__)
    asking = RunConfig(trunk="grpc", trunk_client_ca="ca.crt")
    holder = holders_of(asking, roster)
    assert [holder(client) for client in ("0", "1", "1")] == ["north", "", ""]
    assert caplog.text.count("has no certificate") == 1
    assert "client 1 has no certificate" in caplog.text
    holders_of(RunConfig(), roster)("1")
    assert caplog.text.count("has no certificate") == 1


def test_a_run_shows_its_trunks_numbers_and_tells_what_it_refused(tmp_path, caplog):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shown, guesses = [], []

    def look(message):
        if message.metadata.message_type.startswith("query"):
            return "deliver"
        (entries,) = message.content.config_records.values()
        if message.metadata.message_type == "train":
            (door,) = doors_of(entries)
            with pytest.raises(SessionError):
                connect(door.address, token="guess", ca=door.ca).echo(1)
            guesses.append(door)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            shown.append(page.read().decode())
        return "deliver"

    left = run(tmp_path, look, trunk="grpc", trunk_metrics=port, num_rounds=1)
    numbers = dict(re.findall(r"^atlas_trunk_(\S+) (\S+)", shown[-1], re.MULTILINE))
    assert float(numbers["steps_total"]) >= 4 * 2  # clients, and what each trains
    assert float(numbers['call_seconds_count{verb="backward"}']) >= 4 * 2
    refused = 'refused_calls_total{error="SessionError",verb="?"}'
    assert float(numbers[refused]) == len(guesses) == 4
    told = [event for _, event in left.events() if isinstance(event, CallsRefused)]
    assert told == [CallsRefused(1, {"SessionError": 4})]
    assert summary(left)["calls_refused"] == {"SessionError": 4}
    assert "refused since the last round: 4 SessionError" in caplog.text
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")


def test_a_trunk_that_is_lost_is_not_ready():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    there = Mock(return_value=TrunkStats(0, 0, 0, 0.0, 0))
    setting = SimpleNamespace(config=RunConfig(trunk_metrics=port), calls=Calls())

    def status() -> int:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").status
        except urllib.error.HTTPError as error:
            return error.code

    with _shown(setting, SimpleNamespace(host=SimpleNamespace(stats=there))):
        assert status() == 200
        there.side_effect = TrunkLost("the actor has died")
        assert status() == 503
        there.side_effect = None
        assert status() == 200
