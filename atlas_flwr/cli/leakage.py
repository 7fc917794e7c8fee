# SPDX-License-Identifier: Apache-2.0
"""What a server would read of the tasks' texts, by depth of head, before a run.

The heads are those that a run begins with; the attacks, the defence and the codec are
those of ``atlas-flwr attack``. The Fisher metric is set beside them, which some choose
cuts by: see ``docs/privacy.md`` for how little it says of what is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from atlas_flwr.errors import ConfigError

if TYPE_CHECKING:
    from atlas_flwr.budget import Rates
    from atlas_flwr.config import RunConfig
    from atlas_flwr.data import Batch
    from atlas_flwr.privacy import Recording, Score
    from atlas_flwr.server_apps.assignment import DeviceRule
    from atlas_flwr.split import SplitPlan
    from atlas_flwr.train.weights import ModelFiles

__all__ = ["check_leakage", "fisher_of", "leakage_by_cut"]

READERS = ("linear", "verified")
DRAWS = 8
MIB = 1 << 20


def check_leakage(config: RunConfig) -> None:
    """Refuse a run in which no position crosses for each token.

    Raises
    ------
    ConfigError
        If nothing is split, or summaries alone cross.
    """
    why = config.unsplit
    if not why and config.summary_positions:
        why = f"summary-positions={config.summary_positions}: summaries alone cross"
    if why:
        raise ConfigError(
            [
                f"--leakage with {why}, and it reads what crosses for tokens; "
                "leave it out"
            ]
        )


def leakage_by_cut(
    config: RunConfig, files: ModelFiles, rule: DeviceRule, rates: Rates, texts: int
) -> str:
    """Set in text, for each cut: what is read, a client's memory, a step's time.

    Parameters
    ----------
    config : RunConfig
        The run's.
    files : ModelFiles
        Of its model.
    rule : DeviceRule
        For the memory of a client of the largest rank, and the cuts to look at.
    rates : Rates
        For a step's time.
    texts : int
        How many to read at each cut.
    """
    from atlas_flwr.remedies.wire_defence import defence_of
    from atlas_flwr.report.table import as_text

    title = f"what a server would read of {texts} texts, as a run begins"
    names = [*READERS, *(["restored"] if defence_of(config).replaces_tokens else [])]
    read = [f"{name}, %" for name in names]
    columns = ("cut", *read, "95 %", "Fisher", "MiB", "s a step")
    rows = [_row(config, files, rule, rates, texts, plan, names) for plan in rule.plans]
    return as_text(title, columns, rows, total=False)


def _row(
    config: RunConfig,
    files: ModelFiles,
    rule: DeviceRule,
    rates: Rates,
    texts: int,
    plan: SplitPlan,
    names: Sequence[str],
) -> tuple[str, ...]:
    from atlas_flwr.report.table import percent

    scores = list(_read(config, files, texts, plan, names))
    best = max(scores, key=lambda score: score.token_accuracy)
    rank = rule.highest_rank
    ranks = dict.fromkeys(rule.shapes, rank) if rank else {}
    seconds = rule.seconds(rates, plan.head, plan.tail)
    read = {score.attack: percent(score.token_accuracy) for score in scores}
    return (
        str(plan),
        *(read.get(name, "–") for name in names),
        "–".join(map(percent, best.interval)),
        f"{fisher_of(config, files, plan):.0f}",
        f"{rule.cut_at(str(plan)).peak(plan.head, ranks).total / MIB:.0f}",
        f"{seconds.total:.2f}",
    )


def _read(
    config: RunConfig,
    files: ModelFiles,
    texts: int,
    plan: SplitPlan,
    names: Sequence[str],
) -> Iterator[Score]:
    from atlas_flwr.cli.recorded import cases
    from atlas_flwr.privacy import ATTACKS

    found = _crossed(config, files, texts, plan)
    for case in cases(config, found, texts, config.seed):
        for name in names:
            score = case.attacked(ATTACKS[name], config.seed)
            if not isinstance(score, str):
                yield score


def fisher_of(config: RunConfig, files: ModelFiles, plan: SplitPlan) -> float:
    """Return the Fisher metric of a plan's head, the mean over a text of each task."""
    import torch

    from atlas_flwr.privacy.sensitivity import fisher_metric

    head: Any = files.parts(plan).head.requires_grad_(False).eval()
    drawn = torch.Generator().manual_seed(config.seed)
    found = [
        fisher_metric(head, batches[0].input_ids[0], draws=DRAWS, generator=drawn)
        for batches in _prompts(config, files, 1)
    ]
    return fmean(found)


def _crossed(
    config: RunConfig, files: ModelFiles, texts: int, plan: SplitPlan
) -> Sequence[Recording]:
    """Let a client of each task send texts of its own."""
    import torch

    from atlas_flwr.lora import AdapterState
    from atlas_flwr.privacy import Observation, Recording, Truth
    from atlas_flwr.privacy.observation import as_received
    from atlas_flwr.remedies.wire_defence import defence_of
    from atlas_flwr.types import Role
    from atlas_flwr.wire import codec_named

    head: Any = files.parts(plan).head.requires_grad_(False).eval()
    defence, codec = defence_of(config), codec_named(config.recorded_codec)
    drawn = torch.Generator().manual_seed(config.seed)
    found = []
    for client, batches in enumerate(_prompts(config, files, texts)):
        seen, truths = [], []
        for batch in batches:
            ids, own = batch.input_ids, batch.own_ids[0]
            hidden = head(input_ids=ids, use_cache=False).last_hidden_state[0].float()
            sent = defence.activations(hidden, drawn)
            arrived = as_received(codec, sent, Role.ACTIVATION)
            seen.append(Observation(str(client), 1, 0, str(plan), arrived, None, None))
            truths.append(Truth(own, torch.zeros(len(own)).bool(), 0))
        found.append(Recording(str(client), 1, plan, AdapterState(), seen, truths))
    return found


def _prompts(
    config: RunConfig, files: ModelFiles, texts: int
) -> Iterator[Sequence[Batch]]:
    from atlas_flwr.data import load_task, make_shard, tokenizer_of
    from atlas_flwr.data.collation import collator_of
    from atlas_flwr.remedies.wire_defence import defence_of, read_through

    tokenizer, defence = tokenizer_of(files.source), defence_of(config)
    tasks = [load_task(name) for name in config.task_list]
    each = -(-texts // len(tasks))
    for task in tasks:
        shard = make_shard(0, 1, [task], test_examples=max(each, 2), seed=config.seed)
        plain = collator_of(files.source, tokenizer, task, config.max_length)
        secret = f"client {task.name}".encode()
        collate = read_through(plain, defence, files, secret)
        own = defence.examples(shard.test, len(task.labels), secret, learned=False)
        yield [collate([example], prompt=True) for example in own]
