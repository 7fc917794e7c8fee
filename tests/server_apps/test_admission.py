"""A node that can be given nothing is left out by name; the run goes on."""

from __future__ import annotations

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.client_apps.app import app
from atlas_flwr.cohort.roster import Roster
from atlas_flwr.config import load_config
from atlas_flwr.errors import AtlasError, BudgetError, PlanError
from atlas_flwr.protocol import keys
from atlas_flwr.protocol.profile import Profile
from atlas_flwr.server_apps.admission import Admission
from atlas_flwr.server_apps.run import Run
from atlas_flwr.testing import local_grid
from atlas_flwr.train.weights import ModelFiles
from tests.runs_on_devices import BASE

SHARED = {
    "strategy": "splitlora",
    "server-adapters": "shared",
    "cut": "2/1",
    "ranks": "uniform",
}


@pytest.fixture(autouse=True)
def run():
    """Messages are made in a run."""
    with local_grid(ClientApp(), 0):
        yield


def admission(**keys):
    config = load_config({"model": "tiny", "tasks": "questions", **keys})
    return Admission(config, ModelFiles.of(config))


class Describing:
    """A Grid whose nodes describe themselves so."""

    def __init__(self, profiles):
        self.profiles = profiles
        self.asked = []

    def send_and_receive(self, messages, *, timeout):
        for message in messages:
            self.asked.append(message.metadata.dst_node_id)
            record = self.profiles[message.metadata.dst_node_id].to_record()
            yield Message(RecordDict({keys.PROFILE: record}), reply_to=message)


@pytest.mark.parametrize(
    ("said", "config", "told", "wrong"),
    [
        ({"cut": "9/1"}, {}, PlanError, "cut 9/1 of 6 blocks"),
        ({"memory": 1024}, {}, BudgetError, "holds no part of this model"),
        ({"memory": 3 << 20, "cut": "4/1"}, {}, BudgetError, "4 block"),
        ({"cut": "3/1"}, SHARED, PlanError, "the run's cut='2/1'"),
    ],
)
def test_what_leaves_a_client_nothing_is_refused(said, config, told, wrong):
    with pytest.raises(told, match=wrong):
        admission(**config)(Profile("0", **said))


@pytest.mark.parametrize(
    ("said", "config"),
    [
        ({}, {}),
        ({"cut": "4/1", "memory": 1 << 30}, {}),
        ({"cut": "auto"}, {"cut": "1/1,2/1"}),
        ({"cut": "2/1"}, SHARED),
        ({"cut": "9/1", "memory": 1}, {"strategy": "fedavg"}),
        ({"cut": "9/1", "memory": 1}, {"split": "none"}),
    ],
)
def test_who_can_be_given_something_or_needs_nothing_is_taken(said, config):
    admission(**config)(Profile("0", **said))


def test_one_node_that_is_refused_leaves_the_others_their_run(caplog):
    roster = Roster(check=admission())
    roster.learn(Describing({7: Profile("0", cut="9/1"), 8: Profile("1")}), [7, 8])
    assert list(roster.profiles) == [8]
    assert "node 7 takes no part: cut 9/1 of 6 blocks" in caplog.text


def test_who_is_refused_is_asked_again_in_a_round_or_as_it_comes_back():
    grid = Describing({7: Profile("0", cut="9/1"), 8: Profile("1")})
    roster = Roster(check=admission())
    for _ in range(3):
        roster.learn(grid, [7, 8])
    assert grid.asked == [7, 8]
    roster.ask_again()
    roster.learn(grid, [7, 8])
    roster.learn(grid, [7, 8])
    assert grid.asked == [7, 8, 7]
    roster.ask_again(but=[7, 8])
    roster.learn(grid, [7, 8])
    assert grid.asked == [7, 8, 7]
    roster.ask_again(but=[8])
    grid.profiles[7] = Profile("0", cut="2/1")  # its SuperNode was started anew
    roster.learn(grid, [7, 8])
    assert sorted(roster.profiles) == [7, 8]


def test_a_round_asks_a_refused_node_once(tmp_path):
    config = {**BASE, "num-rounds": 2, "runs-dir": str(tmp_path), "strategy": "flora"}
    nodes = [{}, {}, {"cut": "9/1"}]
    with local_grid(app, 3, run_config=config, node_configs=nodes) as grid:
        Run.begin(config).execute(grid)
        refused = [*grid.get_node_ids()][2]
    asked = [m.metadata for m in grid.sent if m.metadata.dst_node_id == refused]
    assert {found.message_type for found in asked} == {keys.DESCRIBE}
    assert len(asked) == 1 + 2  # as the run begins, and a round


def test_a_resumed_deployment_waits_for_those_it_had(caplog):
    grid = Describing({7: Profile("0", cut="9/1"), 8: Profile("1")})
    roster = Roster(check=admission(), waits=True)
    roster.learn(grid, [7])
    assert not roster.profiles
    assert "node 7 takes no part" in caplog.text
    roster.learn(grid, [7, 8])
    assert list(roster.profiles) == [8]


def test_where_all_are_refused_the_run_ends_with_a_reason():
    with pytest.raises(AtlasError, match=r"none of 1 clients .* cut 9/1 of 6 blocks"):
        Roster(check=admission()).learn(Describing({7: Profile("0", cut="9/1")}), [7])
