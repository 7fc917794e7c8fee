# SPDX-License-Identifier: Apache-2.0
"""The text of what a folder holds besides keys: scripts, units, compose files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping

from atlas_flwr import __version__
from atlas_flwr.config import split_list
from atlas_flwr.sites.description import Link, Node, Plain, Site, Trunk, joined

__all__ = [
    "APP",
    "HOME",
    "compose",
    "flower_cli",
    "link_start",
    "node_start",
    "registration",
    "run_start",
    "toml",
    "trunk_start",
    "unit",
]

HOME = "/opt/atlas-flwr"
APP = f"{HOME}/app"
HOMES = ("/home/", "/root/", "/run/user/")  # which systemd can hide
OPENING = """#!/usr/bin/env bash
# {about}
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
umask 077
"""
# Apps, logs and the like stay in this folder.
FLOWER = 'export FLWR_HOME="$PWD/flwr"\nmkdir -p "$FLWR_HOME"\n'


def link_start(link: Link) -> str:
    """Start the SuperLink."""
    command = _command(
        "exec flower-superlink",
        *("--host", link.listen, "--port", link.port),
        *("--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"),
        *("--ssl-ca-certfile", "ca.crt", "--enable-supernode-auth"),
        *("--database", "state.db"),
    )
    opening = OPENING.format(about="Starts the SuperLink; arguments are its own.")
    # Flower would install each run's dependencies, atlas-flwr among them, from PyPI.
    switch = "export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1\n"
    return f"{opening}{FLOWER}{switch}{command}"


def node_start(node: Node, number: int, site: Site) -> str:
    """Start a SuperNode."""
    config: dict[str, Plain] = {
        "partition-id": number,
        "num-partitions": len(site.nodes),
    }
    if site.mutual:
        # Relative to where the SuperNode was started, which is its folder.
        config |= {"trunk-cert": "trunk.pem", "trunk-key": "trunk.key"}
    config |= node.config
    pairs = " ".join(f"{key}={_in_pairs(value)}" for key, value in config.items())
    command = _command(
        "exec flower-supernode",
        *("--superlink", joined(site.link.host, site.link.port)),
        *("--root-certificates", "ca.crt"),
        *("--auth-supernode-private-key", "node.key"),
        *("--host", "127.0.0.1", "--port", node.port, "--node-config", pairs),
    )
    about = f"Starts the SuperNode {node.name}; arguments are its own."
    return f"{OPENING.format(about=about)}{FLOWER}{command}"


def trunk_start(trunk: Trunk, site: Site) -> str:
    """Start a trunk on a machine of its own."""
    asks = ("--client-ca", "ca.crt") if trunk.mutual else ()
    command = _command(
        f"exec atlas-flwr trunk {_app(site)}",
        *("--run-config", "run.toml", "--listen", joined(trunk.listen, trunk.port)),
        *("--advertise", joined(trunk.host, trunk.port), "--folder", "."),
        *("--cert", "server.pem", "--key", "server.key", "--ca", "ca.crt"),
        *asks,
        *("--audit", "audit.jsonl"),
    )
    return OPENING.format(about="Starts the trunk; arguments are its own.") + command


def flower_cli(site: Site) -> str:
    """Run ``flwr`` so that it knows this SuperLink."""
    about = f"flwr, told of the SuperLink {site.name}: ./flwr.sh supernode list"
    dialled = joined(site.link.host, site.link.port)
    # A folder may be called anything, and its name is within TOML's quotes.
    return f"""{OPENING.format(about=about)}{FLOWER}\
here=$(printf %s "$PWD" | sed 's/[\\\\"]/\\\\&/g')
cat >"$FLWR_HOME/config.toml" <<END
[superlink]
default = "{site.name}"

[superlink.{site.name}]
address = "{dialled}"
root-certificates = "$here/ca.crt"
END
exec flwr "$@"
"""


def registration(site: Site) -> str:
    """Tell the SuperLink the keys of nodes."""
    about = (
        "Registers nodes, all or those that are named, at the SuperLink, which runs; "
        "those that it knows already stay."
    )
    names = " ".join(node.name for node in site.nodes)
    return f"""{OPENING.format(about=about)}\
[ $# -gt 0 ] || set -- {names}
failed=""
for node in "$@"; do
  if said=$(COLUMNS=999 ./flwr.sh supernode register "nodes/$node.pub" \\
    {site.name} --name "$node" 2>&1); then
    echo "$said"
  elif [[ "$said" == *"ey already in use"* ]]; then
    echo "$node is registered already"
  else
    echo "$said" >&2
    failed="$failed $node"
  fi
done
[ -z "$failed" ] || {{
  echo "not registered:$failed (./flwr.sh supernode list shows who is)" >&2
  exit 1
}}
"""


def run_start(site: Site) -> str:
    """Start a run."""
    about = "Starts a run; ATLAS_APP is the app's folder, arguments are flwr's own."
    run = f"exec ./flwr.sh run {_app(site)} {site.name} --stream"
    return f'{OPENING.format(about=about)}{run} --run-config run.toml "$@"\n'


def _app(site: Site) -> str:
    """Name the app's folder as one word; what ends one is in no site's."""
    return f'"${{ATLAS_APP:-{site.app}}}"'


def unit(about: str, folder: str, read: Iterable[Plain] = (), write: Plain = "") -> str:
    """Write a systemd unit.

    Parameters
    ----------
    about : str
        What it runs.
    folder : str
        Below ``HOME``: what it may write to.
    read : Iterable[bool or int or float or str]
        Paths that it reads, or comma lists of them, among other values. Users' homes
        are hidden from it unless one of them lies there.
    write : bool or int or float or str
        Another folder that it may write to, if it is an absolute path; it has to be
        there, or the unit does not start.
    """
    writable = [f"{HOME}/{folder}"]
    if isinstance(write, str) and write.startswith("/"):
        # Percent signs begin systemd's own names.
        writable.append(json.dumps(write, ensure_ascii=False).replace("%", "%%"))
    paths = [
        path for value in read if isinstance(value, str) for path in split_list(value)
    ]
    homes = "read-only" if any(path.startswith(HOMES) for path in paths) else "true"
    return f"""[Unit]
Description={about}
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
User=atlas-flwr
WorkingDirectory={HOME}/{folder}
Environment=PATH={HOME}/venv/bin:/usr/local/bin:/usr/bin:/bin
Environment=ATLAS_CACHE={HOME}/{folder}/cache
Environment=HOME={HOME}/{folder}/cache
ExecStart={HOME}/{folder}/start.sh
Restart=on-failure
RestartSec=10
UMask=0077
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=strict
ProtectHome={homes}
ReadWritePaths={" ".join(writable)}

[Install]
WantedBy=multi-user.target
"""


def compose(name: str, ports: tuple[int, ...], app: str | None) -> str:
    """Write a compose file.

    Parameters
    ----------
    name : str
        Of its service.
    ports : tuple[int, ...]
        That others dial.
    app : str, optional
        The app's folder, if this role reads one. At ``APP`` the image has its own.
    """
    mounts = ['      - ".:/site"']
    if app not in (None, APP):
        # In this form a folder that is not there is refused, and not made, empty.
        mounts += [
            "      - type: bind",
            f'        source: "${{ATLAS_APP:-{app}}}"',
            f'        target: "{app}"',
            "        read_only: true",
        ]
    lines = [
        "services:",
        f"  {name}:",
        f'    image: "${{ATLAS_IMAGE:-atlas-flwr:{__version__}}}"',
        '    user: "${ATLAS_USER:-1000:1000}"  # this folder\'s owner: id -u, id -g',
        "    working_dir: /site",
        '    command: ["/site/start.sh"]',
        "    environment:",
        "      ATLAS_CACHE: /site/cache",
        "      HOME: /site/cache",  # the image has none that this user may write to
        "    volumes:",
        *mounts,
        *(["    ports:"] if ports else []),
        *(f'      - "{port}:{port}"' for port in ports),
        "    restart: unless-stopped",
        "    stop_grace_period: 30s",  # a trunk lets open calls end
        "    init: true",
        '    security_opt: ["no-new-privileges:true"]',
        '    cap_drop: ["ALL"]',
    ]
    return "\n".join([*lines, ""])


def toml(values: Mapping[str, Plain]) -> str:
    """Write flat values, as a run config is, which Flower reads without loss."""
    return "".join(f"{key} = {_literal(value)}\n" for key, value in values.items())


def _literal(value: Plain) -> str:
    if isinstance(value, str):
        # A TOML basic string is a JSON string without surrogate pairs or a raw DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _in_pairs(value: Plain) -> str:
    """Write a value of a node config, where Flower's text ends at the next quote."""
    if not isinstance(value, str):
        return _literal(value)
    parts = (_literal(part)[1:-1] for part in value.split('"'))
    return '"' + "\\u0022".join(parts) + '"'


def _command(start: str, *words: str | int) -> str:
    """Write a command, an option a line."""
    lines = [start]
    for word in map(str, words):
        quoted = shlex.quote(word)
        if word.startswith("--"):
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    return " \\\n  ".join([*lines, '"$@"']) + "\n"
