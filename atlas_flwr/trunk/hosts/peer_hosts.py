# SPDX-License-Identifier: Apache-2.0
"""Trunks of several hosts: started as they are needed, and missed when they end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from logging import WARNING
from operator import methodcaller
from typing import Generic, NamedTuple, Protocol, TypeVar

from atlas_flwr.budget.chains import Link, Way
from atlas_flwr.budget.pairing import Pairing
from atlas_flwr.errors import ConfigError, TrunkBusy, TrunkError, TrunkLost, WireError
from atlas_flwr.log import log
from atlas_flwr.lora import LoraFactors
from atlas_flwr.trunk.engine.session import SessionSpec
from atlas_flwr.trunk.engine.stats import TrunkStats
from atlas_flwr.trunk.host import Endpoint, TrunkHost

__all__ = ["HostWatcher", "PeerHosts", "PeerWatcher", "StartPeer"]

StartPeer = Callable[[Link], AbstractContextManager[Endpoint]]


class HostWatcher(Protocol):
    """Is told who is lost."""

    def lost(self, server_round: int, host: str, reason: str) -> None:
        """A host does not answer any more."""


class PeerWatcher(HostWatcher, Protocol):
    """Is told what happens between peers."""

    def paired(self, server_round: int, what: str, found: Pairing) -> None:
        """Guests were paired, for training, evaluation or fingerprints."""

    def moved(self, server_round: int, client: str, way: Way) -> None:
        """A guest of a lost host has another, or none."""


W_co = TypeVar("W_co", bound=HostWatcher, covariant=True)


class _Running(NamedTuple):
    link: Link
    endpoint: Endpoint
    stack: ExitStack


@dataclass
class PeerHosts(Generic[W_co]):
    """The trunks of peers, or of replicas, by their host.

    Parameters
    ----------
    start : StartPeer
        Starts, or finds, a host's trunk of some blocks.
    watcher : HostWatcher
        Is told who is lost.
    at_once : int
        Trunks that are started at the same time.

    Attributes
    ----------
    lost : dict[str, str]
        Hosts that have failed, and why; they stay out, if they are not tried again.
    round : int
        What the watcher is told.
    """

    start: StartPeer
    watcher: W_co
    at_once: int = 1
    lost: dict[str, str] = field(default_factory=dict, init=False)
    round: int = field(default=0, init=False)
    _running: dict[str, _Running] = field(default_factory=dict, init=False)
    _shared: dict[str, Mapping[str, LoraFactors]] = field(
        default_factory=dict, init=False
    )
    _holding: set[tuple[str, str]] = field(default_factory=set, init=False)

    def at(self, link: Link) -> Endpoint:
        """Return a host's trunk; start it if it does not run, or with other blocks.

        Raises
        ------
        TrunkLost
            If the host is lost, or that fails, as with a trunk of another model.
        """
        if link.host in self.lost:
            raise TrunkLost(f"host {link.host} is lost: {self.lost[link.host]}")
        try:
            return self.begin(link)
        except (ConfigError, TrunkError, WireError) as error:
            self.lose(link.host, str(error))
            raise TrunkLost(str(error)) from None

    def begin(self, link: Link) -> Endpoint:
        """Return a host's trunk as :meth:`at` does; what fails is raised as it is."""
        running = self._running.get(link.host)
        if running is not None and running.link == link:
            return running.endpoint
        self._end(link.host)
        stack = ExitStack()
        endpoint = stack.enter_context(self.start(link))
        self._running[link.host] = _Running(link, endpoint, stack)
        self._holding = {held for held in self._holding if held[0] != link.host}
        return endpoint

    def begin_all(self, links: Sequence[Link]) -> None:
        """Start the trunks of some hosts, several at a time; raise what fails first."""
        with ThreadPoolExecutor(self.at_once) as pool:
            for future in [pool.submit(self.begin, link) for link in links]:
                future.result()

    def again(self, link: Link) -> bool:
        """Start the trunk of a lost host anew; tell if it could be."""
        self.lost.pop(link.host, None)
        try:
            self.at(link)
        except TrunkLost:
            return False  # it is noted
        return True

    def running(self, host: str) -> TrunkHost | None:
        """Return a host's trunk, if it runs."""
        running = self._running.get(host)
        return None if running is None else running.endpoint.host

    def trunk(self, host: str) -> TrunkHost:
        """Return a host's trunk.

        Raises
        ------
        TrunkLost
            If it does not run.
        """
        trunk = self.running(host)
        if trunk is None:
            raise TrunkLost(self.lost.get(host, f"{host} does not run"))
        return trunk

    def ask(self, host: str, request: Callable[[TrunkHost], object]) -> None:
        """Ask a host to forget something; if it is lost, it has."""
        trunk = self.running(host)
        if trunk is None:
            return
        try:
            with self.minding(host):
                request(trunk)
        except TrunkLost:
            return  # it is noted

    def share(self, name: str, products: Mapping[str, LoraFactors]) -> None:
        """Hold products that sessions fold, for those hosts that come to need them."""
        self._shared[name] = products

    def unshare(self, name: str) -> None:
        """Forget shared products, everywhere."""
        self._shared.pop(name, None)
        for host, held in list(self._holding):
            if held == name:
                self._holding.discard((host, held))
                self.ask(host, methodcaller("unshare", name))

    def give_shared(self, host: str, spec: SessionSpec) -> None:
        """Give a host the products that a session of it folds, if it has them not.

        Raises
        ------
        TrunkLost
            If it does not run.
        """
        name = spec.state.origin
        if spec.folds and (host, name) not in self._holding:
            self.trunk(host).share(name, self._shared[name])
            self._holding.add((host, name))

    def start_all(self, links: Sequence[Link]) -> None:
        """Start the trunks of some hosts, several at a time; those that fail are lost.

        Parameters
        ----------
        links : Sequence[Link]
            Of different hosts.
        """
        with ThreadPoolExecutor(self.at_once) as pool:
            for future in [pool.submit(self.at, link) for link in links]:
                error = future.exception()
                if error is not None and not isinstance(error, TrunkLost):
                    raise error

    @contextmanager
    def minding(self, host: str) -> Iterator[None]:
        """Note that a host is lost, if it is: gone, or without an answer to read."""
        try:
            yield
        except TrunkLost as error:
            self.lose(host, str(error))
            raise
        except WireError as error:  # whatever it holds, it cannot be had
            self.lose(host, str(error))
            raise TrunkLost(str(error)) from None
        except TrunkError as error:
            if type(error) is TrunkError:  # no word of its own on what it was asked
                self.check([host])
            if host in self.lost:
                raise TrunkLost(str(error)) from None
            raise

    def lose(self, host: str, reason: str) -> None:
        """Count a host as lost, once."""
        if host in self.lost:
            return
        self.lost[host] = reason
        self._end(host)
        self.watcher.lost(self.round, host, reason)

    def _lose_if_it_is(self, running: _Running, reason: str) -> None:
        """Lose a host whose trunk is still that one: others may ask in other threads.

        One that was replaced while it was asked says nothing of the new one.
        """
        if self._running.get(running.link.host) is running:
            self.lose(running.link.host, reason)

    def check(self, hosts: Collection[str] | None = None) -> None:
        """Ask some that run, or all, whether they are there; the others are lost."""
        for host, running in list(self._running.items()):
            if hosts is not None and host not in hosts:
                continue
            try:
                running.endpoint.host.ping()
            except TrunkBusy:
                continue  # who says so is there
            except (TrunkError, WireError) as error:
                self._lose_if_it_is(running, str(error))

    def stats(self) -> TrunkStats:
        """Return the sums of all accounts; of peaks, the fullest host's."""
        total = TrunkStats(0, 0, 0, 0.0, 0)
        for running in list(self._running.values()):
            try:
                total = _added(total, running.endpoint.host.stats())
            except TrunkBusy as error:  # it is there, and is asked again another time
                told = "host %s is left out of the trunks' account: %s"
                log(WARNING, told, running.link.host, error)
            except (TrunkError, WireError) as error:
                self._lose_if_it_is(running, str(error))
        return total

    def stop(self) -> None:
        """End all."""
        for host in list(self._running):
            self._end(host)

    def _end(self, host: str) -> None:
        running = self._running.pop(host, None)
        if running is not None:
            running.stack.close()


def _added(one: TrunkStats, other: TrunkStats) -> TrunkStats:
    peaks = {"peak_bytes", "device_peak_bytes"}
    return replace(
        one,
        **{
            name: max(value, theirs) if name in peaks else value + theirs
            for name, value in vars(one).items()
            for theirs in (getattr(other, name),)
        },
    )
