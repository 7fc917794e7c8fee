from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.client_apps.store import KEPT, ClientStore
from atlas_flwr.errors import DataError

ID = "0123456789abcdef"


@pytest.fixture
def store(tmp_path):
    return ClientStore(tmp_path / "client")


def value(store, *, before):
    found = store.load("thing", before=before)
    return None if found is None else found["x"].item()


def test_what_was_kept_last_before_a_round_comes_back(store):
    for round_ in (1, 3):
        store.save("thing", round_, {"x": np.array(round_)})
    assert [value(store, before=r) for r in range(1, 6)] == [None, 1, 1, 3, 3]


def test_a_round_that_is_done_again_does_not_see_its_first_time(store):
    store.save("thing", 1, {"x": np.array(1)})
    store.save("thing", 2, {"x": np.array(-2)})
    assert value(store, before=2) == 1
    store.save("thing", 2, {"x": np.array(2)})
    assert value(store, before=3) == 2


def test_a_round_that_is_not_done_again_is_not_seen_either(store):
    for round_ in (1, 2, 3):
        store.save("thing", round_, {"x": np.array(-round_)})
    # Resumed after round 1; in round 3 the client has no part this time.
    store.save("thing", 2, {"x": np.array(2)})
    assert value(store, before=4) == 2


def test_what_cannot_be_written_leaves_nothing_behind(store, monkeypatch):
    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError("no space left on device")

    store.save("thing", 1, {"x": np.array(1)})
    with monkeypatch.context() as disk:
        disk.setattr(np, "savez", full)
        with pytest.raises(OSError, match="no space"):
            store.save("thing", 2, {"x": np.array(2)})
    assert [path.name for path in store.path.iterdir()] == ["thing-1.npz"]


def test_names_do_not_see_each_other(store):
    store.save("other", 1, {"x": np.array(1)})
    assert value(store, before=9) is None


@pytest.mark.parametrize("left", [b"", b"garbage", 100, -1])
def test_a_damaged_file_is_named_and_no_older_one_taken_for_it(store, left):
    for round_ in (1, 2):
        store.save("thing", round_, {"x": np.arange(99)})
    path = store.path / "thing-2.npz"
    path.write_bytes(left if isinstance(left, bytes) else path.read_bytes()[:left])
    with pytest.raises(DataError, match=r"thing-2\.npz is damaged.*begin anew"):
        store.load("thing", before=3)


def test_rounds_of_long_ago_are_dropped_and_no_draft_stays(store):
    for round_ in range(1, 10):
        store.save("thing", round_, {"x": np.array(round_)})
    names = sorted(path.name for path in store.path.iterdir())
    assert names == [f"thing-{r}.npz" for r in range(9 - KEPT, 10)]


def test_clients_and_runs_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path))
    paths = {ClientStore.of(i, c).path for i in (ID, ID[::-1]) for c in (0, 1)}
    assert len(paths) == 4
    assert all(tmp_path in path.parents for path in paths)


@pytest.mark.parametrize("run_id", ["", "../../../etc", ID[:-1], ID.upper()])
def test_an_id_that_leads_elsewhere_is_refused(run_id):
    with pytest.raises(DataError, match="hexadecimal"):
        ClientStore.of(run_id, 0)


def saved_before(round_):
    """The server's checkpoints when a round begins, of every tenth."""
    last = (round_ - 1) // 10 * 10
    return (last - 10, last) if last else (last,)


@pytest.mark.parametrize("died", range(11, 31))
def test_a_run_finds_what_it_goes_on_with_however_long_ago_its_checkpoint_is(
    tmp_path, died
):
    for round_ in range(1, died + 1):
        store = ClientStore(tmp_path / "client", saved_before(round_))
        store.save("thing", round_, {"x": np.array(round_)})
    last = (died - 1) // 10 * 10
    assert value(store, before=last + 1) == last
    # The checkpoint before is gone on from where the last is damaged.
    assert value(store, before=last - 9) == (last - 10 or None)
    assert len(list(store.path.iterdir())) <= KEPT + 3


def test_a_client_that_is_seldom_drawn_keeps_its_last_word(tmp_path):
    for round_ in (2, 11, 12, 13, 14, 15, 29):
        store = ClientStore(tmp_path / "client", saved_before(round_))
        store.save("thing", round_, {"x": np.array(round_)})
    assert [value(store, before=r) for r in (11, 21)] == [2, 15]


def test_what_goes_with_the_end_of_a_run_that_goes_on_is_kept(tmp_path):
    """Which is a checkpoint between those of every tenth round."""
    for round_ in range(1, 10):
        saved = (0,) if round_ < 4 else (0, 3)
        store = ClientStore(tmp_path / "client", saved)
        store.save("thing", round_, {"x": np.array(round_)})
    assert value(store, before=4) == 3
