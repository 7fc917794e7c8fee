# SPDX-License-Identifier: Apache-2.0
"""A Grid that calls ClientApps in this process, for tests of strategies and apps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from flwr.app import (
    Context,
    Error,
    Message,
    RecordDict,
    UserConfig,
    UserConfigValue,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from atlas_flwr.protocol.replies import CLIENT_APP_RAISED

__all__ = ["LocalGrid", "local_grid"]


@dataclass
class LocalGrid(Grid):
    """Deliver messages to a ClientApp in process, one after the other.

    Errors that a ClientApp raises become error replies, as in Flower's own runtimes.
    Make one with :func:`local_grid`.

    Attributes
    ----------
    app : ClientApp
        Answers every message.
    contexts : dict[int, Context]
        By node id; a node's ``state`` lives as long as the grid.
    intercept : Callable[[Message], str], optional
        Called with every message before delivery: ``"deliver"``, ``"drop"`` (the node
        vanishes and no reply comes), or any other word, which is the reason of an
        error reply.
    sent : list[Message]
        Every message that the server sent.
    """

    app: ClientApp
    contexts: dict[int, Context]
    intercept: Callable[[Message], str] | None = None
    sent: list[Message] = field(default_factory=list)
    _replies: dict[str, Message] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=count)
    _run: Run = field(default_factory=lambda: Run.create_empty(1))

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message (see :class:`flwr.serverapp.Grid`)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver the messages; replies wait to be pulled."""
        ids = []
        for message in messages:
            message_id = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = message_id
            self.sent.append(message)
            reply = self._deliver(message)
            if reply is not None:
                self._replies[message_id] = reply
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that there are."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver the messages and return the replies."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> Message | None:
        verdict = self.intercept(message) if self.intercept else "deliver"
        if verdict == "drop":
            return None
        if verdict != "deliver":
            return Message(Error(CLIENT_APP_RAISED, verdict), reply_to=message)
        context = self.contexts[message.metadata.dst_node_id]
        try:
            return self.app(message, context)
        except Exception as error:  # Flower's runtimes turn any error into a reply
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(CLIENT_APP_RAISED, reason), reply_to=message)


@contextmanager
def local_grid(
    app: ClientApp,
    num_nodes: int = 2,
    run_config: Mapping[str, UserConfigValue] | None = None,
    node_configs: Sequence[UserConfig] | None = None,
    intercept: Callable[[Message], str] | None = None,
) -> Iterator[LocalGrid]:
    """Run ``app`` on ``num_nodes`` nodes in this process.

    Parameters
    ----------
    app : ClientApp
        The ClientApp under test.
    num_nodes : int
        Number of nodes; they get ``partition-id`` and ``num-partitions`` as in
        Flower's simulation.
    run_config : Mapping[str, UserConfigValue], optional
        ``context.run_config`` of every node.
    node_configs : Sequence[UserConfig], optional
        Added to each node's ``context.node_config``.
    intercept : Callable[[Message], str], optional
        See :class:`LocalGrid`.

    Yields
    ------
    LocalGrid
        A grid to pass to ``strategy.start(grid=...)``.
    """
    identity = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    contexts = {}
    for index in range(num_nodes):
        node_config: UserConfig = {
            "partition-id": index,
            "num-partitions": num_nodes,
            **(node_configs[index] if node_configs else {}),
        }
        node_id = 1_000 + 7 * index
        contexts[node_id] = Context(
            run_id=1,
            node_id=node_id,
            node_config=node_config,
            state=RecordDict(),
            run_config=dict(run_config or {}),
        )
    try:
        yield LocalGrid(app=app, contexts=contexts, intercept=intercept)
    finally:
        (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id) = identity
