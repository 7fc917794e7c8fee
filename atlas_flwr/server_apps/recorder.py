# SPDX-License-Identifier: Apache-2.0
"""What a run writes down: exchanges with clients become events of its folder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import WARNING
from typing import Any, cast

from flwr.app import Message

from atlas_flwr.clustering import quality
from atlas_flwr.cohort.roster import Roster
from atlas_flwr.errors import RoundError
from atlas_flwr.grids.recording import RoundTrip
from atlas_flwr.log import log
from atlas_flwr.protocol import keys
from atlas_flwr.report import (
    ClientEvaluated,
    ClientTrained,
    Clustered,
    RoundEnded,
    RunFolder,
)
from atlas_flwr.report.events import (
    Baseline,
    CallsRefused,
    ClientFailed,
    Event,
    Sampled,
    TrunkRestarted,
)

__all__ = ["Recorder"]

Metrics = Mapping[str, float]


@dataclass
class Recorder:
    """Write events of a run as they happen.

    Parameters
    ----------
    folder : RunFolder
        Where to.
    roster : Roster
        Who the clients are.
    clusters : Mapping[str, int]
        Kept up to date by :meth:`clustered`.
    """

    folder: RunFolder
    roster: Roster
    round: int = 0
    clusters: Mapping[str, int] = field(default_factory=dict)
    _bytes_up: int = 0
    _bytes_down: int = 0
    _failures: int = 0
    _late: int = 0
    _majority: dict[str, tuple[float, float]] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def exchange(self, exchange: RoundTrip) -> None:
        """Record an exchange's replies and bytes."""
        self._bytes_up += exchange.bytes_up
        self._bytes_down += exchange.bytes_down
        good = [reply for reply in exchange.replies if reply.has_content()]
        self._failures += exchange.failed + len(exchange.late_errors)
        self._late += exchange.late
        for node, reason in [*exchange.reasons.items(), *exchange.late_reasons]:
            client = self.roster.client(node)
            self.event(ClientFailed(self.round, exchange.kind, client, reason))
        if self.round == 0 and not good:
            raise _nobody(exchange)
        for reply in good:
            if not reply.content.metric_records:
                continue  # a step of a secure sum tells nothing of its sender
            try:
                if exchange.kind == "train":
                    asked = reply.metadata.reply_to_message_id
                    self._trained(reply, exchange.discounted.get(asked, {}))
                elif exchange.kind == "evaluate":
                    self._evaluated(reply)
            except (KeyError, ValueError, OverflowError, TypeError) as error:
                # Whether such a reply counts is the strategy's to say.
                client = self._who(reply)[0]
                told = "%s: client %s's metrics cannot be recorded: %s: %s"
                kind = type(error).__name__
                log(WARNING, told, exchange.kind, client, kind, error)

    def event(self, event: Event) -> None:
        """Record an event of the strategy's."""
        if isinstance(event, Clustered):
            event = self._judged(event)
            self.clusters = event.clusters
        self.folder.record(event)

    def end_round(
        self, server_peak_bytes: int, refused: Mapping[str, int] | None = None
    ) -> None:
        """Record the round's end, and what its trunk refused; begin the next."""
        if refused:
            told = ", ".join(f"{count} {kind}" for kind, count in refused.items())
            log(WARNING, "calls that the trunk refused since the last round: %s", told)
            self.folder.record(CallsRefused(self.round, refused))
        now = time.monotonic()
        if self.round == 0:
            self._record_majority()
        self.folder.record(
            RoundEnded(
                round=self.round,
                seconds=now - self._began,
                bytes_up=self._bytes_up,
                bytes_down=self._bytes_down,
                failures=self._failures,
                late=self._late,
                server_peak_bytes=server_peak_bytes,
            )
        )
        self._forget(now)
        self.round += 1

    def restart(self, done: int, reason: str) -> None:
        """Record that the trunk is started again; the round's try so far is void."""
        self.folder.record(TrunkRestarted(done, reason))
        self._majority.clear()
        self._forget(time.monotonic())

    def _forget(self, now: float) -> None:
        self._bytes_up = self._bytes_down = self._failures = self._late = 0
        self._began = now

    def _judged(self, event: Clustered) -> Clustered:
        """Add how well the clusters agree with the tasks that clients have named."""
        tasks = {p.client: p.task for p in self.roster.profiles.values() if p.task}
        known = [client for client in event.clusters if client in tasks]
        if len(known) < len(event.clusters) or not known:
            return event
        found = quality(
            [event.clusters[client] for client in known],
            [tasks[client] for client in known],
        )
        return replace(event, ari=found.ari, nmi=found.nmi, purity=found.purity)

    def _who(self, reply: Message) -> tuple[str, str, int | None]:
        node = reply.metadata.src_node_id
        client = self.roster.client(node)
        profile = self.roster.profiles.get(node)
        return client, profile.task if profile else "", self.clusters.get(client)

    def _trained(self, reply: Message, discounted: Metrics) -> None:
        client, task, cluster = self._who(reply)
        metrics = {**_metrics(reply), **discounted}
        self._count_crossing(metrics)
        head, tail = int(metrics["head"]), int(metrics["tail"])
        self.folder.record(
            ClientTrained(
                round=self.round,
                client=client,
                task=task,
                cluster=cluster,
                loss=metrics["train-loss"],
                num_examples=int(metrics["num-examples"]),
                steps=int(metrics["steps"]),
                seconds=metrics["seconds"],
                bytes_up=int(metrics["cut-bytes-up"]),
                bytes_down=int(metrics["cut-bytes-down"]),
                peak_bytes=int(metrics["peak-bytes"]),
                rank=int(metrics["rank"]),
                plan=f"{head}/{tail or '-'}" if head else "",
                skipped=int(metrics.get("skipped", 0)),
                penalty=metrics.get("train-penalty"),
                codec=_codec(reply),
            )
        )

    def _evaluated(self, reply: Message) -> None:
        client, task, cluster = self._who(reply)
        metrics = _metrics(reply)
        _check_evaluated(metrics, _confusion(reply))
        self._count_crossing(metrics)
        found = ClientEvaluated(
            round=self.round,
            client=client,
            task=task,
            cluster=cluster,
            accuracy=metrics["accuracy"],
            loss=metrics["loss"],
            num_examples=int(metrics["num-examples"]),
            confusion=_confusion(reply),
            writes=not _confusion(reply),
            tokens=int(metrics["tokens"]),
            **_scores(reply),
        )
        right, total = self._majority.get(task, (0.0, 0.0))
        self._majority[task] = (
            right + metrics["majority"] * found.weight,
            total + found.weight,
        )
        self.folder.record(found)
        for sample in _samples(reply, self.round, client, task):
            self.folder.record(sample)

    def _count_crossing(self, metrics: Metrics) -> None:
        self._bytes_up += int(metrics["cut-bytes-up"])
        self._bytes_down += int(metrics["cut-bytes-down"])

    def _record_majority(self) -> None:
        for task, (right, total) in self._majority.items():
            if total:
                self.folder.record(Baseline(task, right / total))


def _nobody(exchange: RoundTrip) -> RoundError:
    """Where no client at all can do its work, no later round will be better."""
    reasons = [str(r.error.reason) for r in exchange.replies if r.has_error()]
    first = reasons[0].strip() if reasons else "no reply came within round-timeout"
    return RoundError(
        f"all {exchange.sent} clients failed in {exchange.kind!r} before the first "
        f"round; the first of them: {first}"
    )


def _metrics(reply: Message) -> Metrics:
    return cast(Metrics, next(iter(reply.content.metric_records.values())))


def _confusion(reply: Message) -> tuple[int, ...]:
    found = next(iter(reply.content.metric_records.values())).get("confusion", [])
    return tuple(int(count) for count in cast("list[int]", found))


def _check_evaluated(metrics: Metrics, confusion: Sequence[int]) -> None:
    """Refuse what no mean could be taken with; a loss may be infinite."""
    for key in ("accuracy", "majority"):
        if not math.isfinite(metrics[key]):
            raise ValueError(f"{key!r} is {metrics[key]}, no finite number")
    if math.isqrt(len(confusion)) ** 2 != len(confusion):
        raise ValueError(
            f"'confusion' has {len(confusion)} numbers, which no square is"
        )


def _codec(reply: Message) -> str:
    told = reply.content.config_records.get(keys.LINK)
    return "" if told is None else str(told.get(keys.LINK_CODEC, ""))[:80]


def _scores(reply: Message) -> dict[str, Any]:
    """Return an event's scores, if the client wrote answers."""
    written = cast("Mapping[str, Any]", reply.content.get(keys.WRITTEN, {}))
    if not written:
        return {}
    names, values = (written.get(k, ()) for k in (keys.SCORE_NAMES, keys.SCORE_VALUES))
    pairs = zip(names, values, strict=True)
    return {"scores": dict(pairs), "scored": int(written[keys.SCORED])}


def _samples(reply: Message, round: int, client: str, task: str) -> Iterator[Sampled]:
    written = cast("Mapping[str, Any]", reply.content.get(keys.WRITTEN, {}))
    names = (keys.PROMPTS, keys.REFERENCES, keys.ANSWERS)
    texts = zip(*(written.get(name, ()) for name in names), strict=True)
    for number, (prompt, reference, answer) in enumerate(texts):
        yield Sampled(round, client, task, number, prompt, reference, answer)
