"""``plan --radio``: which cut, band and power each device should have."""

from __future__ import annotations

import re

import pytest

from atlas_flwr.cli.overrides import parse_overrides
from atlas_flwr.cli.radio import Device, Radio
from atlas_flwr.cli.sharing import check_sharing, sharing_shown
from atlas_flwr.config import load_config
from atlas_flwr.errors import BudgetError, ConfigError
from atlas_flwr.server_apps.assignment import DeviceRule
from atlas_flwr.train.weights import ModelFiles

PHONE = Device("phone", gflops=0.2, watts=3, power=0.2, distance=250, count=2)
BOARD = Device("board", gflops=0.02, watts=1, power=0.1, distance=400, memory="40MiB")


def shown(*devices, energy=0.0, leakage=0.0, trunk=0.02, **changes):
    given = {"model": "tiny", "tasks": "questions", "max-head": 3, **changes}
    config = load_config(given)
    files = ModelFiles.of(config)
    rule = DeviceRule.of(config, files.outline(), files.dtype)
    radio = Radio(1.0, trunk, 100, devices, energy=energy, leakage=leakage)
    check_sharing(config, radio)
    return sharing_shown(config, files, rule, radio)


def cuts_in(text):
    return re.findall(r" (\d)/1 ", text)


def numbers_in(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return [float(n) for n in re.findall(r"[\d.]+(?= [sJ])", line)]


def test_who_computes_faster_than_the_trunk_takes_more_blocks():
    text = shown(PHONE, BOARD)
    assert cuts_in(text) == ["3", "1"]
    assert "phone x 2" in text
    seconds, _, least = numbers_in(text, "a step takes")
    alike, _ = numbers_in(text, "with the first cut")
    assert least <= seconds < alike


def test_a_bound_on_energy_is_kept_and_costs_time():
    free, spent, _ = numbers_in(shown(PHONE, BOARD), "a step takes")
    bounded, kept, _ = numbers_in(
        shown(PHONE, BOARD, energy=0.6 * spent), "a step takes"
    )
    assert kept <= 0.6 * spent * 1.001
    assert bounded > free


def test_a_bound_on_leakage_leaves_the_heads_that_keep_it():
    with pytest.raises(BudgetError, match=r"each head up to max-head has more \(1/1"):
        shown(PHONE, leakage=1e-6)
    assert shown(PHONE, leakage=1e9) == shown(PHONE).replace(
        "1 MHz", "1 MHz, leakage 1e+09 at most"
    )


def test_what_is_shown_is_a_run():
    (line,) = (li for li in shown(BOARD, BOARD).splitlines() if "to run it" in li)
    config = load_config(parse_overrides([line.split('"')[1]]))
    assert config.kinds == ((40 << 20, "1/1"),) * 2
    assert "-n 2 " in line


def test_memory_that_only_some_devices_have_is_said_to_be_left_out():
    *_, keys, told = shown(PHONE, BOARD).splitlines()
    config = load_config(parse_overrides([keys.split('"')[1]]))
    assert config.kinds == ((None, "3/1"), (None, "3/1"), (None, "1/1"))
    assert "(board: 40MiB)" in told
    assert "memory in its node config" in told
    for all_or_none in (shown(PHONE), shown(BOARD)):
        assert "leave out" not in all_or_none


def test_devices_of_one_cut_run_where_all_must_have_one():
    shared = {"strategy": "splitlora", "server-adapters": "shared", "ranks": "uniform"}
    text = shown(PHONE, cut="2/1", **shared)
    keys = parse_overrides([text.splitlines()[-1].split('"')[1]])
    assert load_config(shared | keys).kinds == ((None, "2/1"),)


def test_a_device_that_holds_no_cut_is_named():
    small = Device("watch", 1, 1, 0.1, distance=10, memory="10KiB")
    with pytest.raises(BudgetError, match="watch"):
        shown(small)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strategy": "fedavg", "max-head": 4}, "nothing crosses"),
        ({"summary-positions": 4, "leakage": 5.0}, "summaries alone"),
    ],
)
def test_where_nothing_crosses_or_is_measured_it_is_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        shown(PHONE, **changes)
