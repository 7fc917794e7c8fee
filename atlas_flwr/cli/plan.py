# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr plan``: what devices would be given, before anybody trains."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_flwr.cli.overrides import parse_overrides
from atlas_flwr.cli.pairings import pairing_shown
from atlas_flwr.cli.preflight import cleared
from atlas_flwr.cli.run import add_run_config

if TYPE_CHECKING:
    from atlas_flwr.budget import Allocation, Assignment, MemoryEstimate, StepTime

__all__ = ["main"]

GIGA, MEGA, MIB = 1e9, 1e6, 1 << 20
BAR = 24
SPREAD, MOST = 10.0, 1e6


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(
        prog="atlas-flwr plan",
        description="Show the cut, the ranks, the predicted memory and the modelled "
        "step time of each of the devices in the run config. Before a run nobody knows "
        "which layers matter; all count alike here.",
    )
    parser.add_argument("app", nargs="?", default=".", type=Path, help="app's folder")
    add_run_config(parser)
    parser.add_argument(
        "-n",
        "--num-supernodes",
        type=int,
        default=8,
        help="clients, for --round, and to be paired with trunk='peers' (8)",
    )
    parser.add_argument(
        "--leakage",
        metavar="N",
        type=int,
        nargs="?",
        const=12,
        help="show, too, what a server would read of N texts of the tasks, by depth "
        "of head up to max-head (default: 12 texts); takes some minutes",
    )
    parser.add_argument(
        "--round",
        action="store_true",
        help="show, too, how long a round of the clients would take, on a simulated "
        "clock",
    )
    parser.add_argument(
        "--spread",
        type=float,
        help="with --round: how many times as fast as the slowest the fastest client "
        "is, and its link (10); the rates are those of the fastest",
    )
    parser.add_argument(
        "--trunks",
        type=int,
        help="with --round: trunks that share the clients (the run's own)",
    )
    parser.add_argument(
        "--radio",
        metavar="FILE",
        type=Path,
        help="show, too, which cut, part of a radio band and power each device of this "
        "YAML file should have for the fastest step, within its bounds",
    )
    rates = parser.add_argument_group("rates; the default is this machine's own")
    rates.add_argument("--client-gflops", type=float, help="of a device")
    rates.add_argument("--trunk-gflops", type=float, help="of the server")
    rates.add_argument("--mbits", type=float, default=100.0, help="of the link (100)")
    given = parser.parse_args(arguments)
    from atlas_flwr.errors import BudgetError, ConfigError

    if problems := list(_wrong(given)):
        raise ConfigError(problems)
    values = cleared(given.app, parse_overrides(given.run_config), devices=False).merged

    from atlas_flwr.budget import Allocation, Rates
    from atlas_flwr.config import load_config, split_list
    from atlas_flwr.data.lengths import warn_of_cuts
    from atlas_flwr.server_apps.assignment import DeviceRule
    from atlas_flwr.train.weights import ModelFiles

    config = load_config(values)
    if given.round:
        from atlas_flwr.cli.rounds import check_round

        check_round(config)
    if given.leakage is not None:
        from atlas_flwr.cli.leakage import check_leakage

        check_leakage(config)
    radio = None
    if given.radio is not None:
        from atlas_flwr.cli.radio import read_radio
        from atlas_flwr.cli.sharing import check_sharing

        radio = read_radio(given.radio)
        check_sharing(config, radio)
    files = ModelFiles.of(config)
    warn_of_cuts(files.source, config.task_list, config.max_length)
    rule = DeviceRule.of(config, files.outline(), files.dtype)
    here = None if given.client_gflops and given.trunk_gflops else measured_flops()
    speeds = Rates(
        client_flops=given.client_gflops * GIGA if given.client_gflops else here or 0,
        trunk_flops=given.trunk_gflops * GIGA if given.trunk_gflops else here or 0,
        link_bits=given.mbits * MEGA,
    )
    print(
        f"{config.model} · {rule.architecture.num_layers} blocks · {config.split} · "
        f"{config.batch_size} x {config.max_length} tokens · client "
        f"{speeds.client_flops / GIGA:.0f} and trunk {speeds.trunk_flops / GIGA:.0f} "
        f"GFLOP/s, {given.mbits:.0f} Mbit/s"
    )
    refused = False
    for memory, cut in config.kinds:
        try:
            found = rule.cut_at(cut).planned(memory)
        except BudgetError as error:
            refused = True
            print(f"\n{error}")
            continue
        seconds = rule.seconds(speeds, found.head, found.tail)
        print("\n" + described(found, memory, rule.architecture.num_layers, seconds))
        if isinstance(found, Allocation):
            print(ranks_drawn(found.ranks, rule.places))
    if given.leakage is not None:
        from atlas_flwr.cli.leakage import leakage_by_cut

        print("\n" + leakage_by_cut(config, files, rule, speeds, given.leakage))
    if radio is not None:
        from atlas_flwr.cli.sharing import sharing_shown

        print("\n" + sharing_shown(config, files, rule, radio))
    if given.round and not refused:
        from atlas_flwr.cli.rounds import round_shown

        shown = round_shown(
            config,
            rule,
            speeds,
            given.num_supernodes,
            given.spread or SPREAD,
            given.trunks
            or max(config.trunk_replicas, len(split_list(config.trunk_access))),
        )
        print("\n" + shown)
    if config.trunk == "peers":
        print("\n" + pairing_shown(config, files, given.num_supernodes))
    return int(refused)


def _wrong(given: argparse.Namespace) -> Iterator[str]:
    """Yield which options are out of their range, or would be read by nothing."""
    if given.leakage is not None and given.leakage < 1:
        yield f"--leakage {given.leakage}: at least 1 text"
    for name, least in (("num_supernodes", 1), ("spread", 1), ("trunks", 1)):
        value = getattr(given, name)
        # A number that is none is not between any two.
        if value is not None and not least <= value <= MOST:
            key = "-n" if name == "num_supernodes" else f"--{name}"
            yield f"{key} {value:g}: must be at least {least} and at most {MOST:g}"
    for name in ("spread", "trunks"):
        if getattr(given, name) is not None and not given.round:
            yield f"--{name}: is read with --round alone; add that, or leave it out"
    for name in ("client_gflops", "trunk_gflops", "mbits"):
        value = getattr(given, name)
        if value is not None and not 0 < value < math.inf:
            key = "--" + name.replace("_", "-")
            yield f"{key} {value:g}: must be above 0, and finite"


def described(
    found: Allocation | Assignment,
    memory: int | None,
    num_layers: int,
    seconds: StepTime,
) -> str:
    """Say what a device is given, and draw its blocks and its memory."""
    name = "unlimited" if memory is None else f"{memory / MIB:.0f} MiB"
    cut = f"{found.head}/{'-' if found.tail is None else found.tail}"
    tail = found.tail or 0
    blocks = "█" * found.head + "·" * (num_layers - found.head - tail) + "█" * tail
    lines = [
        f"{name}: cut {cut}, {found.estimate.total / MIB:.0f} MiB predicted, "
        f"{seconds.total:.2f} s a step (client {seconds.client:.2f}, link "
        f"{seconds.link:.2f}, trunk {seconds.trunk:.2f})",
        f"  blocks   {blocks}",
    ]
    if memory is not None:
        full = min(round(BAR * found.estimate.total / memory), BAR)
        share = 100 * found.estimate.total / memory
        lines.append(f"  memory   {'█' * full}{'·' * (BAR - full)} {share:.0f} %")
    lines.append(f"           {breakdown(found.estimate)}")
    return "\n".join(lines)


def breakdown(estimate: MemoryEstimate) -> str:
    """Say what takes the memory."""
    parts = {k: v for k, v in vars(estimate).items() if v}
    return ", ".join(f"{name} {value / MIB:.1f}" for name, value in parts.items())


def ranks_drawn(ranks: Mapping[str, int], places: Mapping[str, tuple[int, str]]) -> str:
    """Draw ranks as a table: a row a kind of layer, a column a block."""
    kinds = dict.fromkeys(kind for _, kind in places.values())
    by_place = {places[name]: rank for name, rank in ranks.items()}
    blocks = sorted({block for block, _ in by_place})
    width = max(len(kind) for kind in kinds)
    cell = max(len(str(max(ranks.values()))), 1)
    rows = []
    for kind in kinds:
        cells = (by_place.get((block, kind), 0) for block in blocks)
        row = " ".join(f"{rank or '·':>{cell}}" for rank in cells)
        rows.append(f"  {kind:{width}}  {row}")
    return "\n".join(rows)


def measured_flops(size: int = 768, repeats: int = 8) -> float:
    """Time matrix products on one thread; return operations a second."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.rand(size, size)
        torch.mm(a, a)
        started = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, a)
        return 2 * size**3 * repeats / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
