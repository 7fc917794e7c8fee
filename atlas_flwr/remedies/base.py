# SPDX-License-Identifier: Apache-2.0
"""The seam that remedies plug into: what they may do at each point of a round.

A remedy eases a drawback of split or federated training. It is one file beside this one
and one entry in ``registry.py``: the keys that it adds to the run config, what a
configuration may get wrong about them, and hooks. Every hook's default changes nothing.
The rest of the package knows no remedy by its name.

``atlas-flwr config`` reads all remedies' files for their keys and has no time to import
torch: what needs it, a hook imports itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from atlas_flwr.options import Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.data import Batch, Collator, Shard
    from atlas_flwr.lora import AdapterState, Scaling
    from atlas_flwr.lora.update import Update
    from atlas_flwr.remedies.personal_layers import PersonalLayers
    from atlas_flwr.split import SplitPlan
    from atlas_flwr.train.model import ClientModel
    from atlas_flwr.train.step import Step, StepLoss
    from atlas_flwr.types import TrunkClient

__all__ = [
    "PERSONAL",
    "UNCHANGED",
    "Average",
    "Blocks",
    "ClientHooks",
    "Remedy",
    "RoundContext",
    "ServerHooks",
    "Store",
]

PERSONAL = "personal"  # entry of a message: which layers are the client's own


class Store(Protocol):
    """What a client remembers from round to round, on its own disk."""

    def save(
        self, name: str, server_round: int, arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        """Keep arrays under a name and a round."""
        ...

    def load(self, name: str, *, before: int) -> dict[str, NDArray[Any]] | None:
        """Return what was kept last before a round; ``None`` for nothing."""
        ...


class Average(Protocol):
    """The mean of what a group held before a round and after it, on products."""

    def __call__(
        self, before: AdapterState, after: AdapterState, share: float
    ) -> AdapterState:
        """Return share W_before + (1 - share) W_after."""
        ...


class Blocks(Protocol):
    """Where the layers of the whole model are."""

    @property
    def num_layers(self) -> int:
        """Blocks of the model."""
        ...

    def block_of(self, name: str) -> int | None:
        """Return a layer's block; ``None`` for what is outside of all."""
        ...


@dataclass(frozen=True)
class RoundContext:
    """What a client knows when a round's message has come.

    Attributes
    ----------
    config : RunConfig
        The run's configuration.
    entries : Mapping[str, Any]
        The message's configuration.
    round : int
        Server round, from 1.
    client : int
        Index of the client.
    plan : SplitPlan, optional
        The client's cut; ``None`` for the whole model.
    before : int
        What the client remembers of this round and later ones is not to be seen: the
        round is done again.
    scaling : Scaling
        LoRA's.
    store : Callable[[], Store]
        Opens what the client remembers.
    start : Callable[[Mapping[str, int], Sequence[str]], AdapterState]
        Makes what all clients begin with, for layers at given ranks and for arrays that
        are trained in full.
    """

    config: RunConfig
    entries: Mapping[str, Any]
    round: int
    client: int
    plan: SplitPlan | None
    before: int
    scaling: Scaling
    store: Callable[[], Store]
    start: Callable[[Mapping[str, int], Sequence[str]], AdapterState]


class ClientHooks:
    """What a remedy does on a client in one round; made anew for each.

    They are called in this order; in an evaluation :meth:`incoming`, :meth:`guard`,
    :meth:`own` and :meth:`collating` alone, and where gradients are sketched the latter
    three.
    """

    def incoming(self, state: AdapterState) -> AdapterState:
        """Change the adapters that the client is to have."""
        return state

    def trunk(self, trunk: TrunkClient) -> TrunkClient:
        """Stand between the client and the trunk that it trains with."""
        return trunk

    def guard(self, trunk: TrunkClient) -> TrunkClient:
        """Stand between the client and every trunk that it calls, whatever for."""
        return trunk

    def own(self, shard: Shard) -> Shard:
        """Change what the client has, before anything at all is made of it."""
        return shard

    def collating(self, collate: Collator) -> Collator:
        """Change how the client's texts become tokens, whatever for."""
        return collate

    def shard(self, shard: Shard, model: Any, collate: Collator) -> Shard:
        """Choose among a client's examples, with the model as the round begins."""
        return shard

    def begin(self, adapted: ClientModel, batches: Sequence[Batch]) -> None:
        """See the model and the round's batches, before the first step."""

    def step(self, step: Step, proceed: Callable[[Step], StepLoss]) -> StepLoss:
        """Return a step's loss; ``proceed`` is how it is without this remedy."""
        return proceed(step)

    def trained(self, state: AdapterState) -> AdapterState:
        """Change the adapters that the client sends back."""
        return state

    def metrics(self) -> Mapping[str, int | float]:
        """Return what to tell the server of the round."""
        return {}


class ServerHooks:
    """What a remedy does on the server, in every round of a run."""

    def counts(
        self, group: str, updates: Callable[[], Sequence[Update]]
    ) -> Sequence[float] | None:
        """Say how much of each member's update counts; ``None``: their weights' share.

        Their sum may be other than 1. ``updates`` returns what the group's members
        changed in this round.
        """
        return None

    def personal(self, plan: SplitPlan, state: AdapterState) -> PersonalLayers | None:
        """Say what a client of this cut keeps to itself; ``None`` for nothing."""
        return None

    def combined(
        self, before: AdapterState, after: AdapterState, average: Average
    ) -> AdapterState:
        """Change what a group's members have made of what the group held before."""
        return after


UNCHANGED = ServerHooks()


class Remedy:
    """One remedy: its rules and its hooks. Its keys are a class in the same file.

    Attributes
    ----------
    name : str
        As in the docs.
    """

    name: ClassVar[str]

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Yield what is wrong about the remedy's keys, beside others."""
        return iter(())

    def remembered_steps(self, config: RunConfig) -> int:
        """Steps of a round of which something is kept, for the memory model."""
        return 0

    def every_step_crosses(self, config: RunConfig) -> bool:
        """Whether each of a client's steps is one of the trunk's, to count progress."""
        return True

    def warnings(self, config: RunConfig) -> Iterator[str]:
        """Yield what a user must not overlook, as a run begins and in its report."""
        return iter(())

    def session_started(
        self,
        config: RunConfig,
        folder: Path,
        client: str,
        server_round: int,
        state: AdapterState,
    ) -> None:
        """See what a client's session on the trunk begins a round of training with."""

    def finish(self, config: RunConfig, run_id: str, folder: Path) -> None:
        """Leave something in the folder of a run that has ended."""

    def needs_classes(self, config: RunConfig) -> bool:
        """Whether it is on, and wants tasks that have classes."""
        return False

    def kept_elsewhere(self, config: RunConfig) -> str:
        """Say what belongs to a run's answers and is not among its adapters, if so."""
        return ""

    def client(self, now: RoundContext) -> ClientHooks:
        """Return what the remedy does on a client in one round."""
        return ClientHooks()

    def server(self, config: RunConfig, blocks: Blocks) -> ServerHooks:
        """Return what the remedy does on the server of a run."""
        return ServerHooks()
