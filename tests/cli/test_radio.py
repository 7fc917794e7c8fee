from __future__ import annotations

import math

import pytest

from atlas_flwr.cli.radio import read_radio
from atlas_flwr.errors import ConfigError

FILE = """
bandwidth: 20
trunk: 500
down: 100
energy: 40
devices:
  - {name: near, gflops: 30, watts: 3, power: 0.2, distance: 1000, memory: 256MiB}
  - {name: far, gflops: 30, watts: 3, power: 0.2, gain: -140, count: 2}
"""


def read(tmp_path, text=FILE):
    path = tmp_path / "radio.yaml"
    path.write_text(text)
    return read_radio(path)


def test_a_file_is_read_in_units_of_the_model(tmp_path):
    radio = read(tmp_path)
    assert radio.band.hertz == 20e6
    assert radio.band.noise == pytest.approx(10 ** (-17.4) / 1000)
    assert radio.band.joules == 40
    near, far = radio.devices
    # 3GPP's path loss is 128.1 dB at a kilometre.
    assert near.received == pytest.approx(10**-12.81)
    assert far.received == pytest.approx(1e-14)
    assert (near.budget, far.budget) == (256 << 20, None)


def test_without_a_bound_energy_is_free(tmp_path):
    assert read(tmp_path, FILE.replace("energy: 40", "")).band.joules == math.inf


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("bandwidth:", "bandwith:", "did you mean 'bandwidth'"),
        ("down: 100", "", "lacks 'down'"),
        ("trunk: 500", "trunk: fast", "must be a number"),
        ("trunk: 500", "trunk: .nan", "above 0, and at most 1e"),
        ("trunk: 500", f"trunk: {10**400}", "above 0, and at most 1e"),
        ("trunk: 500", "trunk: 5e2", r"reads 5e2 as text; write 500\.0"),
        ("distance: 1000", "distance: 1.0e-300", "at least 1, and at most"),
        ("gain: -140", "gain: -5000", "not below -400"),
        ("energy: 40", "energy: 0", "leave it out for no bound"),
        ("energy: 40", "noise: 174", "in dB, below 0"),
        ("256MiB", "256Mi", "not a byte size"),
        ("gain: -140", "gain: 0", "either 'distance' or 'gain'"),
        ("gain: -140", "gain: -140, distance: 5", "either 'distance' or 'gain'"),
        ("count: 2", "count: 2.5", "must be whole"),
        ("name: far", "name: 7", "must be text"),
        ("devices:", "devices: []\nothers:", "must be a list of devices"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, old, new, told):
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, FILE.replace(old, new))


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    text = FILE.replace("down: 100", "").replace("power: 0.2", "power: -1")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("text", ["- a\n- b", "", "a: [", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"radio\.yaml"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (FILE.replace("energy: 40", "energy: 40\nenergy: 4"), "'energy' stands twice"),
        (FILE.replace("name: near", "name: 2026-02-30"), "day is out of range"),
    ],
)
def test_what_yaml_would_let_pass_or_trip_over_is_told(tmp_path, text, told):
    with pytest.raises(ConfigError, match=f"--radio .*{told}"):
        read(tmp_path, text)
