# SPDX-License-Identifier: Apache-2.0
"""What each cluster has learned: its adapters, from the shared start onwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from atlas_flwr.aggregation import AGGREGATIONS, Contribution, Rule, Start
from atlas_flwr.aggregation.contribution import shares
from atlas_flwr.aggregation.global_arrays import GlobalArrays, Ranks
from atlas_flwr.aggregation.members import Members
from atlas_flwr.aggregation.mixing import Room, averaged, mixed
from atlas_flwr.aggregation.row_norms import row_norms, with_row_norms
from atlas_flwr.aggregation.sums import weighted_sum
from atlas_flwr.aggregation.weighing import weighed
from atlas_flwr.errors import AdapterError
from atlas_flwr.log import log
from atlas_flwr.lora import (
    AdapterState,
    LoraFactors,
    Scaling,
    canonical,
    leading,
    share_of_rest,
)
from atlas_flwr.lora.flattening import flatten, unflatten
from atlas_flwr.remedies.base import UNCHANGED, ServerHooks

__all__ = ["ClusterAdapters"]

EVERY_GROUP = "*"  # the origin of what all groups have learned together


@dataclass
class ClusterAdapters:
    """Adapters by group: a cluster's label, or a client's id where each is alone.

    Parameters
    ----------
    rule : Rule
        How adapters become one, and come back.
    scaling : Scaling
        LoRA's scale on the clients.
    seed : int
        Of the run.
    hooks : ServerHooks
        What remedies make of a group's former adapters and its new ones.

    Attributes
    ----------
    arrays : GlobalArrays
        Those that the strategy was started with, and their layout.
    groups : dict[str, AdapterState]
        What every group that has trained holds, in the rule's own form.
    """

    rule: Rule = field(default_factory=AGGREGATIONS["truncate"])
    scaling: Scaling = field(default_factory=Scaling)
    seed: int = 0
    hooks: ServerHooks = UNCHANGED
    groups: dict[str, AdapterState] = field(default_factory=dict)
    arrays: GlobalArrays = field(init=False)
    _overall: AdapterState | None = None
    _handed: AdapterState | None = None  # the last arrays, if they were changed
    _row_norms: dict[str, float] | None = None  # of A, by layer, if they ever were
    _members: Members = field(default_factory=Members)
    _trained: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arrays = GlobalArrays(self.scaling)

    def begin(self, arrays: ArrayRecord) -> None:
        """Take the initial arrays, or what has become of those last returned.

        Raises
        ------
        AdapterError
            If arrays were changed that this strategy cannot give back to its clients.
        """
        changed = self.arrays.are_changed(arrays)
        self.arrays.begin(arrays)
        if changed:
            self._take(arrays)

    @property
    def has_learned(self) -> bool:
        """Whether clients have ever trained, before a resumption included."""
        return self._overall is not None

    def begin_anew(self) -> None:
        """Forget all that was learned: the next arrays are initial ones."""
        self.groups, self._overall, self._handed = {}, None, None
        self._row_norms, self._members, self._trained = None, Members(), {}
        self.arrays = GlobalArrays(self.scaling)

    def returned(self) -> ArrayRecord:
        """Return all clients' adapters together, as the strategy's result."""
        made = self.arrays.layout.write(self.overall)
        self.arrays.expect(made)
        return made

    def _take(self, arrays: ArrayRecord) -> None:
        """Let clients start from arrays that somebody else made, or changed."""
        if self.rule.folds or len(self.groups) > 1:
            why = (
                "what does not fit into their rank is folded into the frozen weights"
                if self.rule.folds
                else f"the {len(self.groups)} clusters have adapters of their own"
            )
            raise AdapterError(
                "the arrays that came back are not those that aggregate_train "
                "returned: a wrapper (differential privacy), a subclass or server "
                f"momentum has changed them, and {why}, so that nobody would be sent "
                "the change. Use clustering='none' with aggregation='truncate' or "
                "'mean', or Flower's FedAvg"
            )
        handed = self.arrays.layout.read(arrays, "changed arrays")
        state = handed
        if self.rule.rescales:  # else factors are held as they are
            whole = {name: canonical(found) for name, found in handed.factors.items()}
            state = AdapterState(whole, handed.dense)
        self._handed, self._overall = handed, state
        self._row_norms = self._row_norms or {}
        self.groups = dict.fromkeys(self.groups, state)

    @property
    def overall(self) -> AdapterState:
        """Return all clients' adapters together, at the initial ranks."""
        if self._overall is None:
            return self.arrays.initial
        if self._handed is not None:
            return self._handed
        if len(self.groups) == 1 and not self.rule.folds:
            (only,) = self.groups.values()
            return self._started(only, None, 0, "")  # what its clients are sent
        initial, scale = self.arrays.initial, self.arrays.layout.scale
        factors = {
            name: leading(found, rank, scale=scale(rank))
            for name, found in self._overall.factors.items()
            for rank in (initial.factors[name].rank,)
        }
        return initial.merged(AdapterState(factors, self._overall.dense))

    def start(self, group: str | None, ranks: Ranks, round_: int) -> AdapterState:
        """Return what a client of a group starts from, at its ranks.

        Parameters
        ----------
        group : str, optional
            ``None`` for a client that is in none yet.
        ranks : Mapping[str, int] or int, optional
            By layer, or one for all; ``None`` for the initial arrays'.
        round_ : int
            Server round.
        """
        held = None if group is None else self.groups.get(group)
        return self._started(held, ranks, round_, str(group))

    def held(self, origin: str) -> AdapterState | None:
        """Return what a started state's ``origin`` names."""
        return self._overall if origin == EVERY_GROUP else self.groups.get(origin)

    def serve(self, group: str | None, ranks: Ranks, round_: int) -> AdapterState:
        """Return what a client is to evaluate, at its ranks.

        Unlike :meth:`start` it gives a client in no group, or in one that has not
        trained, what all groups have learned together.
        """
        held = None if group is None else self.groups.get(group)
        origin = str(group) if held else EVERY_GROUP
        return self._started(held or self._overall, ranks, round_, origin)

    def _started(
        self, held: AdapterState | None, ranks: Ranks, round_: int, origin: str
    ) -> AdapterState:
        initial, scale = self.arrays.initial, self.arrays.layout.scale
        at = Start(initial, self.arrays.ranks(ranks), scale, self.seed, round_)
        if self._handed is not None and ranks is None:
            return self._handed  # to the bit: updates are clipped against these
        if held is None:
            return at.nested(initial)
        state = self.rule.start(held, at)
        if self._row_norms is not None and self.rule.rescales:
            state = with_row_norms(state, self._row_norms)
        # What no member has sent, as clients keep it to themselves, is as at first.
        dense = {**initial.dense, **state.dense}
        return replace(state, dense=dense, origin=origin)

    def full(self, group: str | None) -> AdapterState:
        """Return what a group has learned, uncut; see :meth:`serve` for the others."""
        held = None if group is None else self.groups.get(group)
        return held or self._overall or self.arrays.initial

    def aggregate(self, members: Mapping[str, Sequence[Contribution]]) -> None:
        """Replace the adapters of each group by its members' together.

        What a group that has trained before makes of both is for the hooks to say. Who
        has no examples is left out, and a group of such members keeps what it had.

        Raises
        ------
        AdapterError
            If there are members, and none has an example.
        """
        self._trained = {}  # of this round alone: no checkpoint knows of former ones
        if not members:
            return
        members = _with_examples(members)
        self._handed = None
        if self._row_norms is not None:
            everyone = [part for parts in members.values() for part in parts]
            self._row_norms = row_norms(everyone)
        self._trained = {g: _rank_sums(parts) for g, parts in members.items()}
        for group, parts in members.items():
            former = self.groups.get(group)
            now = partial(self._now, former, group) if self.rule.adds_changes else None
            counted = weighed(parts, group, self.hooks, now)
            state = self.rule.combine(former, counted)
            if former is not None:
                average = partial(
                    averaged,
                    max_rank=self.rule.max_rank,
                    room=self._room([group]),
                    products=self.rule.rescales,
                )
                state = self.hooks.combined(former, state, average)
            self.groups[group] = state
            self._members.count(group, parts)
        self._overall = self._together()

    def _together(self) -> AdapterState:
        """Sum the groups by their members' weights; one of no members counts nothing.

        Such a group holds what its members had learned who are in others now, or what
        the former group had of one who has not trained yet.
        """
        parts = [self.of(group) for group in self.groups]
        return weighted_sum(
            [replace(p, state=self._shortened(p.state)) for p in parts if p.weight]
        )

    def _now(
        self, held: AdapterState | None, group: str, part: Contribution
    ) -> AdapterState:
        ranks = {name: found.rank for name, found in part.state.factors.items()}
        return self._started(held, ranks, 0, group)

    def _shortened(self, state: AdapterState) -> AdapterState:
        """Cut at the initial rank: what goes into the arrays of all groups together.

        These have that rank anyway, and an exact sum of all groups' full ranks would
        take longer than everything else.
        """
        factors = {}
        for name, found in state.factors.items():
            rank = self.arrays.initial.factors[name].rank
            factors[name] = LoraFactors(found.A[:rank], found.B[:, :rank], found.scale)
        return AdapterState(factors, state.dense)

    def mix(self, names: Sequence[str], matrix: NDArray[np.float64]) -> None:
        """Let groups take of each other, by a matrix in the order of their names."""
        self.groups |= mixed(
            {name: self.groups[name] for name in names},
            matrix,
            max_rank=self.rule.max_rank,
            room=self._room(names),
            products=self.rule.rescales,
        )
        if names:
            self._overall = self._together()

    def of(self, group: str) -> Contribution:
        """Return what a group holds, with its members' weight."""
        return Contribution(group, self._members.weight(group), self.groups[group])

    def give(self, common: AdapterState, newcomers: str) -> None:
        """Let all groups hold what is common to them, and one for who has none yet.

        That holds all layers, the others as they were at first: it is exported, too.
        """
        self.groups.setdefault(newcomers, self.arrays.initial)
        self.groups = {g: state.merged(common) for g, state in self.groups.items()}
        self._overall = self._together()

    def _room(self, groups: Sequence[str]) -> Room:
        """Say at which rank a sum of what groups hold is handed out."""
        known = [self._trained[g] for g in groups if g in self._trained]

        def room(layer: str, terms: Sequence[LoraFactors]) -> int | None:
            trained = sum(sums.get(layer, 0) for sums in known)
            return self.rule.room(trained, *(found.rank for found in terms))

        return room

    @property
    def held_back(self) -> float:
        """The share of a group's sum that its clients are not sent; the largest."""
        return max(map(share_of_rest, self.groups.values()), default=0.0)

    def regroup(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Give each new group what its members had learned in their former ones."""
        members: dict[str, list[Contribution]] = {}
        for client, label in after.items():
            former = self.groups.get(str(before.get(client)))
            if former is not None:
                part = Contribution(client, 1.0, former)
                members.setdefault(str(label), []).append(part)
        self.groups = {g: self._gathered(parts) for g, parts in members.items()}
        self._members.regroup(after)

    def _gathered(self, parts: Sequence[Contribution]) -> AdapterState:
        """Return what clients held, together, in the rule's own form.

        Means of factors stay in their basis: clients that are late have trained in it.
        """
        if self.rule.rescales:
            return weighted_sum(parts, self.rule)
        if len({id(part.state) for part in parts}) == 1:
            return parts[0].state
        return self.rule.combine(None, parts)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, object]]:
        """Return what a resumed run needs: arrays, and JSON values."""
        arrays = flatten(self.arrays.initial, "initial")
        if self._overall:
            arrays |= flatten(self._overall, "overall")
        if self._handed:
            arrays |= flatten(self._handed, "handed")
        for group, found in self.groups.items():
            arrays |= flatten(found, f"group/{group}")
        trained = self._overall is not None
        values = {"groups": list(self.groups), "trained": trained}
        more = {
            "weights": self._members.by_group,
            "digests": list(self.arrays.digests),
            "row-norms": self._row_norms,
            "handed": self._handed is not None,
        }
        return arrays, {**values, **more}

    def restore(
        self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        """Take up what :meth:`state` returned."""
        initial = unflatten(arrays, "initial")
        self.arrays.restore(initial, values.get("digests", ()))
        self._overall = unflatten(arrays, "overall") if values["trained"] else None
        self.groups = {g: unflatten(arrays, f"group/{g}") for g in values["groups"]}
        weights = {g: dict(known) for g, known in values["weights"].items()}
        self._members = Members(weights)
        # Neither is in older checkpoints.
        self._row_norms = values.get("row-norms")
        self._handed = unflatten(arrays, "handed") if values.get("handed") else None


def _with_examples(
    members: Mapping[str, Sequence[Contribution]],
) -> dict[str, Sequence[Contribution]]:
    """Leave out members of weight 0, who would be all that some layers have."""
    shares([part for parts in members.values() for part in parts])
    found: dict[str, Sequence[Contribution]] = {}
    for group, parts in members.items():
        if counting := [part for part in parts if part.weight > 0]:
            found[group] = counting
        else:
            told = "group %s: none of its %d members has an example: it stays as it is"
            log(WARNING, told, group, len(parts))
    return found


def _rank_sums(parts: Sequence[Contribution]) -> dict[str, int]:
    """Sum the ranks that were trained, by layer."""
    sums: dict[str, int] = {}
    for part in parts:
        for name in part.state.factors:
            sums[name] = sums.get(name, 0) + part.trained(name) * len(part.weights)
    return sums
