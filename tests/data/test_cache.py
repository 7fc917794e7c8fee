from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from atlas_flwr.data.cache import cache_folder, filling
from atlas_flwr.errors import DataError


def _hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if not p.name.endswith(".lock")]


def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ATLAS_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("ATLAS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/atlas-flwr")


def test_of_many_who_come_at_once_one_fills_and_all_see_the_whole(
    tmp_path: Path,
) -> None:
    target, filled, seen = tmp_path / "a" / "thing", [], []

    def come() -> None:
        with filling(target) as work:
            if work is not None:
                filled.append(work)
                (work / "first").touch()
                time.sleep(0.05)
                (work / "second").touch()
        seen.append(sorted(p.name for p in target.iterdir()))

    threads = [threading.Thread(target=come) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(filled) == 1
    assert seen == [["first", "second"]] * 5


def test_a_filling_that_fails_leaves_nothing_and_can_be_tried_again(
    tmp_path: Path,
) -> None:
    target = tmp_path / "thing"

    def fail() -> None:
        with filling(target) as work:
            assert work is not None
            (work / "half").touch()
            raise RuntimeError("half done")

    with pytest.raises(RuntimeError, match="half done"):
        fail()
    assert _hidden(tmp_path) == []
    with filling(target) as work:
        assert work is not None
    assert target.is_dir()


def test_what_a_killed_process_left_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / ".thing-abc").mkdir()
    (tmp_path / ".other-abc").mkdir()
    with filling(tmp_path / "thing"):
        pass
    assert sorted(_hidden(tmp_path)) == [".other-abc", "thing"]


def test_a_cache_that_cannot_be_made_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = pytest.raises(DataError, match="ATLAS_CACHE")
    with refused, filling(tmp_path / "file" / "thing"):
        pass
