# SPDX-License-Identifier: Apache-2.0
"""A run, from its configuration to its folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, UserConfigValue
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.config import RunConfig, split_list, to_yaml
from atlas_flwr.config.unread import unread_keys
from atlas_flwr.data.lengths import warn_of_cuts
from atlas_flwr.errors import RoundError, TrunkLost
from atlas_flwr.grids.mending import MendingGrid
from atlas_flwr.grids.progress import ProgressGrid
from atlas_flwr.grids.quorum import QuorumGrid
from atlas_flwr.grids.recording import RecordingGrid
from atlas_flwr.grids.resumable import Resumable, Stateful, seed_draws
from atlas_flwr.grids.secure import SecureGrid
from atlas_flwr.log import log
from atlas_flwr.protocol import keys
from atlas_flwr.remedies import finish_remedies, remedy_warnings, session_started
from atlas_flwr.report import (
    RunEnded,
    RunFolder,
    RunStarted,
    final_table,
    round_table,
    summarize_folder,
    write_report,
)
from atlas_flwr.server_apps.admission import Admission
from atlas_flwr.server_apps.build import (
    STRATEGIES,
    RunContext,
    initial_arrays,
    needs_trunk,
)
from atlas_flwr.server_apps.checkpoint import Checkpoint, save_checkpoint, saved_rounds
from atlas_flwr.server_apps.checks import checked_config
from atlas_flwr.server_apps.continuation import check_clients, left_behind, saved_state
from atlas_flwr.server_apps.export import check_learned, export_adapters
from atlas_flwr.server_apps.minima import may_come_later, with_minima_met
from atlas_flwr.server_apps.progress import Progress
from atlas_flwr.server_apps.raylet import watched_raylet
from atlas_flwr.server_apps.recorder import Recorder
from atlas_flwr.server_apps.trunk import check_reach, trunk_of
from atlas_flwr.train.memory import PeakMeter
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import Endpoint
from atlas_flwr.trunk.host import Introducing

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes
    ----------
    config : RunConfig
        Its configuration; a resumed run's is the one that it began with.
    folder : RunFolder
        Its folder.
    checkpoint : Checkpoint, optional
        Where to continue.
    given : Collection[str]
        Keys that were given for this run.
    """

    config: RunConfig
    folder: RunFolder
    checkpoint: Checkpoint | None
    given: Collection[str] = ()

    @classmethod
    def begin(
        cls, run_config: Mapping[str, UserConfigValue], given: Collection[str] = ()
    ) -> Run:
        """Check the configuration, and make or open the run's folder.

        Parameters
        ----------
        run_config : Mapping[str, UserConfigValue]
            Flower's, flat and kebab-case.
        given : Collection[str]
            Keys that were given for this run; the others are the app's.

        Raises
        ------
        ConfigError
            With every problem of the configuration.
        ResumeError
            If the run to resume has no checkpoint, or was another one.
        """
        config = checked_config(run_config, given)
        if not run_config.get("resume"):
            return cls(config, RunFolder.create(config), None, given)
        folder, saved = saved_state(str(run_config["resume"]), config)
        if left := left_behind(run_config, folder.config()):
            told = ", ".join(f"{key}={value!r}" for key, value in left.items())
            log(INFO, "%s: left out, as the trunk of trunk-access has its own", told)
        folder.rewrite(config)
        return cls(config, folder, saved, given)

    def execute(self, grid: Grid) -> None:
        """Train, and leave report, summary and adapters in the folder."""
        check_reach(self.config, grid)
        log(INFO, "run folder:    %s", self.folder.path.resolve())
        log(INFO, "configuration: %s", self.folder.config_path.resolve())
        for told in (
            *unread_keys(self.config, self.given),
            *remedy_warnings(self.config),
        ):
            log(WARNING, "%s", told)
        files = ModelFiles.of(self.config, self.config.server_device)
        warn_of_cuts(files.source, self.config.task_list, self.config.max_length)
        outline = files.outline()
        roster = Roster(
            request=self._messages(),
            timeout=self.config.round_timeout,
            check=Admission(self.config, files),
            waits=self._has_trained and may_come_later(grid),
            without=split_list(self.config.without_clients),
        )
        config = with_minima_met(self.config, self.given, grid, roster)
        recorder, progress = Recorder(self.folder, roster), Progress(config)
        start = partial(trunk_of, grid=grid)
        grid = ProgressGrid(
            grid, progress.saw, lambda nodes: progress.waiting(nodes, roster.refused)
        )
        if config.quorum < 1:
            grid = QuorumGrid(
                grid,
                config.quorum,
                keep_late=config.counts_late,
                exponent=config.staleness_exponent,
                cutoff=config.staleness_cutoff,
            )
            roster.busy, roster.give_up = grid.busy, grid.give_up
        mending = MendingGrid(grid)
        known = recorder.exchange, self._has_trained
        recording = RecordingGrid(mending, roster, *known)
        started = partial(session_started, config, self.folder.path)
        context = config, files, outline, roster, recorder.event
        setting = RunContext(*context, started=started)
        rounds = _Rounds(recording, mending, recorder, progress, self.checkpoint)
        for restarts_left in range(config.trunk_restarts, -1, -1):
            try:
                watched, trunk = watched_raylet(), _trunk(setting, start)
                with watched, trunk as split, PeakMeter() as meter:
                    inner = STRATEGIES[config.strategy](split)
                    with _lost_trunk_is_said(split):
                        arrays = self._train(rounds, inner, split, meter)
                break
            except TrunkLost as error:
                if not restarts_left:
                    raise
                log(WARNING, "%s", error)
                log(WARNING, "starting the trunk again, and the round with it")
                roster.give_up()  # who is late has lost its part on the trunk
                done = rounds.saved.round if rounds.saved else -1
                recorder.restart(done, str(error))
        self._finish(inner, split, arrays)

    @property
    def _has_trained(self) -> bool:
        """Whether a former start of this run has done a round, by its checkpoint."""
        return self.checkpoint is not None and self.checkpoint.round > 0

    def _train(
        self, rounds: _Rounds, inner: Strategy, setting: RunContext, meter: PeakMeter
    ) -> ArrayRecord:
        config, saved = self.config, rounds.saved
        recorder, progress = rounds.recorder, rounds.progress
        grid: Grid = rounds.grid
        host = setting.trunk.host if setting.trunk else None
        rounds.mending.host = host if isinstance(host, Introducing) else None
        if config.secure_aggregation:
            grid = SecureGrid(grid, inner)
        progress.stats = host.stats if host else None
        done = saved.round if saved else 0
        arrays = saved.arrays if saved else initial_arrays(setting)
        if saved and isinstance(inner, Stateful):
            inner.restore(saved.state, saved.values)
        if not rounds.begun:  # another trunk is no other start
            self._record_start(done, grid, setting.roster)
            rounds.begun = True
        if done >= config.num_rounds:
            log(INFO, "all %d rounds are done already", done)
            return arrays
        recorder.round = done
        progress.begin(done + 1 if saved else 0)

        def end_round(number: int, now: ArrayRecord) -> None:
            # Told of before it is saved: a round that is saved is not done again.
            peak = _server_peak(setting.trunk, meter)
            recorder.end_round(peak, setting.calls.refused())
            rounds.saved = _taken(number, now, inner)
            every, last = config.checkpoint_every, number == config.num_rounds
            if every and (last or number % every == 0):
                save_checkpoint(self.folder.checkpoint_dir, rounds.saved)
                saved_now = saved_rounds(self.folder.checkpoint_dir)
                for messages in (train, evaluate):
                    messages[keys.SAVED_ROUNDS] = saved_now
            progress.end_round()
            self._report()

        train, evaluate = self._messages(), self._messages()
        if saved is None:
            self._evaluate_untrained(grid, inner, arrays, evaluate)
            end_round(0, arrays)
        else:
            recorder.round += 1
        wrapped = Resumable(
            inner,
            first_round=done + 1,
            seed=config.seed,
            evaluate_every=config.evaluate_every,
            last_round=config.num_rounds,
            on_round_end=end_round,
        )
        wrapped.start(
            grid=grid,
            initial_arrays=arrays,
            num_rounds=config.num_rounds - done,
            timeout=config.round_timeout,
            train_config=train,
            evaluate_config=evaluate,
        )
        return wrapped.arrays

    def _record_start(self, done: int, grid: Grid, roster: Roster) -> None:
        connected = list(grid.get_node_ids())
        here = {profile.client for profile in roster.profiles.values()}
        if strange := set(split_list(self.config.without_clients)) - here:
            log(WARNING, "without-clients: nobody here is %s", ", ".join(strange))
        partitions = max((p.partitions for p in roster.profiles.values()), default=0)
        if self.checkpoint and partitions:
            check_clients(self.folder, partitions)
        self.folder.record(RunStarted(done, len(connected), partitions))

    def _messages(self) -> ConfigRecord:
        told = ConfigRecord(
            {keys.RUN_CONFIG: to_yaml(self.config), keys.RUN_ID: self.folder.run_id()}
        )
        if saved := saved_rounds(self.folder.checkpoint_dir):
            told[keys.SAVED_ROUNDS] = saved
        return told

    def _evaluate_untrained(
        self, grid: Grid, inner: Strategy, arrays: ArrayRecord, config: ConfigRecord
    ) -> None:
        seed_draws(self.config.seed, "evaluate", 0)
        messages = inner.configure_evaluate(0, arrays, config, grid)
        replies = grid.send_and_receive(messages, timeout=self.config.round_timeout)
        inner.aggregate_evaluate(0, replies)

    def _report(self) -> None:
        log(INFO, "\n%s", round_table(summarize_folder(self.folder)))

    def _finish(
        self, inner: Strategy, setting: RunContext, arrays: ArrayRecord
    ) -> None:
        check_learned(inner, setting, arrays)
        paths = export_adapters(self.folder, inner, setting, arrays)
        self.folder.record(RunEnded(self.config.num_rounds))
        finish_remedies(self.config, self.folder.run_id(), self.folder.path)
        summary = summarize_folder(self.folder)
        write_report(self.folder)
        for path in paths:
            log(INFO, "adapters: %s", path.resolve())
        log(INFO, "report:   %s", self.folder.report_path.resolve())
        log(INFO, "\n%s", final_table(summary))


@dataclass
class _Rounds:
    """What outlives a trunk: who is asked and told, and where to go on.

    Attributes
    ----------
    grid : Grid
        Reaches the clients.
    mending : MendingGrid
        Within it: knows the trunk of now.
    recorder, progress : Recorder, Progress
        Are told.
    saved : Checkpoint, optional
        The server's state after the last round.
    begun : bool
        Whether it is written down that they begin.
    """

    grid: Grid
    mending: MendingGrid
    recorder: Recorder
    progress: Progress
    saved: Checkpoint | None
    begun: bool = False


@contextmanager
def _lost_trunk_is_said(setting: RunContext) -> Iterator[None]:
    """Where a round failed since its trunk is gone, let that be the error."""
    try:
        yield
    except RoundError:
        if setting.trunk is not None:
            setting.trunk.host.ping()
        raise


def _taken(number: int, arrays: ArrayRecord, inner: Strategy) -> Checkpoint:
    state, values = inner.state() if isinstance(inner, Stateful) else ({}, {})
    return Checkpoint(number, arrays, state, values)


@contextmanager
def _trunk(
    setting: RunContext,
    start: Callable[[RunContext], AbstractContextManager[Endpoint]],
) -> Iterator[RunContext]:
    """Start the trunk that the strategy needs, if it does, and stop it afterwards."""
    config = setting.config
    if not needs_trunk(config):
        yield setting
        return
    log(INFO, "starting the trunk with %s", config.model)
    with start(setting) as trunk:
        yield replace(setting, trunk=trunk)


def _server_peak(trunk: Endpoint | None, meter: PeakMeter) -> int:
    """Peak of the trunk, or where there is none of the ServerApp's own process.

    A trunk on a GPU has its peak there.
    """
    if trunk is None:
        return meter.so_far()
    stats = trunk.host.stats()
    return stats.device_peak_bytes or stats.peak_bytes
