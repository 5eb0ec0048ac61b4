# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon in xenstore: settings and requests below /tool/diffengine, and word of domains that come and go.

A thread of its own, which waits for xenstore so that nobody else has to. It looks at everything anew when it has
connected, and when anything was changed, so that no event that was missed matters. docs/xenstore.md has the tree.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from errno import E2BIG, EPERM
from pathlib import Path
from typing import Any

from diffengine.errors import DiffengineError, one_line
from diffengine.hypervisor.xen.xenstore import (
    PATIENCE_S,
    Xenstore,
    XenstoreError,
    XenstoreGoneError,
    connect_xenstore,
)
from diffengine.service.events import EventKind
from diffengine.service.free_requests import FreeRequest, outcome_of, parse_free_request
from diffengine.service.operations import Operations
from diffengine.service.overrides import HOST_TABLES, Place
from diffengine.service.worker import Worker
from diffengine.settings import value_of

LOG = logging.getLogger("diffengine")
ROOT = "/tool/diffengine"
FREE = f"{ROOT}/free"
DOMAIN_WATCHES = ("@introduceDomain", "@releaseDomain")
# Written by us, below what somebody else wrote.
ERROR = "error"
OUTCOME = "outcome"
RETRY_S = 1.0
# What is written together is looked at together.
SETTLE_S = 0.05
MOST_SETTINGS = 8192
Tell = Callable[[EventKind, str], object]
Free = Callable[[FreeRequest], "Future[dict[str, Any]]"]


@dataclass
class _News:
    """What was heard since it was taken last."""

    ended: str = ""
    settings: bool = False
    domains: bool = False
    free: set[str] = field(default_factory=set)
    outcomes: bool = False

    def any(self) -> bool:
        return bool(self.ended or self.settings or self.domains or self.free or self.outcomes)


class XenstoreLink:
    """From `start` to `stop`. What goes wrong with xenstore is told in the log; what holds goes on to hold."""

    def __init__(self, path: Path, worker: Worker, free: Free, tell: Tell, patience_s: float = PATIENCE_S) -> None:
        """free: asks for memory, for a request that was read. tell: may be called on the link's thread."""
        self._path = path
        self._worker = worker
        self._free = free
        self._tell = tell
        self._patience_s = patience_s
        self._news = _News()
        self._heard = threading.Condition()
        self._stopped = False
        self._asked: set[str] = set()
        self._outcomes: dict[str, str] = {}
        self._refused: dict[Place, str] = {}
        self._thread = threading.Thread(target=self._run, name="xenstore")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for its end: no longer than a call to xenstore, or a step of the engine."""
        with self._heard:
            self._stopped = True
            self._heard.notify()
        self._thread.join()

    # What is heard, on other threads.

    def _told(self, path: str, token: str) -> None:
        last = path.rpartition("/")[2]
        if last in (ERROR, OUTCOME):
            return
        with self._heard:
            if token == "domains":
                self._news.domains = True
            elif path.startswith(FREE + "/"):
                self._news.free.add(path)
            else:
                self._news.settings = True
            self._heard.notify()

    def _ended(self, why: str) -> None:
        with self._heard:
            self._news.ended = why
            self._heard.notify()

    def _answered(self, path: str, future: "Future[dict[str, Any]]") -> None:
        with self._heard:
            self._outcomes[path] = outcome_of(future)
            self._news.outcomes = True
            self._heard.notify()

    # The thread.

    def _run(self) -> None:
        lost = ""
        while not self._stopped:
            try:
                with closing(connect_xenstore(self._path, self._told, self._ended, self._patience_s)) as xenstore:
                    self._begin(xenstore)
                    if lost:
                        LOG.info("xenstore: connected again")
                        lost = ""
                    self._follow(xenstore)
            except DiffengineError as error:
                if str(error) != lost:
                    LOG.warning("%s; the settings stay as they are; tried again every second", error)
                lost = str(error)
            except Exception as error:
                LOG.exception("xenstore: a defect; please report it")
                lost = str(error)
            with self._heard:
                self._heard.wait_for(lambda: self._stopped, RETRY_S)
                self._news.ended = ""

    def _begin(self, xenstore: Xenstore) -> None:
        xenstore.make_private(ROOT)
        xenstore.watch(ROOT, "settings")
        for path in DOMAIN_WATCHES:
            xenstore.watch(path, "domains")
        self._look_at_settings(xenstore)
        for name in xenstore.names(FREE) or []:
            path = f"{FREE}/{name}"
            if xenstore.read(f"{path}/{OUTCOME}") is None:
                self._take_request(xenstore, path)
        self._write_outcomes(xenstore)

    def _follow(self, xenstore: Xenstore) -> None:
        """Until told to stop. Raises XenstoreGoneError."""
        while True:
            with self._heard:
                self._heard.wait_for(lambda: self._stopped or self._news.any())
                if not self._stopped:
                    self._heard.wait_for(lambda: self._stopped, SETTLE_S)
                if self._stopped:
                    return
                news, self._news = self._news, _News()
            if news.ended:
                raise XenstoreGoneError(f"xenstore: {news.ended}")
            if news.domains:
                self._on_engine(Operations.look)
            if news.settings:
                self._look_at_settings(xenstore)
            for path in sorted(news.free):
                self._take_request(xenstore, path)
            self._write_outcomes(xenstore)

    def _on_engine(self, order: Callable[[Operations], Any]) -> Any:
        return self._worker.submit(order).result()

    # Settings.

    def _look_at_settings(self, xenstore: Xenstore) -> None:
        wanted: dict[Place, Any] = {}
        refused: dict[Place, str] = {}
        for place in self._places(xenstore):
            try:
                text = read_ours(xenstore, path_of(place))
            except XenstoreError as error:
                refused[place] = str(error)
                continue
            if text is not None:
                wanted[place] = value_of(text)
        # What may not be read is not in use, whatever it was before.
        refused |= self._on_engine(lambda operations: operations.override(wanted))
        self._tell_refused(refused, wanted)
        for place in wanted.keys() | refused.keys():
            self._write_error(xenstore, place, refused.get(place))

    def _places(self, xenstore: Xenstore) -> list[Place]:
        found = [Place(table, key) for table in HOST_TABLES for key in names(xenstore, f"{ROOT}/{table}")]
        for uuid in self._uuids(xenstore):
            found += [Place("domain", key, uuid) for key in names(xenstore, f"{ROOT}/domain/{uuid}")]
        if len(found) > MOST_SETTINGS:
            LOG.warning("xenstore: more than %d settings; the rest is not looked at", MOST_SETTINGS)
        return found[:MOST_SETTINGS]

    def _uuids(self, xenstore: Xenstore) -> list[str]:
        """Domains that have settings there. xenstore lists no more than 4096 bytes: then those that are here."""
        try:
            return names(xenstore, f"{ROOT}/domain")
        except XenstoreError as error:
            if error.error != E2BIG:
                raise
        return [domain.uuid for domain in self._worker.snapshot.domains if domain.uuid]

    def _tell_refused(self, refused: dict[Place, str], wanted: dict[Place, Any]) -> None:
        for place, why in refused.items():
            if self._refused.get(place) != why:
                text = f"xenstore: {path_of(place)} is not used: {one_line(why)}"
                self._tell(EventKind.SETTINGS_REFUSED, text)
        for place in self._refused.keys() - refused.keys():
            if place in wanted:
                self._tell(EventKind.SETTINGS, f"xenstore: {path_of(place)} is used now")
        self._refused = refused

    def _write_error(self, xenstore: Xenstore, place: Place, why: str | None) -> None:
        path = f"{path_of(place)}/{ERROR}"
        before = xenstore.read(path)
        if why is None:
            if before is not None:
                xenstore.remove(path)
        elif before is None or before != shown_error(why):
            xenstore.write(path, shown_error(why))

    # Requests.

    def _take_request(self, xenstore: Xenstore, path: str) -> None:
        if path in self._asked or path.count("/") != FREE.count("/") + 1:
            return
        try:
            text = read_ours(xenstore, path)
            if text is None:
                return
            request = parse_free_request(text)
        except XenstoreGoneError:
            raise
        except DiffengineError as error:
            self._outcomes[path] = f"refused {error}"
            return
        xenstore.remove(f"{path}/{OUTCOME}")
        self._asked.add(path)
        self._free(request).add_done_callback(lambda future: self._answered(path, future))

    def _write_outcomes(self, xenstore: Xenstore) -> None:
        """Also those that could not be written before. Who has taken its request back wants none."""
        for path, outcome in list(self._outcomes.items()):
            try:
                if xenstore.read(path) is not None:
                    xenstore.write(f"{path}/{OUTCOME}", outcome)
            except XenstoreError as error:
                LOG.warning("%s; so nobody is told: %s", error, outcome)
            self._asked.discard(path)
            del self._outcomes[path]


def path_of(place: Place) -> str:
    return "/".join(part for part in (ROOT, place.table, place.uuid, place.key) if part)


def shown_error(why: str) -> str:
    """As xenstore can have it."""
    return one_line(why).encode("ascii", "backslashreplace").decode()


def names(xenstore: Xenstore, path: str) -> list[str]:
    return [name for name in xenstore.names(path) or [] if name != ERROR]


def read_ours(xenstore: Xenstore, path: str) -> str | None:
    """Raises XenstoreError if another domain could have written it."""
    if others := xenstore.changers(path):
        who = "all domains" if -1 in others else "domain " + ", ".join(map(str, others))
        raise XenstoreError(
            f"reading {path}", EPERM, f"{who} may change it; xenstore-chmod -r {path} n0, then write it anew"
        )
    return xenstore.read(path)
