# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr doctor --deployment``: whether a machine can do its part in a site.

Flower says little of what is wrong: an unregistered key, a clock that is 6 s ahead and
a wrong certificate look alike. What is looked at here is told by its name.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atlas_flwr.cli.dialling import Dialled, dialled, why_not
from atlas_flwr.cli.doctor import Finding
from atlas_flwr.config.parsing import parse_address
from atlas_flwr.errors import ConfigError

__all__ = ["examine_folder"]

AHEAD, BEHIND = 5.0, 300.0  # seconds of a node's clock that Flower 1.41 bears
NEAR = 2.0  # seconds of either that are worth a word
SOON = 30  # days
SECRETS = ("*.key", "access.json")
RESEND = "ask who made it for this folder, whole"
NTP = "let NTP set it: `timedatectl set-ntp true`, or your site's time service"


@dataclass(frozen=True)
class _Folder:
    path: Path
    about: dict[str, Any]
    clock: Callable[[], float]


def examine_folder(
    path: Path, clock: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """Yield all findings, those that need no network first.

    Parameters
    ----------
    path : Path
        As ``atlas-flwr provision`` made it.
    clock : Callable[[], float]
        This machine's.
    """
    try:
        about = json.loads((path / "site.json").read_text(encoding="utf-8"))
        folder = _Folder(path, about, clock)
        link, wanted = str(about["link"]), dict(about["versions"])
        site = str(about["site"])
        for place in (link, about.get("trunk")):
            _check_place(place)
    except (OSError, ValueError, TypeError, KeyError) as error:
        detail = f"{path}: no site.json that can be read ({error})"
        remedy = "give a folder that `atlas-flwr provision` made"
        yield Finding("folder", False, detail, remedy)
        return
    yield Finding("folder", True, f"{about.get('role')} {about.get('name')} of {site}")
    yield _sums(folder)
    yield from _secrets(folder)
    for name, version in wanted.items():
        yield _version(name, str(version))
    yield from _certificates(folder)
    if about.get("trunk-mutual"):
        yield _shown_to_trunk(folder)
    if (path / "node.key").exists() or about.get("role") == "node":
        yield _key(folder)
    try:
        trusted = ssl.create_default_context(cafile=path / "ca.crt")
    except OSError as error:  # TLS's own errors among them
        detail = f"was not dialled: ca.crt cannot be used ({error})"
        yield Finding("SuperLink", False, detail, RESEND)
        return
    yield from _link(folder, link, trusted)
    if about.get("trunk"):
        yield _trunk(folder, str(about["trunk"]), trusted)


def _check_place(place: object) -> None:
    """Refuse what is no address to dial; where there is no trunk it is ``None``."""
    if place is not None and parse_address(str(place))[1] is None:
        raise ValueError(f"{place!r} has no port")


def _sums(folder: _Folder) -> Finding:
    try:
        lines = (folder.path / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        return Finding("checksums", False, f"{error}", RESEND, needed=False)
    changed = []
    for line in lines:
        digest, _, name = line.partition("  ")
        changed += _changed(folder.path / name, name, digest)
    detail = ", ".join(changed) or f"{len(lines)} files are as they were sent"
    remedy = f"if you did not do that: {RESEND}"
    return Finding("checksums", not changed, detail, remedy, needed=False)


def _changed(file: Path, name: str, digest: str) -> list[str]:
    """Say what is wrong with a file that was sent, if anything is."""
    if not file.is_file():
        return [f"{name} is not there"]
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:  # as another user's, who the service runs as
        return [f"{name} cannot be read ({error.strerror})"]
    return [] if found == digest else [f"{name} was changed"]


def _secrets(folder: _Folder) -> Iterator[Finding]:
    for kind in SECRETS:
        for file in sorted(folder.path.glob(kind)):
            mode = file.stat().st_mode & 0o777
            detail = f"{file.name} has mode {mode:04o}"
            yield Finding("secret", not mode & 0o077, detail, f"chmod 600 {file}")


def _version(name: str, wanted: str) -> Finding:
    remedy = f"pip install {name}=={wanted}, as the other machines have"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", remedy)
    same = found.split(".")[:2] == wanted.split(".")[:2]
    detail = found if same else f"{found}; the site was made with {wanted}"
    return Finding(name, same, detail, remedy)


def _certificates(folder: _Folder) -> Iterator[Finding]:
    from cryptography import x509

    try:
        ca = x509.load_pem_x509_certificate((folder.path / "ca.crt").read_bytes())
    except (OSError, ValueError) as error:
        yield Finding("authority", False, f"ca.crt: {error}", RESEND)
        return
    yield _dates("authority", "ca.crt", ca, folder.clock())
    if folder.about.get("role") != "node":
        yield _own_certificate(folder, ca)


def _own_certificate(folder: _Folder, ca: Any) -> Finding:
    """Look at what a server shows: of the authority, of its key, and its dates."""
    from cryptography.exceptions import InvalidSignature

    from atlas_flwr.trunk.credentials import Credentials

    name, files = "certificate", ("server.pem", "server.key")
    try:
        shown = Credentials(*((folder.path / file).read_bytes() for file in files))
        shown.own.verify_directly_issued_by(ca)
    except OSError as error:
        detail = f"{Path(error.filename).name}: {error.strerror}"
        return Finding(name, False, detail, RESEND)
    except (ValueError, TypeError, InvalidSignature) as error:
        detail = f"server.pem is not of ca.crt ({type(error).__name__})"
        return Finding(name, False, detail, RESEND)
    try:
        shown.check_key()
    except ValueError as error:
        return Finding(name, False, f"server.pem, server.key: {error}", RESEND)
    return _dates(name, "server.pem", shown.own, folder.clock())


def _shown_to_trunk(folder: _Folder) -> Finding:
    """Look at what a node or the ServerApp shows the trunk, which asks for it."""
    from atlas_flwr.trunk.credentials import Credentials
    from atlas_flwr.trunk.transports.access import Access

    name, path = "certificate for the trunk", folder.path
    node = folder.about.get("role") == "node"
    where = "trunk.pem" if node else "access.json"
    try:
        if node:
            pair = (path / "trunk.pem", path / "trunk.key")
            shown: Credentials | None = Credentials(*(p.read_bytes() for p in pair))
        else:
            shown = Access.read(path / "access.json", checked=False).shown
        if shown is None:
            return Finding(name, False, f"{where} has none", RESEND)
        here = datetime.fromtimestamp(folder.clock(), UTC)
        shown.check(here, (path / "ca.crt").read_bytes())
        certificate = shown.own
    except (OSError, ValueError, ConfigError) as error:
        return Finding(name, False, f"{where}: {error}", RESEND)
    return _dates(name, where, certificate, folder.clock())


def _dates(name: str, file: str, certificate: Any, now: float) -> Finding:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    here = datetime.fromtimestamp(now, UTC)
    days = (ends - here).days
    if here < begins:
        detail = f"{file} begins at {begins:%Y-%m-%d %H:%M} UTC; here it is {here:%c}"
        return Finding(name, False, detail, NTP)
    renewed = "ask who made this folder for a new one (`provision --authority`)"
    if here > ends:
        detail = f"{file} ended at {ends:%Y-%m-%d %H:%M} UTC; here it is {here:%c}"
        remedy = f"{renewed}; if this date is wrong, {NTP}"
        return Finding(name, False, detail, remedy)
    detail = f"{file} is valid until {ends:%Y-%m-%d}, {days} days"
    return Finding(name, days > SOON, detail, renewed, needed=False)


def _key(folder: _Folder) -> Finding:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        load_ssh_private_key,
        load_ssh_public_key,
    )

    make = 'ssh-keygen -t ecdsa -b 384 -N "" -f node.key, and have its .pub registered'
    try:
        key = load_ssh_private_key((folder.path / "node.key").read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        return Finding("key", False, f"node.key: {error}", make)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return Finding("key", False, "node.key is of no elliptic curve", make)
    try:
        public = load_ssh_public_key((folder.path / "node.pub").read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        detail = f"node.key is well ({key.curve.name}); node.pub: {error}"
        remedy = "ssh-keygen -y -f node.key >node.pub"
        return Finding("key", False, detail, remedy, needed=False)
    detail = f"node.key is {key.curve.name}, and node.pub is its public half"
    if public == key.public_key():
        return Finding("key", True, detail)
    return Finding(
        "key",
        False,
        "node.pub is not the public half of node.key",
        "ssh-keygen -y -f node.key >node.pub, and have that registered",
        needed=False,
    )


def _link(folder: _Folder, address: str, trusted: ssl.SSLContext) -> Iterator[Finding]:
    yield from _proxy(address)
    found = dialled(address, trusted, folder.clock)
    open_ = f"open {address} from here in both firewalls; does the SuperLink run?"
    if found.closed:
        yield Finding("SuperLink's port", False, f"{address}: {found.closed}", open_)
        return
    yield Finding("SuperLink's port", True, f"{address} answers")
    if found.refused is None:
        names = ", ".join(found.names)
        detail = f"{address} shows a certificate of ca.crt, for {names}"
        yield Finding("SuperLink's certificate", True, detail)
    else:
        detail, remedy = why_not(found.refused, address)
        yield Finding("SuperLink's certificate", False, detail, remedy)
    if found.plain is None:
        yield _clock(found)


def _clock(found: Dialled) -> Finding:
    if found.date is None:
        detail = "the SuperLink told no date, so nothing was compared"
        return Finding("clock", False, detail, NTP, needed=False)
    # A date is cut to whole seconds: on the average it is half a second old.
    ahead = found.asked - (found.date.timestamp() + 0.5)
    how = "ahead of" if ahead > 0 else "behind"
    trusted = "" if found.refused is None else ", unproved: its certificate was refused"
    detail = (
        f"{abs(ahead):.1f} s {how} the SuperLink's (this machine's clock against the "
        f"date in its HTTP answer, to a second{trusted}); Flower bears {AHEAD:.0f} s "
        f"ahead, {BEHIND:.0f} s behind"
    )
    bad = ahead > AHEAD or ahead < -BEHIND
    return Finding("clock", abs(ahead) <= NEAR, detail, NTP, needed=bad)


def _proxy(address: str) -> Iterator[Finding]:
    host = address.rpartition(":")[0].strip("[]")
    proxy = urllib.request.getproxies().get("https")
    if proxy and not urllib.request.proxy_bypass(host):
        detail = f"https_proxy={proxy} stands between; what follows goes round it"
        remedy = f"no_proxy={host}, unless the proxy is the only way"
        yield Finding("proxy", False, detail, remedy, needed=False)


def _trunk(folder: _Folder, address: str, trusted: ssl.SSLContext) -> Finding:
    lasting = bool(folder.about.get("trunk-lasts"))
    found = dialled(address, trusted, folder.clock, http=False)
    # Inside the ServerApp it lives as long as a run, whose authority is its own.
    when = "start it" if lasting else "it is there while a run is: look again then"
    if found.closed:
        remedy = f"{when}; else open {address} from here in both firewalls"
        detail = f"{address}: {found.closed}"
        return Finding("trunk's port", False, detail, remedy, needed=False)
    if lasting and found.refused is not None:
        detail, remedy = why_not(found.refused, address)
        return Finding("trunk's certificate", False, detail, remedy)
    proved = ", with a certificate of ca.crt" if lasting else ""
    return Finding("trunk's port", True, f"{address} answers{proved}")
