"""The trunks that a run can start."""

from __future__ import annotations

from typing import get_args, get_type_hints

from atlas_flwr.config import RunConfig
from atlas_flwr.server_apps.trunk import TRUNKS


def test_every_word_of_the_key_starts_a_trunk_of_its_own():
    words = get_args(get_type_hints(RunConfig)["trunk"])
    assert sorted(words) == sorted(["auto", *TRUNKS])
    assert len(set(TRUNKS.values())) == len(TRUNKS)
