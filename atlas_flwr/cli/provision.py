# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr provision``: a folder for each machine of a deployment."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

EXAMPLE = """site.yaml, e.g.:

  name: lab
  link:
    host: server.example.org   # what nodes dial; the certificate is for it
    port: 8000
    trunk-port: 7001           # the ServerApp's trunk; or, on a machine of its own:
  # trunk:
  #   host: gpu.example.org
  #   mutual: true             # nodes show it a certificate, too
  nodes:
    - name: north
    - name: south
      config: {trunk-memory: 4GiB, trunk-link: 100Mbit/s}
  run:
    app: /opt/atlas-flwr/app
    config:
      model: smollm2
      tasks: questions,spam
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(
        prog="atlas-flwr provision",
        description="Make a folder for each machine of a deployment, with its keys, "
        "certificates, start script, systemd unit, compose file and README.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("site", type=Path, help="describes the deployment, in YAML")
    parser.add_argument(
        "--out", type=Path, default=Path("site"), help="made; must not exist (site)"
    )
    parser.add_argument(
        "--authority",
        type=Path,
        help="the folder authority/ of an earlier call: sign with it, for new nodes or "
        "new certificates",
    )
    given = parser.parse_args(arguments)
    from atlas_flwr.sites import read_site, write_kits
    from atlas_flwr.sites.kits import SUMS, within_authority

    site = within_authority(read_site(given.site), given.authority)
    folders = write_kits(site, given.out, given.authority)
    print(f"{site.name}: {len(folders)} folders, valid for {site.days} days\n")
    for folder in folders:
        if (folder / "start.sh").exists():
            digest = hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()
            print(f"{folder}\n  {SUMS}: {digest}")
    print(
        f"\nSend each folder to its owner, over a way that others cannot read, and "
        f"the number under it by another.\n{given.out / 'authority'} stays with you: "
        "it signs what all of them trust."
    )
    return 0
