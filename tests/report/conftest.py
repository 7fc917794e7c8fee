# SPDX-License-Identifier: Apache-2.0
"""A small run, made up so that its figures can be worked out by hand."""

from __future__ import annotations

import pytest

from atlas_flwr.config import load_config
from atlas_flwr.report import (
    Baseline,
    ClientEvaluated,
    ClientTrained,
    Clustered,
    RoundEnded,
    RunEnded,
    RunFolder,
    RunStarted,
    SumsSent,
)
from atlas_flwr.report.events import CallsRefused, ClientFailed, Sampled, TrunkRestarted
from atlas_flwr.report.peer_events import (
    PeerLost,
    PeerMoved,
    PeersPaired,
    ReplicaLost,
    ReplicaMoved,
)

TASKS = {"0": "news", "1": "spam", "2": "news", "3": "spam"}
EXAMPLES = {"0": 10, "1": 20, "2": 30, "3": 20}
ACCURACY = {
    0: {"0": 0.2, "1": 0.5, "2": 0.2, "3": 0.5},
    1: {"0": 0.4, "1": 0.6, "2": 0.8, "3": 0.8},
    2: {"0": 0.5, "1": 0.9, "2": 0.9, "3": 0.7},
}


def evaluated(number):
    return [
        ClientEvaluated(number, c, TASKS[c], int(c) % 2, accuracy, 2.0 - accuracy, n)
        for (c, accuracy), n in zip(
            ACCURACY[number].items(), EXAMPLES.values(), strict=True
        )
    ]


def trained(number):
    return [
        ClientTrained(
            round=number,
            client=client,
            task=TASKS[client],
            cluster=int(client) % 2,
            loss=1.0 / number + int(client),
            num_examples=128,
            steps=8,
            seconds=1.5,
            bytes_up=100,
            bytes_down=50,
            peak_bytes=(300 + 10 * int(client) + number) << 20,
            rank=2 ** (int(client) + 1),
            plan="2/1" if client != "3" else "1/1",
            skipped=number,
        )
        for client in TASKS
    ]


def made_up_events(rounds=2):
    events = [
        RunStarted(0, 4),
        Baseline("news", 0.25),
        Baseline("spam", 0.75),
        *evaluated(0),
        RoundEnded(0, 1.0, 10, 20),
        Clustered(
            1,
            {c: int(c) % 2 for c in TASKS},
            2,
            0.8,
            1.0,
            1.0,
            1.0,
            memberships={"0": {"0": 0.75, "1": 0.25}, "1": {"0": 0.0, "1": 1.0}},
        ),
    ]
    for number in range(1, rounds + 1):
        peak = number << 30
        ended = RoundEnded(number, 10.0 + number, 1000, 600, number - 1, peak)
        sent = SumsSent(number, 0.01 * number)
        ways = {"0": "3[1-9]", "1": "3[1-4] 2[5-9]"}
        paired = PeersPaired(number, "train", ways, ("2",))
        others = [
            PeerLost(number, "3", "off"),
            PeerMoved(number, "0", "2[1-9]"),
            ReplicaLost(number, "1", "off"),
            ClientFailed(number, "train", "3", "out of paper"),
            ReplicaMoved(number, {"0": "0"}),
            CallsRefused(number, {"TooFast": number}),
        ]
        events += [paired, *trained(number), *others, sent, *evaluated(number), ended]
    events.append(Sampled(rounds, "0", "news", 0, "Why?", "So.", "No."))
    return [*events, TrunkRestarted(rounds, "out of memory"), RunEnded(rounds)]


@pytest.fixture
def config():
    return load_config({"num-rounds": 2, "seed": 7, "tasks": "spam,news"})


@pytest.fixture
def events():
    return made_up_events()


@pytest.fixture
def timeline(events):
    return [(1000.0 + i, event) for i, event in enumerate(events)]


@pytest.fixture
def folder(tmp_path, config, timeline):
    made = RunFolder.create(load_config({"runs-dir": str(tmp_path), "num-rounds": 2}))
    for at, event in timeline:
        made.record(event, at)
    return made
