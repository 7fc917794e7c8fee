# SPDX-License-Identifier: Apache-2.0
"""What a client offers reaches the server as it was said, or is refused by its key."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.client_apps.identity import Identity, dealt_offer
from atlas_flwr.cohort.roster import Roster
from atlas_flwr.config import load_config
from atlas_flwr.errors import AtlasError, BudgetError, ConfigError
from atlas_flwr.protocol import keys
from atlas_flwr.protocol.profile import Offer, Profile
from atlas_flwr.testing import local_grid

DEALT = {
    "trunk": "peers",
    "peer-memory": "1GiB,0",
    "peer-speeds": "2,1",
    "peer-links": "1Gbit/s,500 kbit/s",
    "device-order": "cycle",
}


def offered(**node):
    own = {key.replace("_", "-"): value for key, value in node.items()}
    context = SimpleNamespace(
        node_config={"partition-id": 0, "num-partitions": 2, **own}
    )
    return Identity.of(context, load_config(DEALT)).offer


def test_sizes_speeds_and_links_are_dealt_in_step():
    config = load_config(DEALT)
    dealt = [dealt_offer(config, n, 4) for n in range(4)]
    assert dealt == 2 * [Offer(1 << 30, 2.0, 1e9), Offer(0, 1.0, 5e5)]
    unsaid = load_config({"trunk": "peers", "peer-memory": "1GiB"})
    assert dealt_offer(unsaid, 0, 1) == Offer(1 << 30, 1.0, inf)


def test_a_node_says_its_own_before_what_is_dealt_and_nothing_else_changes():
    assert offered(trunk_link="20Mbit/s") == Offer(1 << 30, 2.0, 2e7)
    own = offered(trunk_memory="0", trunk_speed=0.5, trunk_link="2Gbit/s", trust="a+b")
    assert own == Offer(0, 0.5, 2e9, frozenset("ab"))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("memory", "3G"),
        ("trunk-memory", "much"),
        ("trunk-speed", "-1"),
        ("trunk-link", "20Mbyte/s"),
    ],
)
def test_a_node_that_says_nonsense_is_told_which_key(key, said):
    with pytest.raises(ConfigError, match=rf"{key}='{said}' \(node config\)"):
        offered(**{key: said})


@pytest.fixture(autouse=True)
def run():
    """Messages are made in a run."""
    with local_grid(ClientApp(), 0):
        yield


class Described:
    """A Grid whose one node describes itself."""

    def __init__(self, profile):
        self.record = profile.to_record()

    def send_and_receive(self, messages, *, timeout):
        content = RecordDict({keys.PROFILE: self.record})
        return [Message(content, reply_to=message) for message in messages]


def test_the_server_is_told_the_same_and_refuses_what_no_machine_is():
    profile = Profile("0", offer=Offer(5, 0.5, 2e7, frozenset("a")))
    assert Profile.from_record(profile.to_record()) == profile
    for wrong in ({"speed": 0.0}, {"link": 0.0}, {"link": float("nan")}):
        grid = Described(profile)
        grid.record.update(wrong)
        with pytest.raises(AtlasError, match="these are numbers above 0"):
            Roster().learn(grid, [7])
    with pytest.raises(BudgetError, match="lends -1 bytes"):
        Offer(-1)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("client-id", "../../adapters/mine", "id is '../../adapters/mine'; an id has"),
        ("client-id", "/mine", "id is '/mine'; an id has"),
        ("client-id", "[0-9]*", "an id has"),
        ("client-id", "", "an id has"),
        ("memory", "much", "cannot be read, ValueError"),
        ("task", None, "cannot be read, KeyError('task'): install the same"),
    ],
)
def test_a_node_whose_words_are_of_no_use_is_left_out_by_name(key, value, told, caplog):
    grid = Described(Profile("0"))
    if value is None:
        del grid.record[key]
    else:
        grid.record[key] = value
    roster = Roster(waits=True)
    roster.learn(grid, [7])
    assert not roster.profiles
    assert "node 7 takes no part: " in caplog.text
    assert told in caplog.text
