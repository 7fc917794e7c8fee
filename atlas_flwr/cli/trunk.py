# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr trunk``: the trunk alone, on a machine of its own."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from atlas_flwr.cli.gate import ACCESS, Gate, gate_of, kept_access
from atlas_flwr.cli.overrides import app_defaults, parse_overrides
from atlas_flwr.cli.preflight import placed
from atlas_flwr.cli.run import add_run_config
from atlas_flwr.errors import ConfigError

if TYPE_CHECKING:
    from atlas_flwr.config import RunConfig
    from atlas_flwr.trunk.transports.certificates import Identity
    from atlas_flwr.trunk.transports.watching import Journal

__all__ = ["Outlook", "main", "serve"]


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(
        prog="atlas-flwr trunk",
        description="Serve the trunk of a run on this machine, over TLS, until it is "
        "ended. The folder that it keeps holds access.json, which the ServerApp's "
        "machine needs: runs with trunk-access='access.json' and the same run config "
        "open their sessions here. trunk-batch, trunk-limit, trunk-queue, "
        "trunk-rate, trunk-recompute and trunk-threads are given here alone.",
    )
    parser.add_argument("app", nargs="?", default=".", type=Path, help="app's folder")
    add_run_config(parser)
    parser.add_argument(
        "--listen", metavar="HOST:PORT", default="127.0.0.1:0", help="where to listen"
    )
    parser.add_argument(
        "--advertise",
        metavar="HOST[:PORT]",
        default="",
        help="what ServerApp and clients dial; empty is that of --listen. It is the "
        "name in the certificate",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("trunk"),
        help="keeps certificate, key and access.json; made if missing (trunk)",
    )
    parser.add_argument(
        "--cert", type=Path, help="your own certificate, PEM; default: one is made"
    )
    parser.add_argument("--key", type=Path, help="its private key, PEM")
    parser.add_argument(
        "--ca",
        type=Path,
        help="the authority that clients check --cert by; default: their system's",
    )
    parser.add_argument(
        "--client-ca",
        metavar="FILE",
        type=Path,
        help="mutual TLS: who shows no certificate of an authority in this file, PEM, "
        "is refused before any call. The ServerApp shows one, too:",
    )
    parser.add_argument(
        "--owner-cert",
        metavar="FILE",
        default="",
        help="its certificate, PEM, which goes into access.json; default: that there",
    )
    parser.add_argument(
        "--owner-key", metavar="FILE", default="", help="its private key, PEM; likewise"
    )
    parser.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        default="",
        help="serve /metrics for Prometheus, /healthz and /readyz here, in the clear; "
        "without HOST to this machine alone",
    )
    parser.add_argument(
        "--audit",
        metavar="FILE",
        type=Path,
        help="append a line of JSON for who joined, trained and was refused",
    )
    parser.add_argument(
        "--log-json", action="store_true", help="print such lines instead of words"
    )
    given = parser.parse_args(arguments)
    if (given.cert is None) != (given.key is None) or (given.ca and not given.cert):
        raise ConfigError(["--cert and --key belong together, and --ca to them"])
    shown = _own_identity(given.cert, given.key, given.ca)
    gate = gate_of(given)
    from atlas_flwr.config.lone_trunk import load_lone_trunk
    from atlas_flwr.wire.codecs import CODEC_CHOICES

    defaults, _ = app_defaults(given.app)
    keys = {**defaults, **placed(parse_overrides(given.run_config))}
    known = {"codec": CODEC_CHOICES}
    config = load_lone_trunk(keys, known, given.listen, given.advertise)
    with _audit(given.audit) as audit:
        outlook = Outlook(given.metrics, audit, given.log_json)
        serve(config, given.folder, shown, outlook, gate)
    return 0


@dataclass(frozen=True)
class Outlook:
    """What others are to see of a trunk.

    Attributes
    ----------
    metrics : str
        Where Prometheus asks; empty: nowhere.
    audit : TextIO, optional
        Gets a line for each event.
    as_json : bool
        Print events, and what else is said, as JSON.
    """

    metrics: str = ""
    audit: TextIO | None = None
    as_json: bool = False

    def journal(self) -> Journal | None:
        """Return what writes the events; ``None`` where nobody reads them."""
        from atlas_flwr.trunk.transports.watching import Journal

        files = [self.audit, sys.stdout if self.as_json else None]
        kept = [file for file in files if file is not None]
        return Journal(kept) if kept else None

    def say(self, text: str, journal: Journal | None, event: str) -> None:
        """Say what the trunk does."""
        if journal:
            journal.write(event, said=text)
        if not self.as_json:
            print(text, flush=True)


@contextmanager
def _audit(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise ConfigError([f"--audit {path}: {error.strerror}"]) from None
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        yield file


def _own_identity(
    cert: Path | None, key: Path | None, ca: Path | None
) -> Identity | None:
    from atlas_flwr.trunk.credentials import Credentials
    from atlas_flwr.trunk.transports.certificates import Identity

    if cert is None or key is None:
        return None
    try:
        authority = ca.read_bytes() if ca else b""
        found = Identity(cert.read_bytes(), key.read_bytes(), authority)
        Credentials(found.certificate, found.key).check(datetime.now(UTC))
    except OSError as error:
        raise ConfigError([f"{error.filename}: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigError([f"--cert {cert}, --key {key}: {error}"]) from None
    return found


def serve(
    config: RunConfig,
    folder: Path,
    identity: Identity | None,
    outlook: Outlook = Outlook(),
    gate: Gate | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; calls that are open then may end."""
    from atlas_flwr.config.parsing import parse_address
    from atlas_flwr.server_apps.build import covering_plan
    from atlas_flwr.server_apps.trunk import trunk_source
    from atlas_flwr.train.same_model import described
    from atlas_flwr.train.weights import ModelFiles
    from atlas_flwr.trunk.transports.access import Access
    from atlas_flwr.trunk.transports.certificates import kept_identity
    from atlas_flwr.trunk.transports.grpc import ServeOptions, serve_grpc
    from atlas_flwr.trunk.transports.ownership import OwnerService
    from atlas_flwr.trunk.transports.rates import Rates
    from atlas_flwr.trunk.transports.watching import Watch

    files = ModelFiles.of(config, config.server_device)
    outline = files.outline()
    plan = covering_plan(config, outline)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    dialled = parse_address(config.trunk_advertise or config.trunk_listen)[0]
    shown = identity or kept_identity(folder, dialled)
    kept = kept_access(folder / ACCESS)
    # So that a trunk may be started anew.
    secret = kept.secret if kept else secrets.token_urlsafe(32)
    journal = outlook.journal()
    outlook.say(f"loading the trunk of {config.model}", journal, "loading")
    engine = trunk_source(config, files, plan).engine(own_threads=True)
    served = described(files, outline, plan, start=secrets.token_hex(8))
    owner = OwnerService(engine, secret, served, journal=journal)
    wanted = gate.authorities if gate else None
    options = ServeOptions(
        config.trunk_listen,
        config.trunk_advertise,
        shown,
        wanted,
        rates=Rates(config.trunk_rate),
    )
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ready = threading.Event()
    with ExitStack() as stack:
        watch = Watch(journal) if journal else None
        if outlook.metrics:
            from atlas_flwr.trunk.transports.metrics import TrunkMetrics, serve_metrics

            metrics = TrunkMetrics(engine.stats)
            watch = Watch(journal, metrics.heard)
            place = serve_metrics(outlook.metrics, metrics, ready.is_set)
            seen = f"metrics and health: {stack.enter_context(place)}"
            outlook.say(seen, journal, "metrics")
        address = stack.enter_context(serve_grpc(engine, options, owner, watch))
        own = (gate.owner.certificate.decode(), gate.owner.key.decode()) if gate else ()
        Access(address, shown.ca.decode(), secret, *own).write(folder / ACCESS)
        ready.set()
        outlook.say(
            f"the trunk of {config.model} serves at {address}\n"
            f"owner's file: {(folder / ACCESS).resolve()} (secret: copy it to the "
            "ServerApp's machine, and run there with trunk-access)",
            journal,
            "serving",
        )
        ended.wait()
        ready.clear()
        outlook.say("ending: open calls may finish", journal, "ending")
