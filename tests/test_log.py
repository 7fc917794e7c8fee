"""What a run prints: our lines plainly, Flower's warnings, an error of ours last."""

from __future__ import annotations

import io
import logging
from contextlib import contextmanager, redirect_stdout

import pytest
from flwr.app import Context, RecordDict
from flwr.supercore.exit.exit_code import EXIT_CODE_HELP, ExitCode
from flwr.supercore.logger import console_handler

from atlas_flwr.errors import ConfigError, TrunkLost
from atlas_flwr.log import FLOWER, end_with, log, plain_output
from atlas_flwr.server_apps.app import app
from atlas_flwr.testing import local_grid


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.delenv("FLWR_LOG_LEVEL", raising=False)
    filters = list(FLOWER.filters)
    yield
    FLOWER.filters[:] = filters


@contextmanager
def heard():
    """Yield all that is printed meanwhile, by Flower's handler too."""
    stream, before = io.StringIO(), console_handler.stream
    console_handler.stream = stream
    try:
        with redirect_stdout(stream):
            yield stream
    finally:
        console_handler.stream = before


def flower_ends_with(error):
    """Log what flwr-simulation and flwr-serverapp log at an error of the ServerApp."""
    FLOWER.error("%s raised an exception", "Simulation", exc_info=error)
    code = ExitCode.SIMULATION_EXCEPTION
    FLOWER.error(f"Exit Code: {code}\n\n{EXIT_CODE_HELP[code]}")


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def test_our_lines_are_plain_and_flowers_are_warnings_only():
    with heard() as said, plain_output():
        log(logging.INFO, "clusters: %d", 2)
        FLOWER.info("configure_train: Sampled 4 nodes")
        FLOWER.warning("no nodes")
        log(logging.WARNING, "one is lost")
    lines = said.getvalue().splitlines()
    assert lines[0] == "clusters: 2"
    assert "no nodes" in lines[1]
    assert lines[2:] == ["warning: one is lost"]


def test_elsewhere_our_lines_look_like_flowers():
    with heard() as said:
        log(logging.INFO, "clusters: %d", 2)
        FLOWER.info("Sampled")
    ours, theirs = said.getvalue().splitlines()
    assert ours.removesuffix("clusters: 2") == theirs.removesuffix("Sampled")


def test_flower_talks_where_it_is_asked_to(monkeypatch):
    with heard() as said:
        monkeypatch.setenv("FLWR_LOG_LEVEL", "INFO")
        with plain_output():
            FLOWER.info("Sampled")
            log(logging.INFO, "once")
    text = said.getvalue()
    assert "Sampled" in text
    assert text.count("once") == 1


def test_an_error_of_ours_is_the_last_word_and_has_no_traceback():
    with heard() as said:
        error = raised(TrunkLost("the trunk is gone; continue with resume"))
        end_with(error)
        flower_ends_with(error)
    text = said.getvalue()
    assert text.rstrip().endswith("the trunk is gone; continue with resume")
    assert text.count("\n") == 1


def test_an_error_that_nobody_foresaw_keeps_its_traceback():
    with heard() as said:
        end_with(ConfigError(["another"]))
        flower_ends_with(raised(ValueError("what is this")))
    text = said.getvalue()
    assert "Traceback" in text
    assert "Exit Code: 700" in text


def test_the_app_fails_with_every_problem_last_and_without_a_traceback():
    with heard() as said:
        config = {"model": "tiny", "codec": "zip", "num-rounds": 0}
        context = Context(1, 1, {}, RecordDict(), config)
        with local_grid(None) as grid, pytest.raises(ConfigError) as caught:
            app(grid, context)
        flower_ends_with(caught.value)
    text = said.getvalue()
    assert "Traceback" not in text
    last = text.strip().splitlines()[-2:]
    assert sorted(line.split()[1].split("=")[0].strip(":") for line in last) == [
        "codec", "num-rounds"
    ]  # fmt: skip


def workers_account(said):
    """What Flower's simulation logs of an error in a worker, three records long."""
    for text in (
        "An exception was raised when processing a message by RayBackend",
        said,
        "Traceback (most recent call last):\n  File ...\n" + said,
    ):
        made = logging.LogRecord("flwr", 40, "/x/vce_api.py", 1, text, (), None)
        FLOWER.handle(made)


@pytest.mark.parametrize("asked", [False, True])
def test_what_a_worker_raised_is_told_once(monkeypatch, asked):
    if asked:
        monkeypatch.setenv("FLWR_LOG_LEVEL", "INFO")
    with heard() as printed, plain_output():
        workers_account(
            "ray::ClientAppActor.run() ... ZeroDivisionError: division by zero"
        )
    assert printed.getvalue().count("division by zero") == (2 if asked else 1)
    assert ("An exception was raised" in printed.getvalue()) == asked


def test_of_a_worker_that_died_flowers_account_has_nothing_to_say():
    with heard() as printed, plain_output():
        workers_account("The actor died\n\tclass_name: ClientAppActor\n\tpid: 7")
    assert printed.getvalue() == ""
