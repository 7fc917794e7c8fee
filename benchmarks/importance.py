# SPDX-License-Identifier: Apache-2.0
"""Whether ranks would be others if a rank's bytes counted once, not twice.

Run from the top of the repository, on a finished run of ``ranks='budget'``::

    python benchmarks/importance.py RUN --from 100MiB --to 160MiB --step 4MiB

An importance is per byte of a rank, and a rank's bytes are in the device's budget, too.
For each client's measured importances and each budget, ranks are chosen by importances
per byte and by plain ones. Prints at how many of these the two are the same, and where
they are not, how many layers have another rank.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from atlas_flwr.cohort.assigned import Assignments
from atlas_flwr.config.parsing import parse_bytes
from atlas_flwr.errors import BudgetError
from atlas_flwr.report import RunFolder
from atlas_flwr.server_apps.assignment import DeviceRule
from atlas_flwr.server_apps.checkpoint import load_checkpoint
from atlas_flwr.train.weights import ModelFiles


def scaled(importance: Mapping[str, float]) -> dict[str, float]:
    total = sum(importance.values())
    return {name: value / total for name, value in importance.items()}


def chosen(
    rule: DeviceRule, memory: int, importance: Mapping[str, float]
) -> tuple[int, Mapping[str, int]] | None:
    try:
        found = rule.allocation(memory, importance)
    except BudgetError:
        return None
    return found.head, found.ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--from", dest="least", default="100MiB", type=parse_bytes)
    parser.add_argument("--to", dest="most", default="160MiB", type=parse_bytes)
    parser.add_argument("--step", default="4MiB", type=parse_bytes)
    given = parser.parse_args()
    folder = RunFolder.open(given.run)
    config, kept = folder.config(), load_checkpoint(folder.checkpoint_dir)
    files = ModelFiles.of(config)
    rule = DeviceRule.of(config, files.outline(), files.dtype)
    measured = Assignments()
    measured.restore(kept.state, kept.values)
    same, others = 0, []
    for importance in measured.importances.values():
        plain = {n: share * sum(rule.shapes[n]) for n, share in importance.items()}
        for memory in range(given.least, given.most, given.step):
            twice = chosen(rule, memory, importance)
            once = chosen(rule, memory, scaled(plain))
            if twice is None or once is None:
                continue
            if twice == once:
                same += 1
            else:
                ranks = twice[1], once[1]
                others.append(sum(ranks[0][n] != ranks[1][n] for n in ranks[0]))
    total = same + len(others)
    print(f"the same at {same} of {total} budgets; {len(rule.shapes)} layers")
    print(f"layers with another rank, where not: {sorted(others)}")


if __name__ == "__main__":
    main()
