# SPDX-License-Identifier: Apache-2.0
"""Clients' tasks and balances of labels: the truth, made-up ones, and the score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_flwr.cli.recorded import PUBLIC
from atlas_flwr.errors import DataError
from atlas_flwr.report import RunFolder, dealt_to

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_flwr.data import Example, Shard, Task
    from atlas_flwr.privacy import Score
    from atlas_flwr.privacy.attacks.base import Shadows, SketchAttack

__all__ = [
    "Properties",
    "check_public",
    "in_some_balance",
    "public_halves",
    "shares_of",
]

TEXTS = 600  # looked at first of each task that the attacker thinks possible
FEWEST = 100  # wanted among these that are no client's; else further ones are taken


@dataclass(frozen=True)
class Properties:
    """What attacks on a run's clients are held against.

    Attributes
    ----------
    names : Sequence[str]
        Tasks that the attacker thinks possible: the run's, and some others.
    tasks : Mapping[str, str]
        Each client's.
    shares : Mapping[str, NDArray]
        Of each client's texts the share of each class, (classes,); (0,) where its task
        has none.
    told : frozenset[str]
        The clients' own texts, which the attacker has none of.
    """

    names: Sequence[str]
    tasks: Mapping[str, str]
    shares: Mapping[str, NDArray[Any]]
    told: frozenset[str]

    @classmethod
    def of(cls, folder: RunFolder, clients: Sequence[str]) -> Properties:
        """Look at what clients of a run had."""
        from atlas_flwr.serving import dealt_again

        run_id, config, count = folder.run_id(), folder.config(), dealt_to(folder)
        shards = {c: dealt_again(run_id, config, int(c), count) for c in clients}
        return cls(
            list(dict.fromkeys((*config.task_list, *PUBLIC))),
            {client: config.task_of(int(client)) for client in clients},
            {c: shares_of(shard.task, shard.train) for c, shard in shards.items()},
            _texts_of(shards.values()),
        )

    def scores(
        self,
        attacks: Sequence[SketchAttack],
        sent: Mapping[str, NDArray[Any]],
        shadows: Callable[[str], Mapping[str, Shadows]],
        seed: int,
        **about: str,
    ) -> Iterator[Score]:
        """Guess each client's task and, where it has classes, its balance.

        Parameters
        ----------
        attacks : Sequence[SketchAttack]
            What to try.
        sent : Mapping[str, NDArray]
            What each client sent, (parts, dim).
        shadows : Callable[[str], Mapping[str, Shadows]]
            Returns what to compare a client with, by task.
        seed : int
            Of resampling.
        **about : str
            ``defence`` and ``cut``.
        """
        from atlas_flwr.privacy.attacks.base import TASK
        from atlas_flwr.privacy.scores import overlap_score, score

        classed = [c for c in sent if len(self.shares[c])]
        for attack in attacks:
            who = {"attack": attack.name, "adversary": str(attack.adversary)}
            guesses = [attack.task(one, shadows(c)) for c, one in sent.items()]
            yield score(
                [[self.names.index(guess)] for guess in guesses],
                [[self.names.index(self.tasks[client])] for client in sent],
                baseline=1 / len(self.names),
                seed=seed,
                target=TASK,
                **who,
                **about,
            )
            if classed:
                made = {c: shadows(c)[self.tasks[c]] for c in classed}
                yield overlap_score(
                    [attack.balance(sent[c], made[c]) for c in classed],
                    [self.shares[c] for c in classed],
                    [made[c].usual for c in classed],
                    seed=seed,
                    **who,
                    **about,
                )


def public_halves(
    task: Task, told: frozenset[str], seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return two sets of a task's texts, none of them a client's, none in both.

    Raises
    ------
    DataError
        If the clients leave none for one of the two.
    """
    from atlas_flwr.data import make_shard

    shard = make_shard(0, 1, [task], seed=seed)
    others = [e for e in shard.train if e.text not in told]
    early = sum(e.text not in told for e in shard.train[:TEXTS])
    fresh = tuple(others[: max(early, FEWEST)])
    if len(fresh) < 2:
        raise DataError(
            f"task {task.name}: its texts are the clients' own, and none are left to "
            "make up clients of; leave attacks that do so out of --attacks, or attack "
            "a run of lower train-examples"
        )
    return fresh[::2], fresh[1::2]


def check_public(folder: RunFolder, clients: Sequence[str]) -> None:
    """Refuse a run whose clients leave no texts to make up others of.

    It is quick, and to be called before longer work begins. Whether texts have changed
    since the run is said later, by :meth:`Properties.of`.

    Raises
    ------
    DataError
        If it is so of a task.
    """
    from atlas_flwr.client_apps.identity import Identity
    from atlas_flwr.data import load_task

    config, count = folder.config(), dealt_to(folder)
    told = _texts_of(Identity(int(c), count, None).shard(config) for c in clients)
    for name in config.task_list:
        public_halves(load_task(name), told, config.seed)


def _texts_of(shards: Iterable[Shard]) -> frozenset[str]:
    return frozenset(e.text for shard in shards for e in shard.train)


def in_some_balance(
    task: Task, examples: Sequence[Example], size: int, rng: np.random.Generator
) -> Sequence[Example]:
    """Draw texts, with as many of each class as the draw has it, any mix alike often.

    Parameters
    ----------
    task : Task
        Theirs.
    examples : Sequence[Example]
        To draw from, as often as it takes.
    size : int
        How many.
    rng : Generator
        Draws.
    """
    by_class: dict[int, list[Example]] = {}
    for example in examples:
        by_class.setdefault(0 if task.writes else example.truth, []).append(example)
    odds = rng.dirichlet(np.ones(len(by_class)))
    counts = rng.multinomial(size, odds)
    return [
        of_one[int(i)]
        for of_one, count in zip(by_class.values(), counts, strict=True)
        for i in rng.integers(len(of_one), size=count)
    ]


def shares_of(task: Task, examples: Sequence[Example]) -> NDArray[Any]:
    """Return the share of each class, (classes,); (0,) where a task has none."""
    if task.writes:
        return np.zeros(0)
    counts = np.bincount([e.truth for e in examples], minlength=len(task.labels))
    shares: NDArray[Any] = counts / counts.sum()
    return shares
