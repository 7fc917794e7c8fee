# SPDX-License-Identifier: Apache-2.0
"""A SuperLink of one's own, for as long as some runs take.

``flwr run .`` would start one too, but share it with every other app of the user, give
it 15 seconds, install the app's dependencies anew for each run, and leave it behind
with the folder and environment that it happened to be started from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atlas_flwr.cli.overrides import Value
from atlas_flwr.cli.processes import end_tree, ended_by_signals, piped
from atlas_flwr.errors import AtlasError, ConfigError
from atlas_flwr.sites.scripts import toml

__all__ = ["Federation", "LaunchError", "SuperLink", "private_superlink"]

START_TIMEOUT = 180.0
PROGRESS_FILE = "ATLAS_PROGRESS"  # see atlas_flwr.server_apps.progress
STARTED = re.compile(r"Successfully started run (\d+)")
# What Flower says of every run, and what is no news to who started it here.
CHATTER = re.compile(
    r"Successfully installed \S+ to |default simulated SuperNodes changed from"
    r"|Manually terminating ClientAppActor"
)
FAILED = "finished:failed"
WORDLESS = (
    "the run failed without a word: its process was ended from outside, perhaps for "
    "want of memory; --verbose shows what Flower says\n"
)
CONNECTION = """\
[superlink]
default = "private"

[superlink.private]
address = "127.0.0.1:{port}"
insecure = true
"""


class LaunchError(AtlasError, RuntimeError):
    """Flower's SuperLink or its command line did not do what was asked."""


@dataclass(frozen=True)
class Federation:
    """Simulated clients.

    Attributes
    ----------
    num_supernodes : int
        How many.
    client_cpus : int
        CPUs that Ray reserves for each; the machine's by this number run at once.
    client_gpus : float
        GPUs that Ray reserves for each.
    extra : str
        More of Flower's ``--federation-config``, as it is.

    Raises
    ------
    ConfigError
        If Ray could not reserve that.
    """

    num_supernodes: int = 8
    client_cpus: int = 1
    client_gpus: float = 0.0
    extra: str = ""

    def __post_init__(self) -> None:
        problems = []
        if self.client_cpus < 1:
            problems.append(f"--client-cpus {self.client_cpus}: at least 1 for each")
        if not 0 <= self.client_gpus < float("inf"):
            problems.append(
                f"--client-gpus {self.client_gpus:g}: 0, or a part of one above it"
            )
        if problems:
            raise ConfigError(problems)

    def slots(self) -> int | None:
        """Return how many clients run at once; ``None`` if more than CPUs decides."""
        if self.client_gpus or self.extra:
            return None
        return max((os.cpu_count() or 1) // self.client_cpus, 1)

    def text(self) -> str:
        """Write it as Flower's ``--federation-config``."""
        return (
            f"num-supernodes={self.num_supernodes} "
            f"client-resources-num-cpus={self.client_cpus} "
            f"client-resources-num-gpus={float(self.client_gpus)} {self.extra}"
        ).strip()


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink; made by :func:`private_superlink`.

    Attributes
    ----------
    app : Path
        Folder of the app, where the SuperLink was started.
    home : Path
        Its ``FLWR_HOME``.
    environment : Mapping[str, str]
        With which Flower's commands find it.
    verbose : bool
        Show what Flower says, too.
    """

    app: Path
    home: Path
    environment: Mapping[str, str]
    verbose: bool = True

    def run(self, overrides: Mapping[str, Value], federation: Federation) -> str:
        """Run the app, pass its log on to stdout, and return its final status.

        In a terminal its progress is drawn below.

        Returns
        -------
        str
            As ``flwr list`` says: ``finished:completed``, ``finished:failed``...

        Raises
        ------
        LaunchError
            When Flower refused to start the run.
        """
        path = self.home / "overrides.toml"
        path.write_text(toml(overrides), encoding="utf-8")
        command = [_tool("flwr"), "run", str(self.app), "private", "--stream"]
        command += ["--federation-config", federation.text()]
        if overrides:
            command += ["--run-config", str(path)]
        progress = self.environment.get(PROGRESS_FILE)
        if not progress:
            return self._followed(command, _say)
        from atlas_flwr.cli.live import live

        Path(progress).unlink(missing_ok=True)  # of the run before
        with live(Path(progress), federation.slots()) as say:
            return self._followed(command, say)

    def _followed(self, command: Sequence[str], say: Callable[[str], None]) -> str:
        """Pass a run's output on to its end; say so if it failed and has not."""
        run_id, complained = self._stream(command, say)
        status = self._final_status(run_id)
        if status == FAILED and not complained:
            say(WORDLESS)
        return status

    def _stream(
        self, command: Sequence[str], say: Callable[[str], None]
    ) -> tuple[str, bool]:
        """Pass a command's output on; return the run's id, and if it had errors."""
        run_id, held, complained = "", [], False
        with piped(command, self.environment) as process:
            for line in process.stdout or ():
                found = STARTED.search(line)
                run_id = found[1] if found else run_id
                complained |= "ERROR" in line or line.startswith("error: ")
                if self.verbose:
                    say(line)
                elif not run_id:
                    held.append(line)
                elif not found and not CHATTER.search(line):
                    say(line)
        if not run_id:
            for line in held:
                say(line)
            raise LaunchError(
                f"`flwr run` started no run (exit code {process.returncode}); what it "
                "said is above"
            )
        return run_id, complained

    def _final_status(self, run_id: str) -> str:
        # The log stream may end before the run does, when the connection breaks.
        while not (status := self.status(run_id)).startswith("finished"):
            time.sleep(1)
        return status

    def status(self, run_id: str) -> str:
        """Ask for a run's status."""
        listed = subprocess.run(
            [_tool("flwr"), "list", "private", "--run-id", run_id, "--format", "json"],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
        )
        start = listed.stdout.find("{")
        if listed.returncode or start < 0:
            said = (listed.stdout + listed.stderr).strip()
            raise LaunchError(f"`flwr list` failed: {said}")
        answer = json.loads(listed.stdout[start:])
        return str(answer["runs"][0]["status"])


@contextmanager
def private_superlink(app: Path, verbose: bool = False) -> Iterator[SuperLink]:
    """Start a SuperLink in the app's folder, and end it with all that it started.

    Parameters
    ----------
    app : Path
        Folder with the app's ``pyproject.toml``.
    verbose : bool
        Show all that Flower says, and draw nothing.

    Raises
    ------
    LaunchError
        When it is not up within three minutes; with the end of its log.
    """
    home = Path(tempfile.mkdtemp(prefix="atlas-flwr-"))
    port = _free_port()
    (home / "config.toml").write_text(CONNECTION.format(port=port), encoding="utf-8")
    environment = _environment(home, verbose)
    try:
        with ended_by_signals(), _superlink(app, home, port, environment):
            yield SuperLink(app.resolve(), home, environment, verbose)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _environment(home: Path, verbose: bool) -> dict[str, str]:
    tools = str(Path(sys.executable).parent)
    found = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    # Else Ray joins whatever cluster a file in /tmp/ray names, were it long dead.
    found.setdefault("RAY_ADDRESS", "local")
    found.setdefault("FLWR_LOG_LEVEL", "INFO" if verbose else "WARNING")
    if verbose:
        return found
    found.setdefault("PYTHONWARNINGS", "ignore:Tip:FutureWarning")  # Ray's, each time
    if sys.stdout.isatty():
        found[PROGRESS_FILE] = str(home / "progress.json")
    return found


def _say(line: str) -> None:
    print(line, end="", flush=True)


@contextmanager
def _superlink(
    app: Path, home: Path, port: int, environment: Mapping[str, str]
) -> Iterator[None]:
    log = home / "superlink.log"
    command = [_tool("flower-superlink"), "--insecure", "--simulation"]
    command += ["--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=app,
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C ends the run first, then this
        )
    try:
        _wait_until_up(process, port, log)
        yield
    finally:
        end_tree(process)


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LaunchError(
                f"flower-superlink ended with exit code {process.returncode}:\n"
                f"{_tail(log)}"
            )
        if _healthy(port):
            return
        time.sleep(0.3)
    raise LaunchError(
        f"flower-superlink was not up after {START_TIMEOUT:.0f} s:\n{_tail(log)}"
    )


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as up:
            return bool(up.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _tail(log: Path, lines: int = 20) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tool(name: str) -> str:
    """Find a command of Flower's beside this Python, or else on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise LaunchError(f"{name} is not installed: pip install 'flwr[simulation]'")
    return found
