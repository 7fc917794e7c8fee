# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr run``: one simulation, with nothing to set up before or clear after."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from atlas_flwr.cli.launch import FAILED, Federation, private_superlink
from atlas_flwr.cli.overrides import parse_overrides
from atlas_flwr.cli.preflight import cleared

__all__ = ["COMPLETED", "add_federation", "federation_of", "main"]

COMPLETED = "finished:completed"
# The run has said itself how it ended: by its table, or by what went wrong.
TOLD = (COMPLETED, FAILED)


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(
        prog="atlas-flwr run",
        description="Run the app in a simulation: start a SuperLink in the app's "
        "folder, run, show the log, and end the SuperLink again.",
    )
    parser.add_argument("app", nargs="?", default=".", type=Path, help="app's folder")
    add_run_config(parser)
    add_federation(parser)
    given = parser.parse_args(arguments)
    overrides, federation = parse_overrides(given.run_config), federation_of(given)
    if sys.stdout.isatty():
        print("checking the configuration, the texts and the model", flush=True)
    found = cleared(given.app, overrides, given.num_supernodes)
    for note in found.notes:
        print(note, flush=True)
    with private_superlink(given.app, given.verbose) as superlink:
        status = superlink.run(found.overrides, federation)
    if status not in TOLD:
        print(status, file=sys.stderr)
    return 0 if status == COMPLETED else 1


def add_run_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--run-config``."""
    parser.add_argument(
        "-c",
        "--run-config",
        action="append",
        default=[],
        metavar="'KEY=VALUE ...'",
        help="override keys of the run config, or the path of a .toml file; may be "
        "repeated. `atlas-flwr config` lists the keys",
    )


def add_federation(parser: argparse.ArgumentParser) -> None:
    """Add the options of the simulated clients."""
    preset = Federation()
    parser.add_argument(
        "-n",
        "--num-supernodes",
        type=int,
        default=preset.num_supernodes,
        help=f"simulated clients (default {preset.num_supernodes})",
    )
    parser.add_argument(
        "--client-cpus",
        type=int,
        default=preset.client_cpus,
        help="CPUs reserved for a client: fewer clients run at once as it grows "
        f"(default {preset.client_cpus})",
    )
    parser.add_argument(
        "--client-gpus",
        type=float,
        default=preset.client_gpus,
        help=f"GPUs reserved for a client (default {preset.client_gpus})",
    )
    parser.add_argument(
        "--federation-config",
        default="",
        metavar="'KEY=VALUE ...'",
        help="more of Flower's federation config, e.g. init-args-num-cpus=1",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show all that Flower says, too"
    )


def federation_of(given: argparse.Namespace) -> Federation:
    """Return what :func:`add_federation`'s options say."""
    return Federation(
        num_supernodes=given.num_supernodes,
        client_cpus=given.client_cpus,
        client_gpus=given.client_gpus,
        extra=given.federation_config,
    )
