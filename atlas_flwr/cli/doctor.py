# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr doctor``: what this machine has, and what to do about what it has not.

Imports of what may be missing are inside the checks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shlex
import shutil
import socket
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Finding", "examine", "main"]

OLDEST_PYTHON = (3, 11)
WANTED_MEMORY = 6 << 30
WANTED_DISK = 2 << 30
DEPENDENCY_SWITCH = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
NAMED = 5  # runs in one line
SHARED_PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "39091"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes
    ----------
    name : str
        What was looked at.
    ok : bool
        Whether it is as it should be.
    detail : str
        What was found.
    remedy : str
        What to do where it is not ok.
    needed : bool
        Whether nothing works without.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = True

    def line(self) -> str:
        """Write it for the terminal."""
        state = "ok" if self.ok else "missing" if self.needed else "note"
        remedy = "" if self.ok else f"\n{'':10}-> {self.remedy}"
        return f"{state:8}  {self.name}: {self.detail}{remedy}"


def main(arguments: Sequence[str]) -> int:
    """Run the verb: 1 if something needed is missing."""
    parser = argparse.ArgumentParser(
        prog="atlas-flwr doctor",
        description="Check this machine; exit with 1 if something needed is missing.",
    )
    parser.add_argument(
        "--deployment",
        metavar="FOLDER",
        type=Path,
        help="check instead whether this machine can do its part in a deployment: "
        "FOLDER is its own, of `atlas-flwr provision`",
    )
    folder = parser.parse_args(arguments).deployment
    missing = []
    for finding in _of_folder(folder) if folder else examine():
        print(finding.line(), flush=True)
        if finding.needed and not finding.ok:
            missing.append(finding.name)
    print(f"\nmissing: {', '.join(missing)}" if missing else "\nready to run")
    return 1 if missing else 0


def _of_folder(folder: Path) -> Iterator[Finding]:
    from atlas_flwr.cli.deployment import examine_folder

    return examine_folder(folder)


def examine() -> Iterator[Finding]:
    """Yield all findings, cheap ones first."""
    yield _python()
    yield from _packages()
    yield from _tools()
    for check in CHECKS:
        try:
            yield check()
        except ImportError as error:
            name = check.__name__.strip("_").replace("_", " ")
            yield Finding(name, False, str(error), "pip install -e .")


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, OLDEST_PYTHON))
    remedy = f"make an environment with Python {wanted} or later"
    return Finding("Python", sys.version_info[:2] >= OLDEST_PYTHON, found, remedy)


def _packages() -> Iterator[Finding]:
    """Compare what is installed with what this library's metadata asks for."""
    try:
        wanted = importlib.metadata.requires("atlas-flwr") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("atlas-flwr", False, "not installed", "pip install -e .")
        return
    for requirement in wanted:
        if "extra ==" not in requirement:
            yield _package(requirement)


def _package(text: str) -> Finding:
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    remedy = f"pip install '{text}'"
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, False, "not installed", remedy)
    fits = requirement.specifier.contains(found, prereleases=True)
    detail = found if fits else f"{found}, wanted {requirement.specifier}"
    return Finding(requirement.name, fits, detail, remedy)


def _tools() -> Iterator[Finding]:
    for name in ("flwr", "flower-superlink", "flower-superexec", "flwr-simulation"):
        beside = Path(sys.executable).parent / name
        found = str(beside) if beside.is_file() else shutil.which(name)
        detail = found or "not found"
        yield Finding(name, bool(found), detail, "pip install 'flwr[simulation]'")


def _ray() -> Finding:
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        remedy = "pip install 'flwr[simulation]' (needs a Python that Ray supports)"
        return Finding("ray", False, "not installed", remedy)
    return Finding("ray", True, version)


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("torch runs", True, f"GPU: {torch.cuda.get_device_name(0)}")
    threads = torch.get_num_threads()
    return Finding("torch runs", True, f"CPU, {threads} threads; leave device='cpu'")


def _cores() -> Finding:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    remedy = "with one core use --client-cpus 1 and be patient"
    return Finding("CPU cores", count > 1, str(count), remedy, needed=False)


def _memory() -> Finding:
    import psutil

    size = psutil.virtual_memory().available
    remedy = (
        "close something, use a smaller model, or run fewer clients at once with "
        "--client-cpus 2"
    )
    return Finding("free memory", size >= WANTED_MEMORY, _gib(size), remedy, False)


def _disk() -> Finding:
    from atlas_flwr.data import cache_folder

    folder = cache_folder()
    there = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(there).free
    remedy = "free some space, or set ATLAS_CACHE to a folder on another disk"
    return Finding(
        f"disk at {there}", free >= WANTED_DISK, f"{_gib(free)} free", remedy
    )


def _downloads() -> Finding:
    from atlas_flwr.config import RunConfig
    from atlas_flwr.data import cache_folder

    folder = cache_folder()
    model = RunConfig().model
    models = sorted(path.name for path in folder.glob("models/[!.]*"))
    texts = sorted(path.name for path in folder.glob("packages/[!.]*"))
    ok = any(name.startswith(f"{model}-v") for name in models) and bool(texts)
    detail = ", ".join([*models, *texts]) or f"nothing in {folder}"
    remedy = "`atlas-flwr fetch` (or the first run) downloads some 130 MB"
    return Finding("weights and text", ok, detail, remedy, needed=False)


def _recorded_texts() -> Finding:
    """Look for clients' texts that record-wire=true left in the clear."""
    from atlas_flwr.data import cache_folder

    folder = cache_folder() / "clients"
    kept = {path.parents[1] for path in folder.glob("*/*/wire-*")}
    if not kept:
        return Finding("recorded texts", True, f"none in {folder}")
    runs = sorted(path.name for path in kept)
    detail = (
        f"record-wire=true left texts in the clear in {folder}, of {len(runs)} "
        f"run{'s' * (len(runs) != 1)}: broken, going on, or with the server elsewhere"
    )
    named = [shlex.quote(str(folder / run)) for run in runs[:NAMED]]
    places = " ".join(f"{place}/*/wire-*" for place in named)
    more = f", and of {len(runs) - NAMED} more" * (len(runs) > NAMED)
    remedy = f"when nobody will attack or resume them: rm {places}{more}"
    return Finding("recorded texts", False, detail, remedy, needed=False)


def _flower_home() -> Finding:
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    path = home / "config.toml"
    if not path.is_file():
        return Finding(
            "Flower's config", True, f"{path} not there yet: `flwr` makes it"
        )
    try:
        section = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return Finding("Flower's config", False, f"{path}: {error}", f"repair {path}")
    return Finding(
        "Flower's config", True, f"{path}, default: {section.get('default')}"
    )


def _dependency_switch() -> Finding:
    value = os.environ.get(DEPENDENCY_SWITCH)
    remedy = (
        f"export {DEPENDENCY_SWITCH}=1 before `flwr run` starts its SuperLink, or it "
        "will `uv sync` gigabytes for each run; `atlas-flwr run` sets it itself"
    )
    detail = f"{DEPENDENCY_SWITCH}={value or ''}"
    return Finding("installs at run time", value == "1", detail, remedy, needed=False)


def _shared_superlink() -> Finding:
    name, preset = SHARED_PORT
    told = os.environ.get(name, preset)
    if not told.isdecimal() or int(told) > 65535:
        detail, remedy = f"{name}={told!r} is no port", f"unset {name}"
        return Finding("shared SuperLink", False, detail, remedy, needed=False)
    port = int(told)
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    detail = f"port {port} is {'in use' if taken else 'free'}"
    remedy = (
        "a SuperLink that `flwr run` started is up: it keeps the folder and "
        "environment it began with; end it if that was another checkout. "
        "`atlas-flwr run` does not use it"
    )
    return Finding("shared SuperLink", not taken, detail, remedy, needed=False)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


CHECKS: tuple[Callable[[], Finding], ...] = (
    _ray,
    _torch,
    _cores,
    _memory,
    _disk,
    _downloads,
    _recorded_texts,
    _flower_home,
    _dependency_switch,
    _shared_superlink,
)
