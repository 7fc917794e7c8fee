# SPDX-License-Identifier: Apache-2.0
"""Who the clients are: ids that outlive a run, budgets, and a stable order of nodes.

Flower gives nodes new random ids in every simulation. What has to be the same in a
resumed run (sampling, clusters, seeds) therefore hangs on the id that a client itself
states when it is asked with a ``query.describe`` message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from atlas_flwr.errors import AtlasError
from atlas_flwr.log import log
from atlas_flwr.ordering import by_number
from atlas_flwr.protocol import keys
from atlas_flwr.protocol.profile import Profile
from atlas_flwr.protocol.replies import reason_of

__all__ = ["Roster"]

_WARNING = 30


@dataclass
class Roster:
    """Profiles by node id, learned once from each node.

    Parameters
    ----------
    ask : bool
        Whether nodes answer ``query.describe``. If not, a node's id is its name.
    timeout : float, optional
        Seconds to wait for descriptions.
    request : ConfigRecord
        What the question brings along, e.g. the run's configuration.
    busy : Callable[[], Collection[int]]
        Tells the nodes that are still at a former round, and whose update will count:
        they are asked for nothing else.
    give_up : Callable[[], None]
        Lets none of them be busy any more.
    check : Callable[[Profile], object]
        Raises BudgetError or PlanError for a client that could be given nothing.
    waits : bool
        Whether others than those that are refused will come, as where a run had some
        before it was resumed, and its nodes come one by one.
    without : Collection[str]
        Clients that are not to take part: their nodes are asked who they are alone.
    """

    ask: bool = True
    timeout: float | None = None
    request: ConfigRecord = field(default_factory=ConfigRecord)
    busy: Callable[[], Collection[int]] = tuple
    give_up: Callable[[], None] = lambda: None
    check: Callable[[Profile], object] = lambda _: None
    waits: bool = False
    without: Collection[str] = ()
    profiles: dict[int, Profile] = field(default_factory=dict)
    _told: dict[int, str] = field(default_factory=dict)  # why a node said nothing
    _refused: set[int] = field(default_factory=set)  # have answered in this round

    def learn(self, grid: Grid, node_ids: Iterable[int]) -> None:
        """Ask the nodes that have not been asked before.

        Nodes that do not answer are asked again next time; those that answer with an
        error, or are refused, are so once :meth:`ask_again` says it.

        Raises
        ------
        AtlasError
            If none has ever been taken, and nobody is waited for.
        """
        known = self.profiles.keys() | self._refused
        unseen = [node for node in node_ids if node not in known]
        if not self.ask:
            self.profiles.update({node: Profile(str(node)) for node in unseen})
            return
        content = RecordDict({"config": self.request})
        messages = [Message(content, node, keys.DESCRIBE) for node in unseen]
        if not messages:
            return
        reason = "no reply came in time"
        for reply in grid.send_and_receive(messages, timeout=self.timeout):
            node = reply.metadata.src_node_id
            refused = self._read(node, reply)
            if refused:
                reason = refused
                if self._told.get(node) != reason:  # it is asked again and again
                    log(_WARNING, "node %d takes no part: %s", node, reason)
                self._told[node] = reason
                self._refused.add(node)
        if not self.profiles and not self.waits:
            raise AtlasError(
                f"none of {len(messages)} clients can take part; one of them: {reason}"
            )

    @property
    def refused(self) -> int:
        """How many nodes were refused, and are not asked again yet."""
        return len(self._refused)

    def ask_again(self, but: Collection[int] = ()) -> None:
        """Let nodes that were refused be asked next time.

        A SuperNode may be started anew with another config, and keep its id: whoever
        comes back is asked, and all are once a round.

        Parameters
        ----------
        but : Collection[int]
            Nodes that are still there.
        """
        self._refused.intersection_update(but)

    def _read(self, node: int, reply: Message) -> str:
        """Keep a node's profile; return why there is none, if so."""
        if reply.has_error():
            return reason_of(reply)
        try:
            record = reply.content.config_records[keys.PROFILE]
            profile = Profile.from_record(record)
            self.check(profile)
        except AtlasError as error:
            return str(error)
        except (KeyError, ValueError) as error:
            return (
                f"what it says of itself cannot be read, {error!r}: install the same "
                "atlas-flwr there and where the ServerApp runs"
            )
        self._tell_if_moved(node, profile.client)
        self.profiles[node] = profile
        return ""

    def _tell_if_moved(self, node: int, client: str) -> None:
        known = [n for n, p in self.profiles.items() if p.client == client]
        if known:
            told = (
                "client %s is on node %d now, and no more on node %d; if both are "
                "there, give each SuperNode a partition-id of its own"
            )
            log(_WARNING, told, client, node, known[-1])

    @property
    def fleet(self) -> dict[str, Profile]:
        """What each client that takes part has said of itself last, by its id."""
        known = {profile.client: profile for profile in self.profiles.values()}
        return {c: profile for c, profile in known.items() if c not in self.without}

    def order(self, node_ids: Iterable[int]) -> list[int]:
        """Sort the nodes of the clients that take part by the clients' ids.

        A client takes part once: on the node that it came to last, however long the
        one that it had before still seems to be there.
        """
        here = set(node_ids)
        found: dict[str, int] = {}
        for node, profile in self.profiles.items():
            if node in here and profile.client not in self.without:
                found[profile.client] = node
        return [found[client] for client in sorted(found, key=by_number)]

    def client(self, node: int) -> str:
        """Return the id of the client on a node (its node id if it said nothing)."""
        profile = self.profiles.get(node)
        return profile.client if profile else str(node)

    def holder(self, client: str) -> str:
        """Return whom a client's certificate for the trunk is of, if it has one.

        Of a client that has come back on another node that is the one that it has now.
        """
        known = reversed(self.profiles.values())
        return next((p.holder for p in known if p.client == client), "")

    def sorted_replies(self, replies: Iterable[Message]) -> list[Message]:
        """Sort replies by client, so that sums do not depend on who was faster."""
        return sorted(
            replies, key=lambda m: by_number(self.client(m.metadata.src_node_id))
        )
