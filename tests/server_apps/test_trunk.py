"""The trunks that a run can start."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from typing import get_args, get_type_hints

import pytest

from atlas_flwr.config import RunConfig
from atlas_flwr.server_apps.trunk import TRUNKS
from tests.server_apps.test_run import run


def test_every_word_of_the_key_starts_a_trunk_of_its_own():
    words = get_args(get_type_hints(RunConfig)["trunk"])
    assert sorted(words) == sorted(["auto", *TRUNKS])
    assert len(set(TRUNKS.values())) == len(TRUNKS)


def test_a_run_shows_its_trunks_numbers_while_it_goes_on(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shown = []

    def look(message):
        if message.metadata.message_type.startswith("query"):
            return "deliver"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            shown.append(page.read().decode())
        return "deliver"

    run(tmp_path, look, trunk_metrics=port, num_rounds=1)
    (steps,) = re.findall(r"^atlas_trunk_steps_total (\S+)", shown[-1], re.MULTILINE)
    assert float(steps) >= 4 * 2  # clients, and what each trains
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")
