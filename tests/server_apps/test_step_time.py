# SPDX-License-Identifier: Apache-2.0
"""How long a step would take is told by what the run's codec sends."""

from __future__ import annotations

import pytest

from atlas_flwr.budget import Rates
from atlas_flwr.config import load_config
from atlas_flwr.server_apps.assignment import DeviceRule
from atlas_flwr.train.weights import ModelFiles

# Of 4 bytes, as docs/codecs.md has them; int8 and int4 have scales besides.
SHARES = {"auto": 1, "raw": 1, "fp16": 1 / 2, "int8": 0.254, "int4": 0.141}


def link(**changes):
    config = load_config({"model": "tiny", "tasks": "questions", **changes})
    files = ModelFiles.of(config)
    rule = DeviceRule.of(config, files.outline(), files.dtype)
    found = rule.seconds(Rates(1e9, 1e9, 1e6), 2, 1)
    assert found.client > 0
    return found.link


@pytest.mark.parametrize("codec", SHARES)
def test_a_link_is_busy_for_what_the_codec_sends(codec):
    numbers = 4 * 8 * 48 * 32  # there and back, twice, of batch, length and width
    seconds = link(**{"codec": codec, "batch-size": 8, "max-length": 48})
    assert seconds == pytest.approx(SHARES[codec] * 32 * numbers / 1e6, rel=0.01)


def test_half_precision_crosses_in_half_of_the_bytes():
    half = {"dtype": "bfloat16", "aggregation": "truncate"}
    assert link(**half) == pytest.approx(link() / 2, rel=0.01)
