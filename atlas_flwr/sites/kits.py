# SPDX-License-Identifier: Apache-2.0
"""Folders that the owners of a deployment's machines are sent, keys and all."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from atlas_flwr import __version__
from atlas_flwr.errors import SiteError
from atlas_flwr.sites import readmes, run_configs, scripts
from atlas_flwr.sites.description import Link, Node, Site, Trunk, joined
from atlas_flwr.trunk.transports.access import Access
from atlas_flwr.trunk.transports.certificates import Authority, Identity

__all__ = ["ABOUT", "SUMS", "within_authority", "write_kits"]

ABOUT = "site.json"
SUMS = "SHA256SUMS"
SECRET, SCRIPT, PLAIN = 0o600, 0o755, 0o644


@dataclass(frozen=True)
class _File:
    content: str | bytes
    mode: int = PLAIN


_Kit = dict[str, _File]


def write_kits(site: Site, out: Path, authority: Path | None = None) -> list[Path]:
    """Write all folders of a site, or none.

    Parameters
    ----------
    site : Site
        What for.
    out : Path
        Must not exist.
    authority : Path, optional
        The folder ``authority`` of an earlier call, to sign with.

    Returns
    -------
    list[Path]
        The folders.

    Raises
    ------
    SiteError
        If ``out`` exists or cannot be written, or the authority is no use.
    """
    if out.exists():
        raise SiteError(
            [f"{out} exists, and keys are never written over: give another --out"]
        )
    kits = _kits(within_authority(site, authority), authority)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Under its name only when it is whole.
        unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            for name, kit in kits.items():
                _write(unfinished / name, kit)
            unfinished.rename(out)
        except BaseException:
            shutil.rmtree(unfinished)
            raise
    except OSError as error:
        raise SiteError([f"--out {out} cannot be written: {error}"]) from None
    return [out / name for name in kits]


def within_authority(site: Site, authority: Path | None) -> Site:
    """Return a site whose certificates last no longer than what signs them.

    Parameters
    ----------
    site : Site
        As it is described.
    authority : Path, optional
        See :func:`write_kits`.

    Raises
    ------
    SiteError
        If the authority cannot be read, or ends within a day.
    """
    if authority is None:
        return site
    ends = _known(authority).ends
    days = (ends - datetime.now(UTC)).days
    if days < 1:
        raise SiteError(
            [
                f"--authority {authority}: it ends at {ends:%Y-%m-%d %H:%M} UTC, and "
                "nobody trusts what it signs after that: leave it out, and send all "
                "machines their new folders"
            ]
        )
    return replace(site, days=min(site.days, days))


def _kits(site: Site, authority: Path | None) -> dict[str, _Kit]:
    life = timedelta(days=site.days)
    signer = _known(authority) if authority else Authority.made(f"{site.name} CA", life)
    keys = {node.name: _node_key() for node in site.nodes}
    kits = {
        f"nodes/{node.name}": _node(node, n, site) for n, node in enumerate(site.nodes)
    }
    for name, (private, public) in keys.items():
        kits[f"nodes/{name}"] |= {
            "node.key": _File(private, SECRET),
            "node.pub": _File(public),
        }
    link = signer.identity(f"{site.name} SuperLink", site.link.host, life)
    kits["link"] = _link(site.link, site) | _shown(link)
    kits["link"] |= {f"nodes/{name}.pub": _File(pub) for name, (_, pub) in keys.items()}
    if site.trunk:
        trunk = signer.identity(f"{site.name} trunk", site.trunk.host, life)
        address = f"grpcs://{joined(site.trunk.host, site.trunk.port)}"
        access = Access(address, trunk.ca.decode(), secrets.token_urlsafe(32))
        if site.trunk.mutual:
            own = signer.credentials(f"{site.name} ServerApp", life)
            pair = own.certificate.decode(), own.key.decode()
            access = replace(access, certificate=pair[0], key=pair[1])
        kits["trunk"] = _trunk(site.trunk, site) | _shown(trunk)
        for role in ("trunk", "link"):
            kits[role]["access.json"] = _File(access.to_json(), SECRET)
    for node in site.nodes if site.mutual else ():
        theirs = signer.credentials(f"{site.name} node {node.name}", life)
        kits[f"nodes/{node.name}"] |= {
            "trunk.pem": _File(theirs.certificate),
            "trunk.key": _File(theirs.key, SECRET),
        }
    for name, kit in kits.items():
        kit["ca.crt"] = _File(signer.certificate)
        kit[ABOUT] = _File(_about(name, site))
    kits["authority"] = {
        "ca.key": _File(signer.key, SECRET),
        "ca.crt": _File(signer.certificate),
        "README.md": _File(readmes.authority_readme(site)),
    }
    return kits


def _node(node: Node, number: int, site: Site) -> _Kit:
    about = f"SuperNode {node.name} of {site.name}"
    return {
        "start.sh": _File(scripts.node_start(node, number, site), SCRIPT),
        f"atlas-flwr-{node.name}.service": _File(
            scripts.unit(
                about,
                f"nodes/{node.name}",
                [*site.config.values(), *node.config.values()],
            )
        ),
        "compose.yaml": _File(scripts.compose("node", (), None)),
        "README.md": _File(readmes.node_readme(node, site, _flwr())),
    }


def _link(link: Link, site: Site) -> _Kit:
    own = (link.trunk_port,) if link.trunk_port else ()
    return {
        "start.sh": _File(scripts.link_start(link), SCRIPT),
        "flwr.sh": _File(scripts.flower_cli(site), SCRIPT),
        "register.sh": _File(scripts.registration(site), SCRIPT),
        "run.sh": _File(scripts.run_start(site), SCRIPT),
        "run.toml": _File(scripts.toml(run_configs.for_run(site))),
        "atlas-flwr-link.service": _File(
            scripts.unit(
                f"SuperLink of {site.name}",
                "link",
                site.config.values(),
                site.config.get("runs-dir", ""),
            )
        ),
        "compose.yaml": _File(scripts.compose("link", (link.port, *own), site.app)),
        "README.md": _File(readmes.link_readme(link, site, _flwr())),
    }


def _trunk(trunk: Trunk, site: Site) -> _Kit:
    return {
        "start.sh": _File(scripts.trunk_start(trunk, site), SCRIPT),
        "run.toml": _File(scripts.toml(run_configs.for_trunk(site))),
        "atlas-flwr-trunk.service": _File(
            scripts.unit(
                f"trunk of {site.name}", "trunk", [site.app, *site.config.values()]
            )
        ),
        "compose.yaml": _File(scripts.compose("trunk", (trunk.port,), site.app)),
        "README.md": _File(readmes.trunk_readme(trunk, site, _flwr())),
    }


def _shown(identity: Identity) -> _Kit:
    return {
        "server.pem": _File(identity.certificate),
        "server.key": _File(identity.key, SECRET),
    }


def _node_key() -> tuple[bytes, bytes]:
    """Make a node's key as Flower wants it: a NIST curve, OpenSSH's format."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private, public + b"\n"


def _known(folder: Path) -> Authority:
    try:
        found = Authority(
            (folder / "ca.crt").read_bytes(), (folder / "ca.key").read_bytes()
        )
        found.check()
    except (OSError, ValueError) as error:
        raise SiteError(
            [
                f"--authority {folder}: {error}. It is the folder authority/ of an "
                "earlier `atlas-flwr provision`"
            ]
        ) from None
    return found


def _about(name: str, site: Site) -> str:
    trunk = None
    if site.trunk:
        trunk = joined(site.trunk.host, site.trunk.port)
    elif site.link.trunk_port:
        trunk = joined(site.link.host, site.link.trunk_port)
    about = {
        "site": site.name,
        "role": name.partition("/")[0].removesuffix("s"),
        "name": name.rpartition("/")[2],
        "link": joined(site.link.host, site.link.port),
        "trunk": trunk,
        "trunk-lasts": site.trunk is not None,
        # To a trunk inside the ServerApp that itself shows nothing.
        "trunk-mutual": site.mutual and (site.trunk is not None or name != "link"),
        "versions": {"atlas-flwr": __version__, "flwr": _flwr()},
    }
    return json.dumps(about, indent=1) + "\n"


def _flwr() -> str:
    return importlib.metadata.version("flwr")


def _write(folder: Path, kit: _Kit) -> None:
    folder.mkdir(mode=0o700, parents=True)
    sums = []
    for name, file in sorted(kit.items()):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        data = file.content
        content = data.encode() if isinstance(data, str) else data
        # Nobody else may read a key, not even between its making and a chmod.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file.mode)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
        path.chmod(file.mode)
        sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")
