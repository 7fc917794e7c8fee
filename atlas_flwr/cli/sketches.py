# SPDX-License-Identifier: Apache-2.0
"""What the fingerprints of a run's clients tell of their data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_flwr.cli.labelled import OWN_SECRET
from atlas_flwr.cli.properties import (
    Properties,
    check_public,
    in_some_balance,
    public_halves,
    shares_of,
)
from atlas_flwr.errors import DataError
from atlas_flwr.report import RunFolder
from atlas_flwr.seeds import derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_flwr.config import RunConfig
    from atlas_flwr.lora import AdapterState
    from atlas_flwr.privacy import Score
    from atlas_flwr.privacy.attacks.base import Shadows, SketchAttack
    from atlas_flwr.train.weights import ModelFiles

__all__ = ["check_sketches", "sketch_scores"]

BATCHES = 32  # of each task's texts, in two halves
SHADOWS = 96
NEAR = 0.1  # distance of balances at which a batch is taken a third as often


def check_sketches(folder: RunFolder) -> None:
    """Want fingerprints that can be made up, before longer work begins.

    Raises
    ------
    DataError
        If the run has kept none, or they are of summary positions, or its clients
        have all texts of a task.
    """
    sent = _sent(folder)
    summaries = folder.config().summary_positions
    if summaries:
        raise DataError(
            f"fingerprints of {folder.path} are of summary-positions={summaries}, "
            "which this attacker does not make up; leave fingerprint out of --attacks"
        )
    check_public(folder, [*sent])


def sketch_scores(
    folder: RunFolder, attacks: Sequence[SketchAttack], seed: int
) -> Iterator[Score]:
    """Guess each client's task, among the run's and some others, and its balance.

    Parameters
    ----------
    folder : RunFolder
        Of a run whose clients were clustered.
    attacks : Sequence[SketchAttack]
        What to try.
    seed : int
        Of the shadows, and of resampling.

    Raises
    ------
    DataError
        As :func:`check_sketches` does.
    """
    check_sketches(folder)
    config, sent = folder.config(), _sent(folder)
    own = Properties.of(folder, [*sent])
    shadows = dict(_shadows(config, own, seed))
    yield from own.scores(
        attacks,
        sent,
        lambda client: shadows,
        seed,
        defence=_defence(config),
        cut="none" if config.unsplit else "1/1",
    )


def _defence(config: RunConfig) -> str:
    """Name what clients do to fingerprints, and to what these are made of."""
    from atlas_flwr.remedies.wire_defence import defence_of

    found = str(defence_of(config))
    if not config.fingerprint_epsilon:
        return found
    noise = f"fingerprint-epsilon:{config.fingerprint_epsilon:g}"
    return noise if found == "none" else f"{found}+{noise}"


def _sent(folder: RunFolder) -> dict[str, NDArray[Any]]:
    """Return each client's fingerprint (parts, dim), by the checkpoint."""
    from atlas_flwr.server_apps.checkpoint import load_checkpoint

    state = load_checkpoint(folder.checkpoint_dir).state
    found = {
        key.removeprefix("sketch/"): value
        for key, value in state.items()
        if key.startswith("sketch/")
    }
    if not found:
        raise DataError(
            f"{folder.path} has kept no fingerprints: none are asked for where nobody "
            "is clustered. Leave fingerprint out of --attacks, or run with "
            "strategy='atlas' and clustering='kmeans'"
        )
    return found


def _shadows(
    config: RunConfig, own: Properties, seed: int
) -> Iterator[tuple[str, Shadows]]:
    """Make up clients of each task, of texts that are no client's."""
    from atlas_flwr.clustering import noised
    from atlas_flwr.privacy.attacks.base import Shadows

    rng = np.random.default_rng(seed)
    private = config.fingerprint_epsilon, config.fingerprint_delta
    for name, (rows, shares, usual) in _sketched(config, own, rng):
        sketches, mixes, second = [], [], np.arange(SHADOWS) % 2 == 1
        for turn, half in enumerate(second):
            mine = slice(BATCHES // 2, None) if half else slice(BATCHES // 2)
            odds = _near(shares[mine], rng)
            chosen = rng.choice(BATCHES // 2, size=config.fingerprint_batches, p=odds)
            sketch = _dealt(rows[mine][chosen], config.fingerprint_parts)
            if config.fingerprint_epsilon:
                drawn = derive_seed(seed, "shadow", name, turn)
                sketch = noised(sketch, *private, seed=drawn)
            sketches.append(sketch)
            mixes.append(shares[mine][chosen].mean(0))
        yield name, Shadows(np.stack(sketches), np.stack(mixes), second, usual)


def _sketched(
    config: RunConfig, own: Properties, rng: np.random.Generator
) -> Iterator[tuple[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]]:
    """Sketch batches of each task: (batches, dim), (batches, classes), (classes,)."""
    from atlas_flwr.data import load_task, tokenizer_of
    from atlas_flwr.data.collation import collator_of
    from atlas_flwr.lora import Scaling
    from atlas_flwr.remedies.wire_defence import defence_of, read_through
    from atlas_flwr.train.model import adapted_whole
    from atlas_flwr.train.sketch import batch_gradients
    from atlas_flwr.train.weights import ModelFiles

    files, defence = ModelFiles.of(config, "cpu"), defence_of(config)
    tokenizer: Any = tokenizer_of(files.source)
    with adapted_whole(files.whole(), _start(config, files), Scaling()) as adapted:
        for name in own.names:
            task = load_task(name)
            plain = collator_of(files.source, tokenizer, task, config.max_length)
            collate = read_through(plain, defence, files, OWN_SECRET)
            halves = public_halves(task, own.told, config.seed)
            drawn = [
                in_some_balance(task, half, _examples(config), rng)
                for half in halves
                for _ in range(BATCHES // 2)
            ]
            changed = [
                defence.examples(batch, len(task.labels), OWN_SECRET, learned=True)
                for batch in drawn
            ]
            batches = [collate(batch) for batch in changed]
            gradients = batch_gradients(
                adapted.model, batches, name=adapted.parameter_name
            )
            rows = [_row(found, config) for found in gradients]
            shares = np.stack([shares_of(task, batch) for batch in drawn])
            yield name, (np.stack(rows), shares, shares_of(task, sum(halves, ())))


def _examples(config: RunConfig) -> int:
    """Return how many are in a batch of a client's fingerprint, of all it may have.

    Where it takes its whole share, that is taken to fill the batches.
    """
    if not config.train_examples:
        return config.batch_size
    each = config.train_examples // config.fingerprint_batches
    return max(1, min(config.batch_size, each))


def _row(gradients: Mapping[str, Any], config: RunConfig) -> NDArray[Any]:
    """Sketch one batch's gradients, not scaled: (dim,)."""
    from atlas_flwr.clustering import project
    from atlas_flwr.clustering.sketch import flat_array

    flat = {name: flat_array(found) for name, found in gradients.items()}
    sizes = {name: float(np.linalg.norm(found)) for name, found in flat.items()}
    unit = {name: flat[name] / size for name, size in sizes.items() if size}
    row: NDArray[Any] = project(unit, config.fingerprint_dim, config.seed)
    return row


def _start(config: RunConfig, files: ModelFiles) -> AdapterState:
    """Return the adapters that all clients sketch the gradients of."""
    from atlas_flwr.cohort.fingerprints import PLAN
    from atlas_flwr.server_apps.build import scaling_of
    from atlas_flwr.train.initial import FINGERPRINT_RANK, initial_state

    outline = files.outline()
    away = range(0) if config.unsplit else PLAN.trunk_range(outline.num_layers)
    shapes = {
        name: shape
        for name, shape in outline.shapes(config.target_list).items()
        if outline.block_of(name) not in away
    }
    return initial_state(
        shapes, rank=FINGERPRINT_RANK, scaling=scaling_of(config), seed=config.seed
    )


def _near(shares: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Draw a balance, and return how probably each batch is taken for it."""
    count, classes = shares.shape
    if not classes:
        return np.full(count, 1 / count)
    wanted = rng.dirichlet(np.ones(classes))
    away = np.abs(shares - wanted).sum(1) / 2
    weights = np.exp((away.min() - away) / NEAR)
    odds: NDArray[Any] = weights / weights.sum()
    return odds


def _dealt(rows: NDArray[Any], parts: int) -> NDArray[Any]:
    """Deal batches to parts, as a client does: (parts, dim), of unit norm in all."""
    dealt = np.stack([rows[part::parts].mean(0) for part in range(parts)])
    sketch: NDArray[Any] = dealt / np.linalg.norm(dealt)
    return sketch
