# SPDX-License-Identifier: Apache-2.0
"""What each folder's README tells its owner to do."""

from __future__ import annotations

from atlas_flwr import __version__
from atlas_flwr.sites.description import Link, Node, Site, Trunk, joined
from atlas_flwr.sites.scripts import APP, HOME

__all__ = ["authority_readme", "link_readme", "node_readme", "trunk_readme"]

CHECK = """1. Check what came: `sha256sum --check --quiet SHA256SUMS`. Ask who sent it,
   by another way than it came, whether `sha256sum SHA256SUMS` is the same there.
2. Install Python 3.11 or later, and atlas-flwr {version} with flwr {flwr}, into
   `{home}/venv`.
"""
UNIT = """With systemd: the folder to `{home}/{folder}`, owned by a user `atlas-flwr`,
then `systemctl enable --now {home}/{folder}/{unit}`.
Commands are for that user: `sudo -u atlas-flwr env PATH={home}/venv/bin:$PATH ...`.
In a container: once `echo "ATLAS_USER=$(id -u):$(id -g)" >.env`, as this folder's
owner, and `docker compose up -d`. The image, atlas-flwr:{version} or what `ATLAS_IMAGE`
says, has what step 2 asks for; examples/deployment/Dockerfile makes one{container}.
By hand: `./start.sh`.
"""
# What follows in a container.
NODE = """.
Before that, `docker compose run --rm node atlas-flwr doctor --deployment .`"""
LINK = """.
Then `docker compose exec link ./register.sh`, and so each of the scripts above"""


def node_readme(node: Node, site: Site, flwr: str) -> str:
    """For a node's owner."""
    link = joined(site.link.host, site.link.port)
    trunk, shown = _trunk_address(site), ""
    if site.mutual:
        shown = (
            "`trunk.key` is another secret, by which the trunk lets this node in: its "
            f"certificate\n`trunk.pem` is valid for {site.days} days.\n\n"
        )
    return f"""# Node {node.name} of {site.name}

`node.key` is this node's secret: who has it can pose as this node. It stays here,
readable by its owner alone. Who made this folder could have kept it; if that is too
much, make your own, `ssh-keygen -t ecdsa -b 384 -N "" -f node.key`, and send
`node.key.pub` to be registered instead of `node.pub`.

{shown}{_check(flwr)}3. Let the clock be set by NTP: signatures are refused when it is
   5 s ahead of the SuperLink's, or 5 min behind.
4. Let this machine open connections to {link}{trunk}. It accepts none.
5. `atlas-flwr doctor --deployment .` says what is missing.
6. Start it.

{_unit(f"nodes/{node.name}", f"atlas-flwr-{node.name}.service", NODE)}"""


def link_readme(link: Link, site: Site, flwr: str) -> str:
    """For the server's owner."""
    trunk = ""
    if link.trunk_port:
        trunk = f" and {link.trunk_port} (the trunk)"
    elif site.trunk:
        trunk = "; `access.json` opens the trunk, and is a secret, too"
    return f"""# The SuperLink of {site.name}

`server.key` is a secret and stays here. Nodes dial port {link.port}{trunk}.

Who reaches the SuperLink's port can start runs and register nodes: Flower 1.41 asks
nothing of them. Let a reverse proxy pass `/v1/fleet/` alone to other machines.

{_check(flwr)}3. Put the app into `{site.app}`, or say where it is: `ATLAS_APP=...`.
4. Start it. Then `./register.sh`, once: it tells the SuperLink the nodes' keys, which
   `state.db` remembers.
5. `./flwr.sh supernode list` shows who is there; `./run.sh` starts a run, and
   `./flwr.sh supernode unregister ID {site.name}` shuts a node out.

{_unit("link", "atlas-flwr-link.service", _mounted(site) + LINK)}"""


def trunk_readme(trunk: Trunk, site: Site, flwr: str) -> str:
    """For the owner of the trunk's machine."""
    return f"""# The trunk of {site.name}

`server.key` is a secret and stays here; `access.json` is shared with the SuperLink's
owner alone. Nodes and the ServerApp dial port {trunk.port}. A run whose config names
another model or cut than `run.toml` refuses this trunk.

{_check(flwr)}3. Put the app into `{site.app}`, or say where it is: `ATLAS_APP=...`.
4. Start it.

{_unit("trunk", "atlas-flwr-trunk.service", _mounted(site))}"""


def authority_readme(site: Site) -> str:
    """For who made the folders."""
    return f"""# The authority of {site.name}

`ca.key` signs certificates that all nodes trust. Send it to nobody, and keep it off the
machines of the deployment. All certificates, the authority's own too, are valid for
{site.days} days. To add nodes before that, or renew a server's certificate, run
`atlas-flwr provision site.yaml --authority THIS-FOLDER --out NEW-FOLDER`: nodes that
have `ca.crt` trust what it signs. A node that is not sent its new folder keeps its key.
"""


def _trunk_address(site: Site) -> str:
    if site.trunk:
        return f" and {joined(site.trunk.host, site.trunk.port)}"
    if site.link.trunk_port:
        return f" and {joined(site.link.host, site.link.trunk_port)}"
    return ""


def _check(flwr: str) -> str:
    return CHECK.format(version=__version__, flwr=flwr, home=HOME)


def _mounted(site: Site) -> str:
    if site.app == APP:
        return ".\nIt has the app of step 3, too, and takes no other by `ATLAS_APP`"
    return ".\nThe app of step 3 is mounted"


def _unit(folder: str, unit: str, container: str) -> str:
    return UNIT.format(
        home=HOME,
        folder=folder,
        unit=unit,
        version=__version__,
        container=container,
    )
