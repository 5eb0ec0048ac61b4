# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt, where it serves this host: word of domains that come, go or change, and what their descriptions say to us.

A thread of its own waits for libvirt, so that nobody else has to. It looks at all domains when it has connected and
after every event, so that none that was missed matters. What is worked on the hypervisor says, not libvirt: without it
the daemon sees the same domains, at most a second later.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from diffengine.errors import DiffengineError, one_line
from diffengine.service.configuration import ConfigurationError, Values
from diffengine.service.domain_description import NAMESPACE, words_of
from diffengine.service.events import EventKind
from diffengine.service.operations import Operations
from diffengine.service.worker import Worker

LOG = logging.getLogger("diffengine")
RETRY_S = 5.0
# Who does not answer for so long is given up.
KEEP_ALIVE_S, KEEP_ALIVE_COUNT = 5, 3
# libvirt may keep a call of ours for ever; the daemon ends all the same.
END_S = 5.0
EVENTS = (
    "VIR_DOMAIN_EVENT_ID_LIFECYCLE",
    "VIR_DOMAIN_EVENT_ID_REBOOT",
    "VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE",
    "VIR_DOMAIN_EVENT_ID_METADATA_CHANGE",
)
Tell = Callable[[EventKind, str], object]


class LibvirtError(DiffengineError):
    """libvirt is not there, went, or refuses."""


class LibvirtLink:
    """From `start` to `stop`. One at a time in a process: libvirt's events have one loop."""

    def __init__(self, uri: str, worker: Worker, tell: Tell) -> None:
        """tell: may be called on the link's thread."""
        self._uri = uri
        self._worker = worker
        self._tell = tell
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopped = threading.Event()
        self._changed = True
        self._closed = ""
        self._refused: dict[str, str] = {}
        # If libvirt keeps it, it goes with the process.
        self._thread = threading.Thread(target=self._run, name="libvirt", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for its end, if libvirt lets it."""
        self._stopped.set()
        os.write(self._wake_write, b"x")
        self._thread.join(END_S)
        if not self._thread.is_alive():
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _run(self) -> None:
        lost = ""
        while not self._stopped.is_set():
            try:
                with connected(self._uri) as (libvirt, connection):
                    self._subscribe(libvirt, connection)
                    if lost:
                        LOG.info("libvirt: connected again")
                        lost = ""
                    self._follow(libvirt, connection)
            except DiffengineError as error:
                if str(error) != lost:
                    LOG.warning("%s; tried again every %g s", error, RETRY_S)
                lost = str(error)
            except Exception as error:
                LOG.exception("libvirt: a defect; please report it")
                lost = str(error)
            self._stopped.wait(RETRY_S)

    def _subscribe(self, libvirt: Any, connection: Any) -> None:
        self._changed, self._closed = True, ""
        for name in EVENTS:
            # Which there are, the driver says.
            with suppress(libvirt.libvirtError):
                connection.domainEventRegisterAny(None, getattr(libvirt, name), self._heard, None)
        with suppress(libvirt.libvirtError):
            connection.registerCloseCallback(self._ended, None)
        with suppress(libvirt.libvirtError):
            connection.setKeepAlive(KEEP_ALIVE_S, KEEP_ALIVE_COUNT)

    def _heard(self, *_: Any) -> None:
        self._changed = True

    def _ended(self, *_: Any) -> None:
        self._closed = "the connection was closed"

    def _follow(self, libvirt: Any, connection: Any) -> None:
        """Until told to stop. Raises LibvirtError."""
        handle = libvirt.virEventAddHandle(self._wake_read, libvirt.VIR_EVENT_HANDLE_READABLE, lambda *_: None, None)
        try:
            while not self._stopped.is_set():
                if self._closed:
                    raise LibvirtError(f"libvirt: {self._closed}")
                if self._changed:
                    self._changed = False
                    self._look(libvirt, connection)
                libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            raise LibvirtError(f"libvirt: {error}") from error
        finally:
            libvirt.virEventRemoveHandle(handle)

    def _look(self, libvirt: Any, connection: Any) -> None:
        words = self._words(libvirt, connection)

        def order(operations: Operations) -> None:
            operations.look()
            operations.describe(words)

        self._worker.submit(order).result()

    def _words(self, libvirt: Any, connection: Any) -> Mapping[str, Values]:
        """Of all domains that run. What one says wrongly is told once, and the rest of its description counts for
        nothing."""
        found: dict[str, Values] = {}
        refused: dict[str, str] = {}
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            uuid = domain.UUIDString().lower()
            try:
                if xml := metadata(libvirt, domain):
                    found[uuid] = words_of(xml, uuid)
            except ConfigurationError as error:
                refused[uuid] = str(error)
        for uuid, why in refused.items():
            if self._refused.get(uuid) != why:
                self._tell(EventKind.SETTINGS_REFUSED, one_line(why))
        self._refused = refused
        return found


def metadata(libvirt: Any, domain: Any) -> str | None:
    """Ours, as it is for the domain that runs; None: it has none, or is gone."""
    try:
        kind, now = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
        return str(domain.metadata(kind, NAMESPACE, now))
    except libvirt.libvirtError as error:
        absent = (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
        if error.get_error_code() in absent:
            return None
        raise


_events_registered = threading.Lock()


@contextmanager
def connected(uri: str) -> Iterator[tuple[Any, Any]]:
    """The module and a connection. Raises LibvirtError."""
    try:
        import libvirt
    except ImportError as error:
        raise LibvirtError(
            "libvirt: its Python module is not installed; on Debian: apt install python3-libvirt, or pip install "
            "'diffengine[xen]'"
        ) from error
    # What it would say on stderr, its exceptions say.
    libvirt.registerErrorHandler(lambda *_: None, None)
    # For the whole process, and never twice.
    if _events_registered.acquire(blocking=False):
        libvirt.virEventRegisterDefaultImpl()
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise LibvirtError(f"libvirt: {uri}: {one_line(str(error))}") from error
    try:
        yield libvirt, connection
    finally:
        with suppress(libvirt.libvirtError):
            connection.close()
