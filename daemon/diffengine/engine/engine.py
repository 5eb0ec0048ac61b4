# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop: visit a portion of each domain, then share, watch and evict what the policy allows.

Order of a visit (a page goes through as many steps as it can): what the pager says of it; its digest, and with it its
Clock state; a partner in the sharing table; watching, if it has none; eviction, once it was found untouched.
"""

import threading
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffengine.engine import clock
from diffengine.engine.eviction import Candidates, Evictor
from diffengine.engine.limits import RefaultLimit, Room, WatchRate, least_idle, room_to_evict
from diffengine.engine.options import LIVE_OPTIONS, EngineOptions
from diffengine.engine.pace import Pace, RealPace, Work
from diffengine.engine.pages import (
    EVICTABLE,
    FUTILE,
    IN_STORE,
    LEADS,
    OUT,
    READABLE,
    UNKNOWN_KEY,
    WRITTEN,
    Domain,
    PageTable,
    Place,
)
from diffengine.engine.policy import State, Technique
from diffengine.engine.reasons import Reason, Reasons
from diffengine.engine.recovery import Recall, recover_places
from diffengine.engine.report import DomainReport, EngineReport, count_places, domain_report, saved_by_eviction
from diffengine.engine.reserve import Reserve
from diffengine.engine.sharing import Pairs, Sharing
from diffengine.engine.swapping import Swapper
from diffengine.engine.trials import Trials
from diffengine.engine.visits import SweepLength, portion, portions_of_sweep
from diffengine.engine.written import WrittenPages, differing
from diffengine.hypervisor.protocol import Host, Outcome, Pager, PageState
from diffengine.native import NONE, PAGE_BYTES, Digester, PageNumbers

# How often the pager is asked which pages came back: what the limits on a guest's faults live on.
SETTLE_INTERVAL_S = 0.5
# What a page answers to all that would share with it, as long as it is so.
REFUSES_ALL = (Outcome.BUSY, Outcome.MAPPED)
GROUP_SALT = 0x9E3779B97F4A7C15
KEY_MASK = 0xFFFF_FFFF_FFFF_FFFF


class Engine:
    """Belongs to one thread."""

    def __init__(self, host: Host, pager: Pager, options: EngineOptions, pace: Pace | None = None) -> None:
        self._host = host
        self._pager = pager
        self._options = options
        self._pace = pace or RealPace()
        self._capabilities = host.capabilities()
        policy = options.policy
        shares, evicts = policy.uses(Technique.SHARE), policy.evicts and self._capabilities.paging
        self._table = PageTable(shares, evicts, evicts and policy.uses(Technique.PATCH))
        self._reasons = Reasons()
        self._written = WrittenPages(host, self._table, self._reasons)
        self._digester = Digester(options.seed, 0, 1)
        self._sharing: Sharing | None = None
        if shares:
            most = self._capabilities.most_sharers
            self._sharing = Sharing(self._table, most, options.passes, options.table_memory_bytes)
        self._recall = Recall(host, pager, self._table, self._digester) if evicts else None
        self._evictor = (
            Evictor(host, pager, self._table, options, self._reasons, self._pace, self._may_go) if evicts else None
        )
        self._swapper = Swapper(host, pager, self._table, options, self._reasons) if evicts else None
        self._reserve = Reserve(host, self._table, self._reasons, options.reserve_mib)
        self._may_share = policy.allows(Technique.SHARE)
        self._may_evict = policy.allows(Technique.PATCH) | policy.allows(Technique.COMPRESS)
        self._watches = evicts and not self._may_evict[State.C2]
        tries = self._watches and policy.allows(Technique.COMPRESS)[State.C4]
        self._trials = Trials(self._table, self._may_try) if shares and tries else None
        self._groups: dict[str, int] = {}
        self._watch_rates: dict[int, WatchRate] = {}
        self._refault_limits: dict[int, RefaultLimit] = {}
        self._portion = 0
        self._portions = 0
        self._sweeps = 0
        # How many pages of which domain the limits have let through in the visit under way.
        self._let_through = (-1, 0)
        # Domains that may have no more pages out, when the sweep began.
        self._full: set[int] = set()
        self._length = SweepLength()
        self._came_back = -1
        self._evictions = 0
        self._paid_s = 0.0
        self._sweep_start_s = 0.0
        self._settled_s = self._pace.now_s()
        self._cpu_s = 0.0

    # Domains.

    def add_domain(
        self, domid: int, gfns: int, trust_group: str, min_resident_pages: int = 0, log_dirty: bool = False
    ) -> None:
        """From the next sweep on. The pager must have it already, maybe with pages that are out, or watched, since an
        earlier engine's days. `trust_group`: whom it may share and patch with. `log_dirty`: M from the host's log, not
        from digests, for a domain that will not be saved or migrated."""
        group = self._groups.setdefault(trust_group, len(self._groups) + 1)
        domain = self._table.add_domain(domid, gfns, group, min_resident_pages)
        if self._capabilities.paging:
            recover_places(self._pager, self._table, domain)
            self._reserve.adopt(domain)
        if log_dirty:
            self._written.begin(domain)
        self._watch_rates[domid] = WatchRate(self._options.fault_limit)
        self._refault_limits[domid] = RefaultLimit(self._options.refault_limit)
        self._begin_anew()

    def _begin_anew(self) -> None:
        """The hand is at the beginning of other memory."""
        self._portion = self._portions = 0
        self._length.hurry()

    def stop_log_dirty(self, domid: int) -> None:
        """Before a domain is saved or migrated: whoever does that needs the log for itself."""
        for domain in self._domains_with(domid):
            self._written.end(domain)

    def _domains_with(self, domid: int) -> list[Domain]:
        return [domain for domain in self._table.domains if domain.domid == domid]

    def remove_domain(self, domid: int) -> None:
        """It is gone, or not to be worked on any more."""
        for domain in self._domains_with(domid):
            self._written.end(domain)
            self._reserve.forget(domain)
            self._table.remove_domain(domain)
            del self._watch_rates[domid], self._refault_limits[domid]
        self._begin_anew()

    def set_min_resident(self, domid: int, pages: int) -> None:
        """What is out already stays out."""
        for domain in self._table.domains:
            if domain.domid == domid:
                domain.min_resident = pages

    def set_options(self, options: EngineOptions) -> bool:
        """From now on. False, and nothing is changed: it takes a new engine, since what this one has built would not
        fit any more."""
        if replace(options, **{name: getattr(self._options, name) for name in LIVE_OPTIONS}) != self._options:
            return False
        self._options = options
        self._length.hurry()
        for part in (self._evictor, self._swapper):
            if part:
                part.options = options
        self._reserve.mib = options.reserve_mib
        for rate in self._watch_rates.values():
            rate.fault_limit = options.fault_limit
        for limit in self._refault_limits.values():
            limit.per_minute = options.refault_limit
        return True

    def _forget_gone_domains(self) -> None:
        alive = {domain.domid for domain in self._host.domains()}
        for domain in list(self._table.domains):
            if domain.domid not in alive:
                self.remove_domain(domain.domid)

    # The loop.

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set."""
        while not stop.is_set():
            stop.wait(self.step())

    def step(self) -> float:
        """Visits the next portion of each domain. Seconds to wait before the next step."""
        start_s, start_cpu_s = self._pace.now_s(), self._pace.cpu_s()
        self._settle(start_s)
        if self._portion == 0:
            self._begin_sweep(start_s)
        for domain in list(self._table.domains):
            self._reasons.begin_visit(domain.domid)
            part = portion(domain.gfns, self._portion, self._portions)
            if len(part):
                self._visit(domain, part)
        self._portion += 1
        if self._portion >= self._portions:
            self._end_sweep()
        used_s = self._pace.cpu_s() - start_cpu_s
        self._cpu_s += used_s
        self._paid_s = start_s + used_s / self._options.cpu_share
        return self.until_step_s()

    def settle(self) -> None:
        """Between two steps that are far apart: which pages came back, if it is time to ask."""
        start_cpu_s = self._pace.cpu_s()
        self._settle(self._pace.now_s())
        self._cpu_s += self._pace.cpu_s() - start_cpu_s

    def until_step_s(self) -> float:
        """Until the next portion is due, or the budget of CPU time allows it, whichever is later."""
        done = self._portion / self._portions if self._portion else float(self._portions > 0)
        due_s = self._sweep_start_s + done * self._length.intervals * self._options.visit_interval_s
        return max(0.0, max(due_s, self._paid_s) - self._pace.now_s())

    def _begin_sweep(self, now_s: float) -> None:
        self._forget_gone_domains()
        self._portions = portions_of_sweep(max((domain.gfns for domain in self._table.domains), default=1))
        self._length.begin_sweep((now_s - self._sweep_start_s) / self._options.visit_interval_s)
        self._sweep_start_s = now_s
        self._full = {domain.domid for domain in self._table.domains if self._evictor and not self._room(domain).pages}
        if self._trials:
            self._trials.begin_sweep()
        self._written.begin_sweep(self._sweeps, self._length.weight)
        self._reasons.begin_sweep()
        cycles = self._sharing.cycles if self._sharing else 0
        if self._sharing:
            self._sharing.begin_sweep()
        if self._evictor and (not self._sharing or self._sharing.cycles != cycles or not self._sweeps):
            self._evictor.begin_cycle()

    def _may_try(self, pages: PageNumbers) -> NDArray[np.bool_]:
        """Which shared pages have a domain with room for trials, and could be evicted if they turned out to be cold."""
        room = np.zeros(len(self._table.domains), dtype=np.bool_)
        for index, domain in enumerate(self._table.domains):
            waiting = int(np.count_nonzero(self._table.place[domain.part] == Place.WATCHED))
            room[index] = domain.domid not in self._full and clock.has_room_for_trials(waiting, domain.gfns)
        result: NDArray[np.bool_] = room[self._table.owners(pages)] & self._worth_evicting(pages)
        return result

    def _end_sweep(self) -> None:
        self._portion = 0
        self._sweeps += 1
        self._reasons.end_sweep()
        if self._evictor:
            self._evictor.end_sweep()
        if self._swapper:
            self._swapper.relieve(self.table_bytes)
        # Where a sharing cycle takes several sweeps, each of them looks for partners of other pages.
        evictions, before = self._pager.counters().evictions, self._evictions
        self._evictions = evictions
        self._length.found(abs(evictions - before))
        one_pass = not self._sharing or self._sharing.passes == 1
        self._length.end_sweep(self._pages, one_pass)

    @property
    def _pages(self) -> int:
        return sum(domain.gfns for domain in self._table.domains)

    # What the pager tells.

    def _settle(self, now_s: float) -> None:
        """Finds the pages that came back: touched while watched, or loaded again. Then frames are claimed for those
        that did not."""
        seconds = now_s - self._settled_s
        if seconds < SETTLE_INTERVAL_S:
            return
        self._settled_s = now_s
        if self._evictor:
            some, pages = self._some_came_back(), self._pages
            for domain in self._table.domains:
                touched, refaulted = self._settle_domain(domain) if some else (0, 0)
                self._length.come_back(touched + refaulted, pages)
                self._watch_rates[domain.domid].observe(touched + refaulted, seconds)
                self._refault_limits[domain.domid].observe(now_s, refaulted)
        self._reserve.adjust()

    def _some_came_back(self) -> bool:
        """By the pager's counters, which cost less than its page tables. Once a sweep the tables are looked at whatever
        it counts, for it may count a page just before it notes where it is."""
        counters = self._pager.counters()
        came_back, before = counters.loads + counters.touches, self._came_back
        self._came_back = came_back
        return came_back != before or self._portion == 0

    def _settle_domain(self, domain: Domain) -> tuple[int, int]:
        table, part = self._table, domain.part
        states = self._pager.states(domain.domid, 0, domain.gfns).states
        back = states == PageState.RESIDENT
        place = table.place[part]
        touched = np.flatnonzero(back & (place == Place.WATCHED))
        refaulted = np.flatnonzero(back & OUT[place])
        came = np.concatenate([touched, refaulted])
        clock.back_off(table.backoff[part], touched, clock.TOUCH_BACKOFF)
        clock.back_off(table.backoff[part], refaulted, clock.REFAULT_BACKOFF)
        place[came] = Place.RESIDENT
        table.idle[part][came] = 0
        table.quiet[part][came] = np.minimum(table.quiet[part][came], 1)
        table.saved[part][came] = 0
        domain.touches += len(touched)
        domain.refaults += len(refaulted)
        return len(touched), len(refaulted)

    # A visit.

    def _visit(self, domain: Domain, part: range) -> None:
        pages = np.arange(domain.first + part.start, domain.first + part.stop, dtype=np.uint32)
        if self._recall:
            self._look_at_watched(domain, part, pages)
            known, digests = self._recall.digests_of(pages)
            self._table.keys[known] = self._salted(digests, domain.group)
            self._pace.worked(Work.DIGEST, len(known))
        if not self._written.nothing_due(domain, part):
            self._look_at_content(domain, pages)
        leaders = self._share(domain, pages, self._sharing) if self._sharing else None
        if self._evictor:
            self._watch(domain, pages)
            self._evict(domain, pages, np.full(len(pages), NONE, dtype=np.uint32) if leaders is None else leaders)

    def _look_at_watched(self, domain: Domain, part: range, pages: PageNumbers) -> None:
        """A watched page that the pager still has so was not touched: neither read nor written, so not digested."""
        table = self._table
        states = self._pager.states(domain.domid, part.start, len(part)).states
        still = (states == PageState.WATCHED) & (table.place[pages] == Place.WATCHED)
        clock.count_visit(table.idle, pages[still], self._length.weight)
        # A refused eviction leaves a page watched that was not before.
        new = (states == PageState.WATCHED) & (table.place[pages] == Place.RESIDENT)
        table.place[pages[new]] = Place.WATCHED
        table.idle[pages[new]] = 0

    def _look_at_content(self, domain: Domain, pages: PageNumbers) -> None:
        """Digests the pages that have a frame, or those of them that were written; a digest that changed means C1."""
        pages = self._written.due(domain, pages[READABLE[self._table.place[pages]]])
        needed = self._written.to_digest(domain, pages)
        clock.count_visit(self._table.quiet, pages[~needed], self._length.weight)
        pages = pages[needed]
        if len(pages):
            self._digest(domain, pages)

    def _digest(self, domain: Domain, pages: PageNumbers) -> None:
        digests = np.empty(len(pages), dtype=np.uint64)
        kinds = np.empty(len(pages), dtype=np.uint8)
        with self._host.map(domain.domid, pages - np.uint32(domain.first)) as mapping:
            mapped = mapping.addresses != 0
            count = int(mapped.sum())
            no_keys = np.empty((count, 0), dtype=np.uint64)
            self._digester.digest(mapping.addresses[mapped], digests[:count], kinds[:count], no_keys)
            self._pace.worked(Work.DIGEST, count)
        self._lose_holes(pages[~mapped])
        self._note_keys(domain, pages[mapped], self._salted(digests[:count], domain.group))

    @staticmethod
    def _salted(digests: NDArray[np.uint64], group: int) -> NDArray[np.uint64]:
        """Keys of one trust group never equal another's, but for zero pages, which all may share."""
        salt = np.uint64(GROUP_SALT * group & KEY_MASK)
        return np.where(digests == 0, digests, digests ^ salt)

    def _lose_holes(self, pages: PageNumbers) -> None:
        table = self._table
        table.leave_frames(pages)
        table.place[pages] = Place.HOLE
        table.keys[pages] = UNKNOWN_KEY
        table.quiet[pages] = 0
        # Nobody tells when a hole is filled.
        table.doubt(pages)

    def _note_keys(self, domain: Domain, pages: PageNumbers, keys: NDArray[np.uint64]) -> None:
        table = self._table
        differs = table.keys[pages] != keys
        self._written.note(domain, pages, differs, table.keys[pages] != UNKNOWN_KEY)
        changed = pages[differs]
        new = table.keys[changed] == UNKNOWN_KEY
        back = pages[table.place[pages] == Place.HOLE]
        table.keys[pages] = keys
        # Those that change at every visit are no news.
        self._length.found(int(np.count_nonzero((table.quiet[changed] > 0) | new)) + len(back))
        clock.count_visit(table.quiet, pages, self._length.weight)
        table.quiet[changed] = 0
        table.leave_frames(changed)
        table.place[changed] = Place.RESIDENT
        table.place[back] = Place.RESIDENT
        if table.has_notes:
            table.notes[changed] &= WRITTEN  # the rest is of the content
        self._reasons.add(Reason.MODIFIED, len(changed))

    def _states(self, pages: PageNumbers) -> NDArray[np.uint8]:
        idle = self._table.idle[pages] if self._table.evicts else np.zeros(len(pages), dtype=np.uint8)
        passes = self._sharing.passes if self._sharing else 1
        return clock.classify(self._table.quiet[pages], idle, max(self._options.c4_visits, passes))

    def _share(self, domain: Domain, pages: PageNumbers, sharing: Sharing) -> PageNumbers:
        """Shares what has a partner. For each page the first one of its content in this sweep, or NONE if not known."""
        table = self._table
        place = table.place[pages]
        eligible = (place == Place.RESIDENT) & self._may_share[self._states(pages)]
        eligible |= LEADS[place] & (place != Place.RESIDENT)
        if domain.domid in self._full:
            # Whose copies would wait for it in vain.
            eligible &= place != Place.WATCHED
        eligible &= table.keys[pages] != UNKNOWN_KEY
        whole = range(int(pages[0]), int(pages[-1]) + 1)
        leaders, complete = sharing.look_up(whole, eligible.astype(np.uint8))
        self._pace.worked(Work.LOOK_UP, int(eligible.sum()))
        if not complete:
            self._reasons.add(Reason.TABLE_FULL, int(eligible.sum()))
        if not self._capabilities.sharing:
            self._reasons.add(Reason.NOT_SHAREABLE, int((leaders != pages)[eligible].sum()))
            return leaders
        pairs = sharing.pair_up(pages, leaders)
        self._reasons.add(Reason.PARTNER_WATCHED, pairs.partner_watched)
        if self._carry_out_sharing(sharing, pairs):
            self._carry_out_sharing(sharing, sharing.pair_up(pages, leaders))
        return leaders

    def _carry_out_sharing(self, sharing: Sharing, pairs: Pairs) -> bool:
        """Whether there is another partner to try for some."""
        sources, clients = pairs.sources, pairs.clients
        if not len(sources):
            return False
        results = self._pager.share(*self._table.locate(sources), *self._table.locate(clients))
        self._reasons.add_results("share", results)
        self._table.doubt(np.concatenate([sources, clients])[np.tile(differing(results), 2)])
        done = results == Outcome.DONE
        self._length.found(int(done.sum()))
        sharing.joined(sources[done], clients[done])
        return sharing.pass_over(pairs, np.isin(results, REFUSES_ALL))

    def _watch(self, domain: Domain, pages: PageNumbers) -> None:
        """Watches pages that were quiet for long enough, those first that were touched least."""
        if not self._watches:
            return
        table = self._table
        passes = self._sharing.passes if self._sharing else 1
        idle = pages[table.place[pages] == Place.RESIDENT]
        idle = idle[clock.watchable(table.quiet[idle], table.backoff[idle], passes)]
        self._watch_pages(domain, idle[self._worth_evicting(idle)])
        if self._trials:
            self._try_shared(domain, self._trials, pages)

    def _worth_evicting(self, pages: PageNumbers) -> NDArray[np.bool_]:
        """Which could be evicted if they turned out to be cold."""
        assert self._evictor is not None
        return self._evictor.worth_trying(pages, np.full(len(pages), State.C4, dtype=np.uint8))

    def _try_shared(self, domain: Domain, trials: Trials, pages: PageNumbers) -> None:
        """Makes those pages private that have their turn to be watched. If they and their sharers are cold, they become
        one object; one that is not is shared again at the next visit."""
        table = self._table
        shared = trials.chosen(pages)[: self._watch_rates[domain.domid].available]
        if not len(shared):
            return
        results = self._pager.unshare(*table.locate(shared))
        self._reasons.add_results("unshare", results)
        private = shared[results == Outcome.DONE]
        trials.note(private)
        table.leave_frames(private)
        table.place[private] = Place.RESIDENT
        self._watch_pages(domain, private)

    def _watch_pages(self, domain: Domain, pages: PageNumbers) -> None:
        table = self._table
        quota = self._watch_rates[domain.domid].take(len(pages))
        self._reasons.add(Reason.FAULT_LIMIT, len(pages) - quota)
        chosen = pages[np.argsort(table.backoff[pages], kind="stable")[:quota]]
        if not len(chosen):
            return
        domids, gfns = table.locate(chosen)
        results = self._pager.watch(domids, gfns)
        self._reasons.add_results("watch", results)
        watched = chosen[results == Outcome.DONE]
        self._length.found(len(watched))
        table.place[watched] = Place.WATCHED
        table.idle[watched] = 0
        # Nominated for sharing alone: private again, it can be watched at the next visit.
        busy = results == Outcome.BUSY
        if busy.any() and self._sharing:
            self._reasons.add_results("unshare", self._pager.unshare(domids[busy], gfns[busy]))

    def _evict(self, domain: Domain, pages: PageNumbers, leaders: PageNumbers) -> None:
        """Evicts what is cold: as a copy of a page that is out already, or as an object of its own."""
        table = self._table
        assert self._evictor is not None
        states = self._states(pages)
        referenced = (states == State.C2) & (table.place[pages] == Place.RESIDENT)
        self._reasons.add(Reason.REFERENCED, int(referenced.sum()))
        cold = self._may_evict[states] & (table.keys[pages] != UNKNOWN_KEY)
        if self._watches:
            cold &= (table.place[pages] == Place.WATCHED) & (table.idle[pages] > 0)
        else:
            cold &= EVICTABLE[table.place[pages]]
        copies = cold & (leaders != NONE) & (leaders != pages)
        worth = cold & self._evictor.worth_trying(pages, states)
        ready, wait = copies.copy(), copies.copy()
        first = leaders[copies]
        ready[copies] = IN_STORE[table.place[first]]
        # Copies of what goes in this very batch follow it; of what is about to go, at their next visit.
        follow = copies & np.isin(leaders, pages[worth & ~copies])
        wait[copies] = (table.place[first] == Place.WATCHED) & ((table.notes[first] & FUTILE) == 0)
        alone = worth & ~(ready | follow | wait)
        # What waits, or can't be saved, takes nothing of what the limits allow.
        goes = ready | follow | alone
        if not goes.any():
            return
        goes &= self._within_limits(domain, pages, goes)
        self._let_through = (domain.domid, int(goes.sum()))
        ready, follow, alone = ready & goes, follow & goes, alone & goes
        self._evict_copies(pages[ready], leaders[ready])
        if alone.any():
            self._evictor.evict(Candidates(pages[alone], states[alone]), domain.group)
        self._evict_copies(pages[follow], leaders[follow])
        self._let_through = (-1, 0)

    def _may_go(self, pages: PageNumbers) -> NDArray[np.bool_]:
        """Which pages, of any domain, may go as references of those that the limits have let through."""
        may = np.zeros(len(pages), dtype=np.bool_)
        owners = self._table.owners(pages)
        for index in np.unique(owners):
            own = owners == index
            may[own] = self._within_limits(self._table.domains[index], pages[own], np.ones(own.sum(), dtype=np.bool_))
        return may

    def _evict_copies(self, pages: PageNumbers, leaders: PageNumbers) -> None:
        same = IN_STORE[self._table.place[leaders]] & (self._table.keys[leaders] == self._table.keys[pages])
        if same.any() and self._evictor:
            self._evictor.evict_as(pages[same], leaders[same])

    def _within_limits(self, domain: Domain, pages: PageNumbers, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Those of the wanted pages that may go out now."""
        within = wanted & self._cold_enough(domain, pages, wanted)
        self._reasons.add(Reason.REFAULT_LIMIT, int((wanted & ~within).sum()))
        room = self._room(domain)
        beyond = np.flatnonzero(within)[room.pages :]
        self._reasons.add(Reason.MIN_RESIDENT if room.by_min_resident else Reason.EVICTED_SHARE, len(beyond))
        within[beyond] = False
        return within

    def _room(self, domain: Domain) -> Room:
        """How many of its pages may go besides those that were let through."""
        evicted = int(OUT[self._table.place[domain.part]].sum())
        domid, let_through = self._let_through
        evicted += let_through if domid == domain.domid else 0
        return room_to_evict(domain.gfns, evicted, domain.min_resident, self._options.evicted_share_limit)

    def _cold_enough(self, domain: Domain, pages: PageNumbers, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the pages may go for all that came back of late."""
        patience = self._refault_limits[domain.domid].patience
        if self._watches:
            needed = least_idle(patience, self._options.c4_visits)
            cold: NDArray[np.bool_] = self._table.idle[pages] >= needed
            return cold
        # Nobody knows how long they have been idle: fewer go.
        fewer = np.zeros(len(pages), dtype=np.bool_)
        fewer[np.flatnonzero(wanted)[: int(wanted.sum() / patience + 0.5)]] = True
        return fewer

    # Telling of it.

    @property
    def table_bytes(self) -> int:
        """All memory of the engine that grows with its work."""
        total = self._table.bytes()
        if self._sharing:
            total += self._sharing.bytes
        if self._evictor:
            total += self._evictor.bytes
        return total

    def report(self) -> EngineReport:
        """From the engine's own thread, or when it has stopped."""
        sharing = self._host.memory().sharing_saved * PAGE_BYTES
        return EngineReport(
            sweeps=self._sweeps,
            cycles=self._sharing.cycles if self._sharing else self._sweeps,
            passes=self._sharing.passes if self._sharing else 1,
            cpu_s=self._cpu_s,
            table_bytes=self.table_bytes,
            saved_by={"sharing": sharing, **saved_by_eviction(self._table)},
            pages=count_places(self._table),
            refaults={domain.domid: domain.refaults for domain in self._table.domains},
            touches={domain.domid: domain.touches for domain in self._table.domains},
            reasons=self._reasons.as_dict(),
        )

    def domain_reports(self) -> list[DomainReport]:
        """As `report`."""
        return [
            domain_report(self._table, domain, self._reasons.of_domain(domain.domid)) for domain in self._table.domains
        ]

    def close(self) -> None:
        """Gives up what it holds of the store, its logs of written pages, and its claims."""
        for domain in self._table.domains:
            self._written.end(domain)
        if self._evictor:
            self._evictor.close()
        self._reserve.close()
