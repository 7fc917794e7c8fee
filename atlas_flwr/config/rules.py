# SPDX-License-Identifier: Apache-2.0
"""What a well-typed configuration may still get wrong: limits and contradictions.

A rule is a function of the configuration that yields :class:`Problem`; ``RULES`` holds
them all. It sees either a ``RunConfig`` or the fields of one alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from atlas_flwr.config.adaptation import MAX_RANK
from atlas_flwr.config.adapters import adapter_fits_method
from atlas_flwr.config.cluster_rules import (
    clusters_agree,
    clusters_are_balanced,
    clusters_are_large_enough,
    decay_has_a_mixing,
    mira_has_a_pull,
)
from atlas_flwr.config.flight_rules import batches_can_overlap
from atlas_flwr.config.late_rules import late_updates_are_met
from atlas_flwr.config.limit_rules import strategy_reads_it, within_limits
from atlas_flwr.config.parsing import parse_bytes, parse_cut, split_list
from atlas_flwr.config.peer_rules import peers_can_carry
from atlas_flwr.config.schema import RunConfig
from atlas_flwr.config.scoring import shown_are_written
from atlas_flwr.config.single_replies import sums_are_enough
from atlas_flwr.config.summary_rules import summaries_find_their_place
from atlas_flwr.config.trunk_rules import trunk_is_found, trunk_is_used
from atlas_flwr.options import ADAPTER_STRATEGIES, Problem
from atlas_flwr.remedies import every_step_crosses, remedy_problems

__all__ = ["RULES", "Problem", "find_problems", "resume_problems"]

Rule = Callable[[RunConfig], Iterator[Problem]]


def names_are_given(config: RunConfig) -> Iterator[Problem]:
    """Want names that something is looked up by."""
    for name in ("model", "codec", "runs_dir"):
        if not getattr(config, name).strip():
            key = name.replace("_", "-")
            yield Problem((key,), f"{key}='': must not be empty")


def lists_are_clean(config: RunConfig) -> Iterator[Problem]:
    """Want items in comma lists, none of them empty or repeated."""
    for name in ("tasks", "lora_ranks", "lora_targets"):
        key, text = name.replace("_", "-"), getattr(config, name)
        items = split_list(text)
        if not items or "" in items:
            yield Problem(
                (key,),
                f"{key}={text!r}: must be a comma list with no empty item, e.g. a,b",
            )
        repeated = sorted({item for item in items if items.count(item) > 1} - {""})
        if repeated:
            listed = ", ".join(repeated)
            yield Problem((key,), f"{key}={text!r}: names {listed} more than once")


def ranks_are_ranks(config: RunConfig) -> Iterator[Problem]:
    """Want each of lora-ranks to be a rank."""
    for item in filter(None, split_list(config.lora_ranks)):
        if not re.fullmatch(r"\d{1,9}", item) or not 1 <= int(item) <= MAX_RANK:
            yield Problem(
                ("lora-ranks",),
                f"lora-ranks={config.lora_ranks!r}: {item!r} is not a rank; ranks are "
                f"whole numbers from 1 to {MAX_RANK}",
            )


def all_linear_is_alone(config: RunConfig) -> Iterator[Problem]:
    """Take all-linear as leaving nothing to add."""
    targets = split_list(config.lora_targets)
    if "all-linear" in targets and len(targets) > 1:
        yield Problem(
            ("lora-targets",),
            f"lora-targets={config.lora_targets!r}: all-linear includes every other "
            "name; give either it or names",
        )


def devices_are_sizes(config: RunConfig) -> Iterator[Problem]:
    """Want each of devices to be a byte size, and the trunk's limits too."""
    for name in ("devices", "trunk_session_memory", "trunk_limit"):
        key, text = name.replace("_", "-"), getattr(config, name)
        items = split_list(text) if name == "devices" else [text] * bool(text)
        for item in items:
            try:
                parse_bytes(item)
            except ValueError as error:
                yield Problem((key,), f"{key}={text!r}: {error}")


def session_memory_is_kept(config: RunConfig) -> Iterator[Problem]:
    """Want ranks layer by layer, which alone are given by what the trunk may spend."""
    if config.trunk_session_memory and config.ranks != "budget":
        yield Problem(
            ("trunk-session-memory", "ranks"),
            f"trunk-session-memory={config.trunk_session_memory!r}: with ranks="
            f"{config.ranks!r} nothing keeps a client's adapters within it; set "
            "ranks='budget', or lower the ranks and leave it out",
        )


def cut_fits_split(config: RunConfig) -> Iterator[Problem]:
    """Want a fixed cut to be of the kind that split says."""
    if config.cut == "auto":
        return
    try:
        cuts = [parse_cut(cut) for cut in split_list(config.cut)]
        if not cuts:
            raise ValueError("names no cut")
    except ValueError as error:
        yield Problem(("cut",), f"cut={config.cut!r}: {error}; or auto")
        return
    devices = len(split_list(config.devices))
    if len(cuts) > 1 and devices > 1 and len(cuts) != devices:
        yield Problem(
            ("cut", "devices"),
            f"cut={config.cut!r} names {len(cuts)} cuts, and devices="
            f"{config.devices!r} {devices} devices; give one cut for all of them, or "
            "one for each",
        )
    head = cuts[0][0]
    tailed = [tail is not None for _, tail in cuts]
    if config.split == "none":
        yield Problem(
            ("cut", "split"),
            f"cut={config.cut!r}: split='none' cuts nothing; set cut='auto', or "
            "another split",
        )
    if config.split == "vanilla" and any(tailed):
        yield Problem(
            ("cut", "split"),
            f"cut={config.cut!r} has a tail, and split='vanilla' ends the model in the "
            f"trunk: write cut='{head}/-', or split='u-shaped'",
        )
    if config.split == "u-shaped" and not all(tailed):
        yield Problem(
            ("cut", "split"),
            f"cut={config.cut!r} has no tail, and split='u-shaped' ends the model on "
            f"the client: write cut='{head}/1', or split='vanilla'",
        )


def shared_adapters_are_alike(config: RunConfig) -> Iterator[Problem]:
    """Want one cut and one rank where all clients train one adapter."""
    if config.strategy != "splitlora" or config.server_adapters == "own":
        return
    several = config.cut == "auto" or "," in config.cut
    if several or config.ranks != "uniform" or config.split == "none":
        yield Problem(
            ("server-adapters", "cut", "ranks", "split"),
            f"server-adapters='shared' with cut={config.cut!r}, ranks={config.ranks!r} "
            f"and split={config.split!r}: clients that train one adapter have one cut "
            "and one rank; set e.g. cut='2/1' and ranks='uniform'",
        )


def merged_batches_are_shared(config: RunConfig) -> Iterator[Problem]:
    """Want one adapter for all clients where their batches are merged."""
    if config.trunk_merge > 1 and config.server_adapters != "shared":
        yield Problem(
            ("trunk-merge", "server-adapters"),
            f"trunk-merge={config.trunk_merge}: with server-adapters="
            f"{config.server_adapters!r} every client trains an adapter of its own on "
            "the trunk; set server-adapters='shared', or trunk-merge=1",
        )


def folding_is_exact(config: RunConfig) -> Iterator[Problem]:
    """Want weights that a small product can be added to without loss."""
    if config.dtype == "float32" or config.adapter != "lora":
        return
    lost = f"what is folded into dtype={config.dtype!r} is lost in its rounding; set"
    if config.strategy in ("atlas", "mira") and config.aggregation in ("both", "fold"):
        yield Problem(
            ("aggregation", "dtype"),
            f"aggregation={config.aggregation!r}: {lost} aggregation='truncate', or "
            "dtype='float32'",
        )
    if config.strategy in ("flora", "hsplitlora"):
        yield Problem(
            ("strategy", "dtype"),
            f"strategy={config.strategy!r}: {lost} dtype='float32'",
        )


def parts_are_filled(config: RunConfig) -> Iterator[Problem]:
    """Want a batch for each part of a fingerprint, and an example for each batch."""
    if config.strategy not in ADAPTER_STRATEGIES:
        return
    batches, parts = config.fingerprint_batches, config.fingerprint_parts
    if batches < parts:
        yield Problem(
            ("fingerprint-batches", "fingerprint-parts"),
            f"fingerprint-batches={batches} for fingerprint-parts={parts}: each part "
            "needs a batch of its own; raise the one or lower the other",
        )
    if 0 < config.train_examples < batches:
        yield Problem(
            ("fingerprint-batches", "train-examples"),
            f"fingerprint-batches={batches}: a client has only train-examples="
            f"{config.train_examples}; lower the one or raise the other",
        )


def tests_are_skewed_alike(config: RunConfig) -> Iterator[Problem]:
    """Want a skew that tests can have."""
    if config.test_skew and config.label_skew == 0:
        yield Problem(
            ("test-skew", "label-skew"),
            "test-skew=true: with label-skew=0.0 training and test examples are alike "
            "already; set label-skew above 0, e.g. 0.5, or test-skew=false",
        )


def batch_is_filled(config: RunConfig) -> Iterator[Problem]:
    """Want examples enough for a batch."""
    if 0 < config.train_examples < config.batch_size:
        yield Problem(
            ("batch-size", "train-examples"),
            f"batch-size={config.batch_size}: a client has only train-examples="
            f"{config.train_examples}; lower the one or raise the other",
        )


def half_is_for_gpus(config: RunConfig) -> Iterator[Problem]:
    """Want half precision on GPUs only."""
    if config.dtype == "float16" and "cpu" in (config.device, config.trunk_device):
        yield Problem(
            ("dtype", "device", "trunk-device"),
            "dtype='float16' on a CPU: CPUs train in float32 or bfloat16; "
            "set one of these, or device='cuda'",
        )


def folder_is_a_name(config: RunConfig) -> Iterator[Problem]:
    """Want a name that makes one folder, and none for a continued run."""
    name = config.run_name
    if name and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", name):
        yield Problem(
            ("run-name",),
            f"run-name={name!r}: must be a plain folder name of letters, digits and "
            "._+-, not starting with a dot or dash",
        )
    if name and config.resume:
        yield Problem(
            ("run-name", "resume"),
            f"run-name={name!r} with resume={config.resume!r}: a continued run keeps "
            "its folder; give one of the two",
        )


def accumulated_steps_cross(config: RunConfig) -> Iterator[Problem]:
    """Want each batch of an optimiser step to reach the trunk, which counts them."""
    if config.accumulate > 1 and not every_step_crosses(config):
        yield Problem(
            ("accumulate", "skip-gradients", "auxiliary-steps"),
            f"accumulate={config.accumulate}: with skip-gradients or auxiliary-steps "
            "some batches do not reach the trunk, whose optimiser step would be of "
            "others than the client's; set those to 0, or accumulate=1",
        )


RULES: tuple[Rule, ...] = (
    within_limits,
    strategy_reads_it,
    adapter_fits_method,
    names_are_given,
    lists_are_clean,
    ranks_are_ranks,
    all_linear_is_alone,
    devices_are_sizes,
    session_memory_is_kept,
    peers_can_carry,
    cut_fits_split,
    trunk_is_found,
    trunk_is_used,
    clusters_agree,
    clusters_are_balanced,
    clusters_are_large_enough,
    decay_has_a_mixing,
    mira_has_a_pull,
    sums_are_enough,
    late_updates_are_met,
    shared_adapters_are_alike,
    merged_batches_are_shared,
    folding_is_exact,
    remedy_problems,
    summaries_find_their_place,
    parts_are_filled,
    tests_are_skewed_alike,
    shown_are_written,
    batch_is_filled,
    accumulated_steps_cross,
    batches_can_overlap,
    half_is_for_gpus,
    folder_is_a_name,
)


# What they refuse would only be ignored. A run that began may have such a key at what
# was its default then.
UNREAD: Collection[Rule] = (
    clusters_are_balanced,
    late_updates_are_met,
    session_memory_is_kept,
    strategy_reads_it,
    trunk_is_used,
)


def find_problems(config: RunConfig, *, at_start: bool = True) -> Iterator[Problem]:
    """Yield every problem of a configuration whose types are right.

    Parameters
    ----------
    config : RunConfig
        The configuration.
    at_start : bool
        Whether a run is to begin with it; of one that began, what nothing reads is let
        be.
    """
    for rule in RULES:
        if at_start or rule not in UNREAD:
            yield from rule(config)


def resume_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield the problem that the folder to resume is not there (looks at the disk)."""
    if config.resume and not (Path(config.resume) / "config.yaml").is_file():
        yield Problem(
            ("resume",),
            f"resume={config.resume!r}: no run folder is there (no config.yaml in it, "
            f"seen from {Path.cwd()}); give the path of one, or '' for a new run",
        )
