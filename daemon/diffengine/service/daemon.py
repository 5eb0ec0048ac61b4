# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon: one asyncio loop for control, beside the engine's thread; signals, settings, the status socket."""

import asyncio
import logging
import signal
import sys
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffengine.errors import DiffengineError, one_line
from diffengine.native import random_seed
from diffengine.service.configuration import Configuration, configuration, read_configuration
from diffengine.service.events import EventKind, Events
from diffengine.service.free_requests import FreeRequest
from diffengine.service.host import Connected, HostChoice, connect
from diffengine.service.libvirt_link import LibvirtLink
from diffengine.service.methods import Methods
from diffengine.service.metrics import MetricsServer, exposition
from diffengine.service.operations import Operations
from diffengine.service.server import Server
from diffengine.service.supervisor import handed_over, supervisor
from diffengine.service.worker import Worker
from diffengine.service.xenstore_link import XenstoreLink

LOG = logging.getLogger("diffengine")
END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# The engine's thread must not keep the control loop waiting for the interpreter.
SWITCH_INTERVAL_S = 0.001


@dataclass(frozen=True)
class Settings:
    """file: what SIGHUP reads again; None: none. configuration: what holds at the start."""

    file: Path | None
    configuration: Configuration


def settings_from(file: Path | None) -> Settings:
    """Raises ConfigurationError. Without a file, the defaults."""
    seed = random_seed()
    return Settings(file, read_configuration(file, seed) if file else configuration({}, seed))


def run_daemon(choice: HostChoice, settings: Settings) -> None:
    """Until SIGTERM or SIGINT, which it takes for itself. From a process's main thread.

    Raises HostGoneError when the machine or the pager ends, SocketError if the status socket can't be made.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with connect(choice) as connected:
        asyncio.run(_Daemon(connected, settings, choice).run())


class _Daemon:
    def __init__(self, connected: Connected, settings: Settings, choice: HostChoice) -> None:
        self._choice = choice
        self._connected = connected
        self._settings = settings
        self._events = Events()
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None
        self._reading: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        told, listening = supervisor(), handed_over()
        for number in END_SIGNALS:
            self._loop.add_signal_handler(number, self._ended.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._read_settings)
        start = self._settings.configuration
        operations = Operations(self._connected, start, self._tell)
        self._worker = Worker(operations, lambda failure: self._loop.call_soon_threadsafe(self._end, failure), told)
        methods = Methods(self._worker, self._events, self._connected)
        server = Server(start.socket_path, start.socket_group, methods.call, self._events)
        metrics = self._metrics()
        server.start(listening)
        links: list[XenstoreLink | LibvirtLink] = []
        try:
            self._worker.start()
            links = self._links(methods)
            for link in links:
                link.start()
            if metrics:
                await metrics.start()
            told.ready()
            LOG.info("at work on %d domains", operations.snapshot.status.domains_worked_on)
            await self._ended.wait()
            if not self._failure:
                LOG.info("told to end")
        finally:
            told.ending()
            if metrics:
                await metrics.close()
            await server.close()
            for link in links:
                await asyncio.to_thread(link.stop)
            self._worker.stop()
        if self._failure:
            raise self._failure

    def _metrics(self) -> MetricsServer | None:
        """Not started. Raises MetricsError."""
        configuration = self._settings.configuration
        if not (configuration.metrics.path or configuration.metrics.port):
            return None
        text = exposition(lambda: self._worker.snapshot)
        return MetricsServer(configuration.metrics, configuration.socket_group, text)

    def _links(self, methods: Methods) -> list[XenstoreLink | LibvirtLink]:
        """To what else there is on this host, not started."""

        def free(request: FreeRequest) -> "Future[dict[str, Any]]":
            return asyncio.run_coroutine_threadsafe(methods.free(request), self._loop)

        def tell(kind: EventKind, text: str) -> None:
            self._tell(kind, text, None, "", "")

        links: list[XenstoreLink | LibvirtLink] = []
        if path := self._choice.find_xenstore():
            links.append(XenstoreLink(path, self._worker, free, tell))
        if uri := self._settings.configuration.libvirt_uri or self._choice.find_libvirt():
            links.append(LibvirtLink(uri, self._worker, tell))
        return links

    def _end(self, failure: BaseException | None) -> None:
        self._failure = failure
        self._ended.set()

    def _tell(self, kind: EventKind, text: str, domid: int | None, uuid: str, reason: str) -> None:
        """From other threads."""
        self._loop.call_soon_threadsafe(self._events.tell, kind, text, domid, uuid, reason)

    def _read_settings(self) -> None:
        """SIGHUP: the file holds again, whatever was set since. If it is wrong, nothing changes."""
        if self._settings.file is None:
            self._events.tell(EventKind.SETTINGS_REFUSED, "SIGHUP: there is no configuration file to read again")
            return
        task = asyncio.create_task(self._use_file(self._settings.file))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _use_file(self, file: Path) -> None:
        try:
            read = read_configuration(file, self._settings.configuration.engine.seed)
            await asyncio.wrap_future(self._worker.submit(lambda operations: operations.use(read)))
        except DiffengineError as error:
            text = f"the settings stay as they are: {one_line(str(error))}"
            self._events.tell(EventKind.SETTINGS_REFUSED, text)
        else:
            self._events.tell(EventKind.SETTINGS, f"settings read from {file}")
