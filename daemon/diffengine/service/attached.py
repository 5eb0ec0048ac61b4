# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine attached to a hypervisor and a pager in other processes, until it is told to end.

It holds nothing that matters: killed at any moment, it leaves the pager's page table, from which the next one goes on.
The pager gives back the objects that a killed one had put and not used, the hypervisor what it had mapped.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffengine.engine import Engine, EngineOptions
from diffengine.errors import DiffengineError, one_line
from diffengine.hypervisor.machine_process import MachineClient
from diffengine.hypervisor.pager_client import PagerClient, PagerInUseError
from diffengine.hypervisor.protocol import DomainInfo, Host, HostGoneError
from diffengine.hypervisor.xen import XenHost

# How often to look for domains that came.
LOOK_INTERVAL_S = 1.0
# A former engine's lock goes with its process, which takes a moment to end.
PATIENCE_S = 5.0
RETRY_S = 0.02
END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class DomainTerms:
    """On what terms a domain is worked on. trust_group: whom it may share and patch with."""

    trust_group: str
    min_resident_pages: int = 0


Terms = Callable[[DomainInfo], DomainTerms]


def own_terms(domain: DomainInfo) -> DomainTerms:
    """The default: every domain its own trust group."""
    return DomainTerms(f"domain {domain.domid}")


class AttachedEngine:
    """Takes in all domains of the host, also those that come later. Belongs to one thread."""

    def __init__(self, host: Host, pager: PagerClient, options: EngineOptions, terms: Terms = own_terms) -> None:
        self.engine = Engine(host, pager, options)
        self._host = host
        self._pager = pager
        self._terms = terms
        self._known: set[int] = set()
        self._refused: dict[int, str] = {}
        self._looked_s = float("-inf")

    def step(self) -> float:
        """Seconds to wait before the next step."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_INTERVAL_S:
            self._looked_s = now_s
            self._take_in_domains()
        return self.engine.step()

    def _take_in_domains(self) -> None:
        domains = {domain.domid: domain for domain in self._host.domains()}
        for domid in [domid for domid in self._known if domid not in domains or not self._pager.has(domid)]:
            # Gone, or released by an operator: then it comes back when that is undone.
            self._known.remove(domid)
            self.engine.remove_domain(domid)
        self._refused = {domid: why for domid, why in self._refused.items() if domid in domains}
        for domid in domains.keys() - self._known:
            self._take_in(domains[domid])

    def _take_in(self, domain: DomainInfo) -> None:
        terms = self._terms(domain)
        try:
            self._pager.add_domain(domain.domid, domain.gfns)
            if domain.device_model:
                self._pager.set_device_model(domain.domid)
        except HostGoneError:
            raise
        except DiffengineError as error:
            # It can't be paged, was released, or went this very moment: the others are worked on all the same.
            self._left_alone(domain.domid, one_line(str(error)))
            return
        self._known.add(domain.domid)
        self._refused.pop(domain.domid, None)
        self.engine.add_domain(domain.domid, domain.gfns, terms.trust_group, terms.min_resident_pages)

    def _left_alone(self, domid: int, why: str) -> None:
        """Says it once; it is asked again at each look."""
        if self._refused.get(domid) != why:
            self._refused[domid] = why
            print(f"diffengine: domain {domid} is left alone: {why}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Gives up what the engine holds of the store. What was saved stays saved."""
        self.engine.close()


@contextmanager
def connect(machine: Path | None, state: Path) -> Iterator[tuple[MachineClient | XenHost, PagerClient]]:
    """Connections to a machine's process, or to the Xen that this dom0 runs on, and to a pager.

    HostGoneError or XenUnavailableError if one of them is not there.
    """
    host = XenHost() if machine is None else MachineClient(machine)
    try:
        pager = _connect_pager(state)
        try:
            yield host, pager
        finally:
            pager.close()
    finally:
        host.close()


def _connect_pager(state: Path) -> PagerClient:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return PagerClient(state)
        except PagerInUseError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(RETRY_S)


def serve(machine: Path | None, state: Path, options: EngineOptions, terms: Terms = own_terms) -> None:
    """Runs an engine until SIGTERM or SIGINT, which it takes for itself. From a process's main thread.

    machine: the socket of a diffengine-machine; None: Xen. Raises HostGoneError when the machine or the pager ends.
    """
    with _end_signals() as told, connect(machine, state) as (host, pager):
        attached = AttachedEngine(host, pager, options, terms)
        wait_s = 0.0
        while not select.select([told], [], [], wait_s)[0]:
            wait_s = attached.step()
        attached.close()


@contextmanager
def _end_signals() -> Iterator[int]:
    """A descriptor that can be read once a signal says that it is time to end, whichever thread the signal came to."""
    told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    former = {number: signal.signal(number, lambda *_: None) for number in END_SIGNALS}
    signal.set_wakeup_fd(tell)
    try:
        yield told
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(told)
        os.close(tell)
