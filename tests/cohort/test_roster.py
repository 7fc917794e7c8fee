# SPDX-License-Identifier: Apache-2.0
"""Who is behind a node: a client may come back on another one, and as another."""

from __future__ import annotations

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.protocol.profile import Profile


def test_a_client_that_came_back_is_held_to_the_certificate_that_it_has_now():
    roster = Roster()
    assert roster.holder("3") == ""
    for node, holder in ((1, "CN=before"), (2, ""), (5, "CN=now")):
        client = "4" if node == 2 else "3"
        roster.profiles[node] = Profile(client, holder=holder)
    assert roster.holder("3") == "CN=now"
    assert roster.holder("4") == ""
