"""What is said of a run under way is counted; the time left comes from its rounds."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import pytest
from rich.console import Console

from atlas_flwr.cli.live import drawn
from atlas_flwr.config import load_config
from atlas_flwr.errors import TrunkLost
from atlas_flwr.grids.progress import InFlight
from atlas_flwr.log import plain_output
from atlas_flwr.server_apps.progress import PROGRESS_FILE, Progress, duration
from atlas_flwr.trunk import TrunkStats

CONFIG = load_config({"num-rounds": 3, "local-steps": 8, "batch-size": 4})


class Run:
    """A run whose clock and trunk are moved by hand."""

    def __init__(self, trunk=True, config=CONFIG):
        self.now, self.steps = 1000.0, 100
        stats = (lambda: TrunkStats(0, 0, self.steps, 0.0, 0)) if trunk else None
        self.progress = Progress(config, clock=lambda: self.now, stats=stats)
        self.progress.begin(0)

    def said(self, seconds, flight):
        self.now += seconds
        stream = io.StringIO()
        with plain_output(), redirect_stdout(stream):
            self.progress.saw(flight)
        return stream.getvalue()


def train(came, failed=0, number=1):
    return InFlight("train", number, 8, came, failed)


def test_a_line_comes_every_quarter_of_a_minute_and_not_more_often():
    run = Run()
    lines = [run.said(1, train(0)) for _ in range(61)]
    assert sum(map(bool, lines)) == 4


def test_a_line_tells_round_clients_steps_speed_and_time_left():
    run = Run()
    run.progress.end_round()
    assert run.said(0, train(0)) == ""
    run.steps += 32
    assert run.said(16, train(3, 1)) == (
        "round 1 of 3 · training · 3 of 8 clients done, 1 failed · 32 of 64 steps · "
        "8.0 examples/s · about 80 s left\n"
    )


def test_steps_are_those_of_this_round():
    run = Run()
    run.said(0, train(0))
    run.steps += 64
    run.said(20, train(8))
    run.said(20, InFlight("evaluate", 2, 8))
    assert "steps" not in run.said(20, InFlight("evaluate", 2, 8, 4))
    run.said(20, train(0, number=3))
    run.steps += 5
    assert "· 5 of 64 steps ·" in run.said(20, train(1, number=3))


def test_the_time_left_is_that_of_the_rounds_that_were():
    run = Run()
    for seconds in (7, 60, 100):  # the first is what comes before round 1
        run.now += seconds
        run.progress.end_round()
    left = run.progress.standing(train(0)).seconds_left
    assert left == pytest.approx(80)
    run.now += 30
    assert run.progress.standing(train(0)).seconds_left == pytest.approx(50)


def test_without_a_trunk_clients_alone_are_counted():
    run = Run(trunk=False)
    run.said(0, train(0))
    assert run.said(16, train(2)) == "before round 1 · training · 2 of 8 clients done\n"


def test_steps_that_nobody_can_foresee_are_not_promised():
    run = Run(config=load_config({"auxiliary-steps": 1}))
    run.said(0, train(0))
    run.steps += 3
    assert "· 3 steps ·" in run.said(16, train(2))


def test_a_trunk_that_is_gone_does_not_end_the_round_from_here():
    def gone():
        raise TrunkLost("gone")

    run = Run()
    run.progress.stats = gone
    assert "2 of 8 clients done" in run.said(16, train(2))


def test_in_a_terminal_nothing_is_said_and_a_file_is_written_to_be_drawn(
    tmp_path, monkeypatch
):
    file = tmp_path / "progress.json"
    monkeypatch.setenv(PROGRESS_FILE, str(file))
    run = Run()
    run.progress.end_round()
    run.said(0, train(0))
    run.steps += 32
    assert run.said(16, train(3, 1)) == ""
    standing = json.loads(file.read_text())
    assert (standing["steps"], standing["done"], standing["failed"]) == (32, 3, 1)
    console = Console(file=io.StringIO(), width=160)
    console.print(drawn(standing, slots=2))
    text = " ".join(console.file.getvalue().split())
    assert "round 1 of 3 training" in text
    assert "3 of 8 clients, 2 running, 1 failed 32 of 64 steps 8.0 examples/s" in text
    assert text.endswith("1:20 left")


def test_a_missing_client_is_waited_for_aloud():
    run = Run()
    stream = io.StringIO()
    with plain_output(), redirect_stdout(stream):
        for _ in range(31):
            run.now += 1
            run.progress.waiting(1)
            run.progress.waiting(2)
    assert stream.getvalue() == "waiting for clients: 1 of 2 are connected\n" * 2


def test_so_is_one_beside_those_who_cannot_take_part():
    """Flower says who is connected, and counts those alone that have a part."""
    run, stream = Run(), io.StringIO()
    with plain_output(), redirect_stdout(stream):
        for _ in range(16):
            run.now += 1
            run.progress.waiting(3, refused=2)
    told = "waiting for clients: 1 of 2 are connected, beside 2 that cannot take part"
    assert stream.getvalue() == f"{told}; the log says why\n"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (100, "2 min"), (7200, "2.0 h")]
)
def test_durations_are_as_exact_as_an_estimate(seconds, words):
    assert duration(seconds) == words
