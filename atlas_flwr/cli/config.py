# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr config``: every key, its default, what is allowed, and advice."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence

from atlas_flwr.cli.overrides import parse_overrides
from atlas_flwr.config import describe, load_config, to_yaml

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(
        prog="atlas-flwr config",
        description="Show the keys of the run config; with --run-config, check and "
        "show what it resolves to.",
    )
    parser.add_argument(
        "-c", "--run-config", action="append", default=[], metavar="'KEY=VALUE ...'"
    )
    given = parser.parse_args(arguments)
    if given.run_config:
        print(to_yaml(load_config(parse_overrides(given.run_config))), end="")
    else:
        print(describe(min(shutil.get_terminal_size((88, 24)).columns, 100)))
    return 0
