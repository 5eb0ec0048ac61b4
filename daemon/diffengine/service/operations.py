# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon can be told to do. All of it belongs to the engine's thread."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from diffengine.engine import EngineOptions
from diffengine.errors import DiffengineError
from diffengine.hypervisor.protocol import DomainInfo, Life
from diffengine.hypervisor.room import PAGES_PER_MIB, mib, require_room
from diffengine.native import PAGE_BYTES, NativeError
from diffengine.service.attached import AttachedEngine, Cause, DomainTerms, LeftAlone, Standing, own_group, shown_group
from diffengine.service.configuration import (
    Configuration,
    ConfigurationError,
    DomainSettings,
    Identity,
    Values,
    with_change,
    with_words,
)
from diffengine.service.events import EventKind
from diffengine.service.host import Connected
from diffengine.service.left_alone import LeftAloneReports
from diffengine.service.overrides import Overrides, Place, settle
from diffengine.service.parts import Part, parts_away
from diffengine.service.readiness import LONG_AGO, why_not_yet
from diffengine.service.snapshot import Snapshot, take_snapshot

# While memory is wanted, pages are visited so many times as often.
FREEING_SPEED = 4
LEAST_INTERVAL_S = 0.001
# Telling may take so much of the thread's time, and at most so often.
TELLING_SHARE = 0.002
TELL_INTERVAL_S = 1.0
# Kind, text, domid, UUID, and why: a Cause, or "".
Tell = Callable[[EventKind, str, int | None, str, str], None]


class Named(Protocol):
    """Who can be asked for."""

    @property
    def domid(self) -> int: ...
    @property
    def uuid(self) -> str: ...
    @property
    def name(self) -> str: ...


class RefusedError(DiffengineError):
    """What was asked for can't be done now; why, and what to do."""


@dataclass(frozen=True)
class Promise:
    """Memory that is kept free for a domain that is about to start. until_s: of the monotonic clock."""

    wanted_bytes: int
    until_s: float


class Operations:
    """The engine, the settings that it works by, and what is asked of it."""

    def __init__(self, connected: Connected, configuration: Configuration, tell: Tell) -> None:
        self._connected = connected
        self._tell_event = tell
        self._base = configuration
        self._overrides = Overrides(configuration)
        self._identities: dict[int, Identity] = {}
        self._described: dict[str, Values] = {}
        self._paused: set[str] = set()
        self._releasing: set[int] = set()
        self._since_s: dict[int, float] = {}
        self._all_paused = False
        self._wanted_bytes = 0
        self._promise: Promise | None = None
        self._promise_looked_s = float("-inf")
        self._refreeing_bytes = 0
        self._start_s = time.monotonic()
        self._spare_dom0()
        self._tell_s = float("-inf")
        self._attached = AttachedEngine(
            connected.host, connected.pager, configuration.engine, self._terms, self._standing_changed
        )
        self._left_alone = LeftAloneReports(connected.pager)
        self._first_look = True
        self._attached.look()
        self._first_look = False
        self.snapshot = self._take_snapshot()

    # The loop.

    def step(self) -> float:
        """One step of the engine, if it is not paused. Seconds to wait before the next."""
        self._keep_promise()
        if self._all_paused:
            self._attached.look_in_time()
            wait_s = TELL_INTERVAL_S
        else:
            wait_s = self._attached.work()
        if time.monotonic() >= self._tell_s:
            self.refresh()
        return wait_s

    @property
    def standings(self) -> Mapping[int, Standing]:
        return self._attached.standings

    def look(self) -> None:
        """Which domains are there? Somebody came, went or was let go of."""
        self._attached.look()
        self.refresh()

    def refresh(self) -> None:
        """A snapshot of now; the next one not before this one's time is a small part of all time."""
        start_s, start_cpu_s = time.monotonic(), time.thread_time()
        self.snapshot = self._take_snapshot()
        took_s = time.thread_time() - start_cpu_s
        self._tell_s = start_s + max(TELL_INTERVAL_S, took_s / TELLING_SHARE)

    def standing_text(self) -> str:
        """How it goes, in a line."""
        status = self.snapshot.status
        paused = "paused; " if status.paused else ""
        return (
            f"{paused}saving {mib(status.memory.saved // PAGE_BYTES)} of {status.domains_worked_on} domains; "
            f"{status.domains - status.domains_worked_on} left alone"
        )

    def close(self) -> None:
        self._attached.close()

    def _take_snapshot(self) -> Snapshot:
        return take_snapshot(
            self._connected,
            self._attached,
            self._left_alone,
            self._identities,
            paused=self._all_paused,
            freeing=max(self._wanted_bytes, self._refreeing_bytes) > 0,
            taken_s=time.monotonic() - self._start_s,
        )

    # What is wanted of a domain.

    def _terms(self, domain: DomainInfo) -> Standing:
        # Before all else: a domain that is enabled later has run since it was seen to.
        since_s = self._running_since(domain)
        settings = self._settings(self._identity(domain.domid))
        if self._pause_key(domain.domid) in self._paused:
            return LeftAlone(Cause.PAUSED, f"paused; `diffengine resume {domain.domid}` goes on")
        if domain.domid in self._releasing:
            return LeftAlone(Cause.RELEASING, "its pages come back, for it to be released")
        if not settings.enabled:
            return LeftAlone(Cause.NOT_ENABLED, "not enabled in the configuration")
        if not_yet := why_not_yet(domain.life, since_s, time.monotonic(), settings.grace_s):
            return not_yet
        group = settings.trust_group or own_group(domain.domid)
        return DomainTerms(group, int(settings.min_resident_mib * PAGES_PER_MIB), settings.log_dirty)

    def _running_since(self, domain: DomainInfo) -> float:
        """Remembered from when it was first seen to run. Was it there before us, no grace is due: a restart of ours
        must cost nothing."""
        if domain.life is Life.RUNNING and domain.domid not in self._since_s:
            there_before = self._first_look or self.pages_out(domain.domid) > 0
            self._since_s[domain.domid] = LONG_AGO if there_before else time.monotonic()
            if not self._identity(domain.domid).name:
                # xl knows a domain's name only once it is made, which is after xenstore tells of it.
                self._learn_identities()
        return self._since_s.get(domain.domid, LONG_AGO)

    def _settings(self, identity: Identity) -> DomainSettings:
        """What was said last counts most: the configuration, the domain's own description, what xenstore says."""
        settings = with_words(self.configuration.domain(identity), self._described.get(identity.uuid, {}))
        return with_words(settings, self._overrides.words.get(identity.uuid, {}))

    def describe(self, words: Mapping[str, Values]) -> None:
        """What domains' own descriptions say of them now, by UUID: single keys, checked."""
        if words != self._described:
            self._described = dict(words)
            self._attached.look()
            self.refresh()

    def _identity(self, domid: int) -> Identity:
        if domid not in self._identities:
            if self._promise:  # it has what was kept
                self._promise = replace(self._promise, until_s=0.0)
            # Also for others that came meanwhile: asking may take a process of its own.
            self._learn_identities()
            self._identities.setdefault(domid, Identity(domid))
        return self._identities[domid]

    def _learn_identities(self) -> None:
        """A name that is known stays if the toolstack says none now: tables of the configuration go by it."""
        for domid, identity in self._connected.identify().items():
            if identity.name or domid not in self._identities:
                self._identities[domid] = identity

    def _standing_changed(self, domid: int, standing: Standing | None) -> None:
        called = self._called(domid)
        if standing is None:
            self._tell(EventKind.GONE, f"{called} is gone", domid)
            self._identities.pop(domid, None)
            self._since_s.pop(domid, None)
        elif isinstance(standing, LeftAlone):
            text = f"{called} is left alone: {standing.why}"
            self._tell(EventKind.LEFT_ALONE, text, domid, standing.cause.value)
        else:
            group = shown_group(standing.trust_group)
            where = f"in trust group {group}" if group else "in a trust group of its own"
            self._tell(EventKind.WORKED_ON, f"{called} is worked on, {where}", domid)

    def _tell(self, kind: EventKind, text: str, domid: int | None, reason: str = "") -> None:
        uuid = "" if domid is None else self._identities.get(domid, Identity(domid)).uuid
        self._tell_event(kind, text, domid, uuid, reason)

    def _called(self, domid: int) -> str:
        name = self._identities.get(domid, Identity(domid)).name
        return f"domain {domid} ({name})" if name else f"domain {domid}"

    # Settings.

    @property
    def configuration(self) -> Configuration:
        """What holds now."""
        return self._overrides.configuration

    def set(self, domain: str | None, key: str, value: Any) -> None:
        """A key of [engine], or of a domain's table; the domain by number, UUID or name, also one that is not here.

        Raises ConfigurationError or RefusedError, and nothing has changed.
        """
        table = None if domain is None else self._table_of(domain)
        self._refuse_overridden(domain, key)
        self.use(with_change(self._base, table, key, value))
        where = "engine" if table is None else f'domain."{table}"'
        self._tell(EventKind.SETTINGS, f"set {where} {key} = {value!r}", None)

    def _here(self, text: str) -> Identity | None:
        """The domain that is meant, if it is here."""
        here = [self._identity(domid) for domid in self._attached.domains]
        try:
            domid = which(here, text)
        except RefusedError:
            return None
        return self._identity(domid)

    def _table_of(self, text: str) -> str:
        """The name of the table that holds for the domain; there may be one by its name, or none yet."""
        identity = self._here(text)
        if identity is None:
            return text
        names = [name for name in (identity.uuid, identity.name) if name]
        if not names:
            raise RefusedError(f"domain {text} has neither UUID nor name, so that no settings can be kept for it")
        return next((name for name in names if name in self._base.domains), names[0])

    def _refuse_overridden(self, domain: str | None, key: str) -> None:
        identity = None if domain is None else self._here(domain)
        if domain is None:
            held = {place.key: value for place, value in self._overrides.held.items() if place.table == "engine"}
        else:
            held = self._overrides.words.get(identity.uuid if identity else domain.lower(), {})
        if key in held:
            raise ConfigurationError(f"{key}: xenstore says {held[key]!r}; change or remove it there")

    def use(self, configuration: Configuration) -> None:
        """Everything by these settings from now on, as far as nothing holds instead. Raises ConfigurationError if the
        two don't go together; then nothing has changed."""
        held = self._overrides.held
        self._overrides = settle(configuration, held, held)
        self._base = configuration
        self._follow_settings()

    def override(self, wanted: Mapping[Place, Any]) -> Mapping[Place, str]:
        """From now on these values hold instead of the configuration's, as far as they are right, and all former ones
        do no more. Why not, of the others."""
        before = self._overrides
        self._overrides = settle(self._base, before.held, wanted)
        if self._overrides.held != before.held:
            self._follow_settings()
        return self._overrides.refused

    @property
    def overrides(self) -> Mapping[Place, Any]:
        return self._overrides.held

    def _follow_settings(self) -> None:
        self._spare_dom0()
        self._attached.set_options(self._options())
        self._attached.look()
        self.refresh()

    # Work.

    def pause(self, domid: int | None) -> None:
        """None: the whole engine, which keeps what it knows."""
        if domid is None:
            self._all_paused = True
            self._tell(EventKind.PAUSED, "the engine is paused", None)
        else:
            self._paused.add(self._pause_key(domid))
            self._tell(EventKind.PAUSED, f"{self._called(domid)} is paused", domid)
        self._attached.look()
        self.refresh()

    def _pause_key(self, domid: int) -> str:
        """A domain that reboots stays paused, under another number."""
        return self._identity(domid).uuid or str(domid)

    def resume(self, domid: int | None) -> None:
        if domid is None:
            self._all_paused = False
            self._tell(EventKind.RESUMED, "the engine goes on", None)
        else:
            self._paused.discard(self._pause_key(domid))
            self._tell(EventKind.RESUMED, f"{self._called(domid)} goes on", domid)
        self._attached.look()
        self.refresh()

    def find(self, text: str) -> int:
        """The domain of that number, UUID or name, whether it may be worked on or not. Raises RefusedError."""
        return which(tuple(self._connected.identify().values()), text)

    def begin_release(self, domid: int) -> dict[int, int]:
        """Until `end_release` its pages stay when they are back; its log of written pages will be somebody else's. How
        many are out. Raises NoRoomError, and nothing has changed."""
        out = {domid: self.pages_out(domid)}
        self.check_room(out, self._called(domid))
        self._attached.engine.stop_log_dirty(domid)
        self._releasing.add(domid)
        self.look()
        return out

    def end_release(self, domid: int) -> None:
        """It was let go of, or goes on as before."""
        self._releasing.discard(domid)
        self.look()

    def pages_out(self, domid: int) -> int:
        return self._connected.pager.pages_out(domid)

    def check_room(self, out: Mapping[int, int], what: str) -> None:
        """Raises NoRoomError if so many pages of these domains find no free frames. What is claimed for themselves is
        theirs."""
        host, own = self._connected.host, 0
        for domid, count in out.items():
            frames = host.domain_frames(domid)
            own += min(frames.claimed, count) if frames else 0
        memory = host.memory()
        require_room(what, sum(out.values()), memory.free, memory.claimed, own)

    def begin_page_in(self, domid: int) -> dict[int, int]:
        """Pauses it, so that its pages stay when they are back. How many are out."""
        out = {domid: self.pages_out(domid)}
        self.check_room(out, self._called(domid))
        self.pause(domid)
        return out

    def begin_drain(self) -> dict[int, int]:
        """Pauses the engine. Pages that are out, of each domain that has some. Raises NoRoomError if not all could come
        back; then nothing has changed."""
        self._check_drain()
        self.pause(None)
        return self._check_drain()

    def _check_drain(self) -> dict[int, int]:
        out = {domid: pages for domid in self._attached.domains if (pages := self.pages_out(domid))}
        self.check_room(out, "draining")
        return out

    def parts_away(self, domid: int) -> list[Part]:
        """Of a domain's pages those that are not at home, in parts that do not take long."""
        domain = self._attached.domains.get(domid)
        return parts_away(self._connected.pager.states(domid, 0, domain.gfns).states) if domain else []

    def bring_back(self, domid: int, part: Part) -> bool:
        """Whether all of it is back. What is not finds no frame, or is on its way already: then once more."""
        try:
            self._connected.pager.restore_part(domid, part.first, part.count)
        except NativeError:
            return False
        return True

    def is_back(self, domid: int, pages: int) -> None:
        self._tell(EventKind.PAGED_IN, f"{self._called(domid)}: {pages:,} pages came back", domid)
        self.refresh()

    # Memory that is wanted.

    def free_bytes(self) -> int:
        """What a domain that starts now can have: neither what is claimed, nor what the reserve is still to get."""
        memory, counters = self._connected.host.memory(), self._connected.pager.counters()
        reserve = min(int(self.configuration.engine.reserve_mib * PAGES_PER_MIB), counters.evicted)
        return max(0, memory.free - max(memory.claimed, reserve)) * PAGE_BYTES

    def take_free(self, wanted_bytes: int, domid: int | None) -> tuple[int, bool]:
        """What is free, and whether it is enough: for the domain, if there is one, for which it is claimed then."""
        free_bytes = self.free_bytes()
        if free_bytes < wanted_bytes or domid is None:
            return free_bytes, free_bytes >= wanted_bytes
        return free_bytes, self._claim_for(domid, wanted_bytes // PAGE_BYTES)

    def _claim_for(self, domid: int, pages: int) -> bool:
        host = self._connected.host
        frames = host.domain_frames(domid)
        if frames is None:
            raise RefusedError(f"there is no domain {domid} any more")
        if frames.claimed:
            host.claim(domid, 0)
        return host.claim(domid, frames.own + pages)

    def promise(self, wanted_bytes: int, hold_s: float) -> None:
        """So much stays free, by freeing anew what others take of it, until a domain comes or the time is over."""
        self._promise = Promise(wanted_bytes, time.monotonic() + hold_s)

    def _keep_promise(self) -> None:
        now_s = time.monotonic()
        if self._promise is None or now_s < self._promise_looked_s + TELL_INTERVAL_S:
            return
        self._promise_looked_s = now_s
        if now_s >= self._promise.until_s:
            self._promise = None
        wanted = self._promise.wanted_bytes if self._promise and self.free_bytes() < self._promise.wanted_bytes else 0
        if wanted != self._refreeing_bytes:
            self._refreeing_bytes = wanted
            self._attached.set_options(self._options())

    def begin_freeing(self, wanted_bytes: int) -> None:
        """Until `end_freeing`: a whole core, faster visits, and swap down to what leaves so much."""
        self._wanted_bytes = wanted_bytes
        self._attached.set_options(self._options())
        self.refresh()

    def end_freeing(self, text: str) -> None:
        self._wanted_bytes = 0
        self._attached.set_options(self._options())
        self._tell(EventKind.FREED, text, None)
        self.refresh()

    def _spare_dom0(self) -> None:
        pages = int(self.configuration.min_available_mib * PAGES_PER_MIB)
        self._connected.pager.least_available_bytes = pages * PAGE_BYTES

    def _options(self) -> EngineOptions:
        options = self.configuration.engine
        wanted_bytes = max(self._wanted_bytes, self._refreeing_bytes)
        if not wanted_bytes:
            return options
        memory = self._connected.host.memory()
        leaves = max(0.0, 1 - wanted_bytes / PAGE_BYTES / memory.frames - memory.claimed / memory.frames)
        return replace(
            options,
            cpu_share=1.0,
            visit_interval_s=max(LEAST_INTERVAL_S, options.visit_interval_s / FREEING_SPEED),
            high_watermark=min(options.high_watermark, leaves),
            low_watermark=min(options.low_watermark, leaves),
        )


def which(domains: Sequence[Named], text: str) -> int:
    """The one that is meant: by UUID, else by name, else by number. Raises RefusedError."""
    for found in (
        [each.domid for each in domains if each.uuid and each.uuid == text.lower()],
        [each.domid for each in domains if each.name == text],
        [each.domid for each in domains if str(each.domid) == text],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise RefusedError(f"several domains are called {text}; name it by number or UUID")
    raise RefusedError(f"there is no domain {text[:60]}; `diffengine domains` shows which there are")
