# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine attached to a hypervisor and a pager in other processes, and to the domains that are there.

It holds nothing that matters: killed at any moment, it leaves the pager's page table, from which the next one goes on.
The pager gives back the objects that a killed one had put and not used, the hypervisor what it had mapped.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from diffengine.engine import Engine, EngineOptions
from diffengine.engine.engine import SETTLE_INTERVAL_S
from diffengine.errors import DiffengineError, one_line
from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import DomainInfo, Host, HostGoneError

# How often to look for domains that came.
LOOK_INTERVAL_S = 1.0


@dataclass(frozen=True)
class DomainTerms:
    """On what terms a domain is worked on. trust_group: whom it may share and patch with. log_dirty: what it writes is
    known from the host's log."""

    trust_group: str
    min_resident_pages: int = 0
    log_dirty: bool = False


def own_group(domid: int) -> str:
    """The trust group of a domain that is alone in it. No group that somebody named begins with a zero byte."""
    return f"\0{domid}"


def shown_group(group: str) -> str:
    """A group's name for people; "" for a domain's own."""
    return "" if group.startswith("\0") else group


class Cause(StrEnum):
    """Why a domain is not worked on."""

    NOT_ENABLED = "not_enabled"
    PAUSED = "paused"
    RELEASING = "releasing"
    STARTING = "starting"
    STOPPED = "stopped"
    REFUSED = "refused"  # by the pager or the hypervisor


@dataclass(frozen=True)
class LeftAlone:
    """What is out stays out until the domain touches it."""

    cause: Cause
    why: str


Standing = DomainTerms | LeftAlone
Terms = Callable[[DomainInfo], Standing]


def own_terms(domain: DomainInfo) -> DomainTerms:
    """Worked on, and every domain its own trust group."""
    return DomainTerms(own_group(domain.domid))


def no_matter(domid: int, standing: Standing | None) -> None:
    """For whom it is enough to ask for `standings`."""


class AttachedEngine:
    """Looks after all domains of the host, also those that come later. Belongs to one thread."""

    def __init__(
        self,
        host: Host,
        pager: PagerClient,
        options: EngineOptions,
        terms: Terms = own_terms,
        changed: Callable[[int, Standing | None], None] = no_matter,
    ) -> None:
        """terms: asked for each domain at each look. changed: told what has become of a domain; None: it is gone."""
        self.engine = Engine(host, pager, options)
        self._options = options
        self._host = host
        self._pager = pager
        self._terms = terms
        self._changed = changed
        self._domains: dict[int, DomainInfo] = {}
        self._standings: dict[int, Standing] = {}
        self._looked_s = float("-inf")

    @property
    def domains(self) -> Mapping[int, DomainInfo]:
        """As of the latest look."""
        return self._domains

    @property
    def standings(self) -> Mapping[int, Standing]:
        return self._standings

    def step(self) -> float:
        """Seconds to wait before the next step."""
        self.look_in_time()
        return self.engine.step()

    def work(self) -> float:
        """A step, if one is due, else what is to be done between two of them. Seconds to wait before the next time."""
        self.look_in_time()
        if self.engine.until_step_s() > 0:
            self.engine.settle()
        else:
            self.engine.step()
        return min(self.engine.until_step_s(), SETTLE_INTERVAL_S)

    def look_in_time(self) -> None:
        """Looks, if it is time to."""
        if time.monotonic() - self._looked_s >= LOOK_INTERVAL_S:
            self.look()

    def look(self) -> None:
        """Which domains are there, and what is wanted of each now?"""
        self._looked_s = time.monotonic()
        self._domains = {domain.domid: domain for domain in self._host.domains()}
        for domid in self._standings.keys() - self._domains.keys():
            self._leave(domid)
            del self._standings[domid]
            self._changed(domid, None)
        for domain in self._domains.values():
            before, after = self._standings.get(domain.domid), self._attend(domain)
            self._standings[domain.domid] = after
            if after != before:
                self._changed(domain.domid, after)

    def _attend(self, domain: DomainInfo) -> Standing:
        wanted, before = self._terms(domain), self._standings.get(domain.domid)
        if isinstance(wanted, LeftAlone):
            self._leave(domain.domid)
            return wanted
        if isinstance(before, DomainTerms):
            if not self._pager.has(domain.domid):
                # Released by an operator: it comes back when that is undone.
                self._leave(domain.domid)
                before = None
            elif (before.trust_group, before.log_dirty) == (wanted.trust_group, wanted.log_dirty):
                self.engine.set_min_resident(domain.domid, wanted.min_resident_pages)
                return wanted
        return self._take_in(domain, wanted, before)

    def _take_in(self, domain: DomainInfo, terms: DomainTerms, before: Standing | None) -> Standing:
        try:
            self._pager.add_domain(domain.domid, domain.gfns)
            if domain.device_model:
                self._pager.set_device_model(domain.domid)
        except HostGoneError:
            raise
        except DiffengineError as error:
            # It can't be paged, was released, or went this very moment: the others are worked on all the same.
            return LeftAlone(Cause.REFUSED, one_line(str(error)))
        if isinstance(before, DomainTerms):
            self.engine.remove_domain(domain.domid)
        self._add(domain, terms)
        return terms

    def _add(self, domain: DomainInfo, terms: DomainTerms) -> None:
        self.engine.add_domain(domain.domid, domain.gfns, terms.trust_group, terms.min_resident_pages, terms.log_dirty)

    def _leave(self, domid: int) -> None:
        if isinstance(self._standings.get(domid), DomainTerms):
            self.engine.remove_domain(domid)

    def set_options(self, options: EngineOptions) -> None:
        """At once. Some need an engine anew, which goes on as after a restart."""
        self._options = options
        if self.engine.set_options(options):
            return
        self.engine.close()
        self.engine = Engine(self._host, self._pager, options)
        for domid, terms in self._standings.items():
            if isinstance(terms, DomainTerms):
                self._add(self._domains[domid], terms)

    def close(self) -> None:
        """Gives up what the engine holds of the store. What was saved stays saved."""
        self.engine.close()
