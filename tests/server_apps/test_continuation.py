# SPDX-License-Identifier: Apache-2.0
"""Keys of a resumed run are judged beside what it began with, not beside defaults."""

from __future__ import annotations

import pytest

from atlas_flwr.config import load_config
from atlas_flwr.errors import ConfigError, ResumeError
from atlas_flwr.report import RunFolder
from atlas_flwr.server_apps.checks import checked_config


@pytest.fixture
def resumed(tmp_path):
    """Check a resumed run that began with some keys."""

    def check(began, **given):
        keys = {"model": "tiny", "tasks": "spam", "runs-dir": str(tmp_path), **began}
        folder = RunFolder.create(load_config(keys))
        asked = {key.replace("_", "-"): value for key, value in given.items()}
        asked["resume"] = str(folder.path)
        return checked_config(asked, asked)

    return check


@pytest.mark.parametrize(
    ("began", "given"),
    [
        ({"strategy": "mira", "mixing": 0.5}, {"strategy": "mira"}),
        ({"quorum": 0.5, "staleness-cutoff": 2}, {"staleness_cutoff": 2}),
        ({"accumulate": 4}, {"in_flight": 2}),
        ({"run-name": "mine"}, {"trunk_limit": "1GiB", "trunk_metrics": 9100}),
        ({"trunk": "grpc"}, {"trunk_listen": "127.0.0.1:7001"}),
    ],
)
def test_a_key_that_fits_the_run_is_taken(resumed, began, given):
    found = resumed(began, **given)
    assert {key: getattr(found, key) for key in given} == given
    for key, value in began.items():
        assert getattr(found, key.replace("-", "_")) == value


@pytest.mark.parametrize(
    ("began", "given", "said"),
    [
        ({"trunk": "peers", "peer-memory": "1GiB"}, {"trunk_replicas": 2}, "a sim"),
        ({"strategy": "fedavg"}, {"trunk_limit": "1GiB"}, "does not read it"),
        ({"split": "none"}, {"trunk_queue": "fair"}, "there is no trunk"),
        ({"accumulate": 2}, {"in_flight": 4}, "accumulate=2 makes one"),
        ({}, {"trunk_quue": "fair"}, "did you mean trunk-queue"),
    ],
)
def test_a_key_that_the_run_would_not_read_is_refused(resumed, began, given, said):
    with pytest.raises(ConfigError, match=said):
        resumed(began, **given)


def test_a_key_that_does_not_agree_is_named_as_such(resumed):
    with pytest.raises(ResumeError, match="accumulate: given 2, began with 4"):
        resumed({"accumulate": 4}, accumulate=2)
