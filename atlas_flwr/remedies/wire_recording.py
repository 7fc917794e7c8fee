# SPDX-License-Identifier: Apache-2.0
"""A record of what crosses the cut, for the owner of a run to attack.

See :mod:`atlas_flwr.privacy.recorder`. Each client writes its own on its own disk, and
at the end of the run those that are on the server's machine come into the run's folder.
What the trunk's adapters began each round with the server writes there itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_flwr.options import ADAPTER_STRATEGIES, Problem, option
from atlas_flwr.remedies.base import ClientHooks, Remedy, RoundContext

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.lora import AdapterState
    from atlas_flwr.train.step import Step, StepLoss
    from atlas_flwr.types import TrunkClient

__all__ = ["RecordingKeys", "WireRecording", "gather_wire"]

WIRE = "wire"
LIMIT = 8 * 2**20  # of a client in a round, adapters not counted


@dataclass(frozen=True)
class RecordingKeys:
    """Keys of the run config."""

    record_wire: bool = option(
        False,
        "Keep what crosses the cut in training, with the clients' texts beside it, for "
        "`atlas-flwr attack` to read: 8 MiB a client and round at most, in RUN/wire. "
        "For runs on text that may lie there; each client's part is first on its disk.",
        only=ADAPTER_STRATEGIES,
    )


class WireRecording(Remedy):
    """Writes down what a trunk could have."""

    name = "record-wire"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want a cut, and nothing of the attacks' unknown before the text."""
        if not config.record_wire or config.strategy not in ADAPTER_STRATEGIES:
            return
        if config.split == "none":
            yield Problem(
                ("record-wire", "split"),
                "record-wire=true: with split='none' nothing crosses; set another "
                "split, or record-wire=false",
            )
        if config.adapter == "prompt":
            yield Problem(
                ("record-wire", "adapter"),
                "record-wire=true with adapter='prompt': what crosses then has a "
                "prompt before each text, which no attack here reads; set another "
                "adapter, or record-wire=false",
            )

        if config.in_flight > 1:
            yield Problem(
                ("in-flight", "record-wire"),
                f"in-flight={config.in_flight} with record-wire=true: who records "
                "reads one batch after the other; set in-flight=1",
            )

    def warnings(self, config: RunConfig) -> Iterator[str]:
        """Say that private text is being written down."""
        if config.record_wire:
            yield (
                "record-wire=true: the clients' texts, and what crosses the cut, are "
                "written to disk in the clear; delete RUN/wire when you are done"
            )

    def session_started(
        self,
        config: RunConfig,
        folder: Path,
        client: str,
        server_round: int,
        state: AdapterState,
    ) -> None:
        """Keep the trunk's part of what a client starts with, as its server has it."""
        if config.record_wire:
            from atlas_flwr.privacy.starts import keep_start

            keep_start(folder / WIRE, client, server_round, state)

    def finish(self, config: RunConfig, run_id: str, folder: Path) -> None:
        """Bring what was recorded on this machine into the run's folder."""
        if config.record_wire:
            gather_wire(run_id, folder)

    def client(self, now: RoundContext) -> ClientHooks:
        """Record, if the run says so."""
        return _Recording(now) if now.config.record_wire else ClientHooks()


class _Recording(ClientHooks):
    def __init__(self, now: RoundContext) -> None:
        self.now = now

    def incoming(self, state: AdapterState) -> AdapterState:
        self.adapters = state
        return state

    def trunk(self, trunk: TrunkClient) -> TrunkClient:
        from atlas_flwr.privacy.recorder import RecordingTrunk
        from atlas_flwr.wire import codec_named

        now = self.now
        self.recorder = RecordingTrunk(
            trunk,
            codec=codec_named(now.config.recorded_codec),
            client=str(now.client),
            round=now.round,
            cut=str(now.plan),
            limit=LIMIT,
        )
        return self.recorder

    def step(self, step: Step, proceed: Callable[[Step], StepLoss]) -> StepLoss:
        with self.recorder.reading(step.batch):
            return proceed(step)

    def trained(self, state: AdapterState) -> AdapterState:
        from atlas_flwr.privacy.observation import Recording, packed

        now, kept = self.now, self.recorder
        if kept.observations:
            assert now.plan is not None
            found = Recording(
                str(now.client),
                now.round,
                now.plan,
                self.adapters,
                kept.observations,
                kept.truths,
                state,
            )
            now.store().save(WIRE, now.round, packed(found))
        return state


def gather_wire(run_id: str, folder: Path) -> list[Path]:
    """Move what clients on this machine recorded into ``folder/wire``; list all there.

    Parameters
    ----------
    run_id : str
        The run's.
    folder : Path
        The run's.
    """
    from atlas_flwr.data.cache import clients_folder

    target = folder / WIRE
    for path in sorted(clients_folder(run_id).glob(f"*/{WIRE}-*.npz")):
        target.mkdir(exist_ok=True)
        number = path.stem.rpartition("-")[2]
        shutil.move(path, target / f"{path.parent.name}-{number}.npz")
    return sorted(target.glob("*.npz"))
