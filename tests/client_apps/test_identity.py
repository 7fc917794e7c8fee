from __future__ import annotations

import pytest
from flwr.app import Context, RecordDict

from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import load_config
from atlas_flwr.errors import ConfigError
from atlas_flwr.protocol.profile import Profile


def identity(index=0, count=4, node=None, **keys):
    own = {"partition-id": index, "num-partitions": count, **(node or {})}
    context = Context(
        run_id=1, node_id=1, node_config=own, state=RecordDict(), run_config={}
    )
    return Identity.of(context, load_config(keys))


@pytest.mark.parametrize("order", ["cycle", "shuffled"])
def test_a_cut_is_dealt_with_its_device(order):
    keys = {"devices": "1GiB,2GiB,3GiB", "cut": "1/1,2/1,3/1", "device-order": order}
    found = [identity(i, 7, **keys) for i in range(7)]
    assert all(f.cut == f"{f.memory >> 30}/1" for f in found)
    assert sorted(f.cut for f in found) == ["1/1"] * 3 + ["2/1"] * 2 + ["3/1"] * 2


@pytest.mark.parametrize("own", ["4/1", "auto"])
def test_a_nodes_own_cut_goes_before_the_runs(own):
    found = identity(node={"cut": own, "memory": "5GiB"}, devices="1GiB", cut="2/1")
    assert (found.memory, found.cut) == (5 << 30, own)


@pytest.mark.parametrize(
    ("cut", "split", "told"),
    [
        ("4", "u-shaped", "is not a cut"),
        ("4/-", "u-shaped", "does not fit the run's split='u-shaped'"),
        ("4/1", "vanilla", "does not fit the run's split='vanilla'"),
    ],
)
def test_a_nodes_cut_that_fits_no_run_is_refused(cut, split, told):
    with pytest.raises(ConfigError, match=told):
        identity(node={"cut": cut}, split=split)


def test_the_server_is_told_of_the_cut():
    config = load_config({"cut": "2/1,4/1", "device-order": "cycle"})
    profile = identity(1, **{"cut": "2/1,4/1", "device-order": "cycle"}).profile(config)
    assert Profile.from_record(profile.to_record()).cut == "4/1"


@pytest.mark.parametrize("key", ["partition-id", "num-partitions"])
@pytest.mark.parametrize("given", ["one", 1.5, True])
def test_a_clients_number_is_a_whole_one_or_told(key, given):
    with pytest.raises(ConfigError, match=f"{key}={given!r}.*whole number"):
        identity(node={key: given})
