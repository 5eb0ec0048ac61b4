# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's parts in this process, on a machine and a pager of its own; and a status socket to them."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffengine.hypervisor.machine_process import MachineClient
from diffengine.service.configuration import Configuration, configuration
from diffengine.service.events import Events
from diffengine.service.host import HostChoice, connect
from diffengine.service.methods import Methods
from diffengine.service.operations import Operations
from diffengine.service.server import Limits, Server
from diffengine.service.supervisor import Supervisor
from diffengine.service.worker import Worker
from diffengine.simulation.hosts import host_processes
from diffengine.simulation.scenario import MachineScenario
from engine_host import addresses, random_pages, text_pages

NAMES = {1: "web", 2: "db"}
# Cold after two visits; nothing slows it down.
ENGINE = {
    "visit_interval_s": 0.05,
    "c4_visits": 1,
    "cpu_share": 1.0,
    "fault_limit": 1e5,
    "refault_limit": 10**9,
    "reserve_mib": 0,
}
BOTH = {name: {"trust_group": "all"} for name in NAMES.values()}
UNLIMITED = Limits(requests_per_s=1e6, burst=10**6, accepts_per_s=1e6)


class Loop:
    """An asyncio loop on a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(300)

    def close(self) -> None:
        """Nothing is left in the middle of what it waits for."""
        self.run(_cancelled())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _cancelled() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextmanager
def loop() -> Iterator[Loop]:
    made = Loop()
    try:
        yield made
    finally:
        made.close()


async def _started(server: Server) -> None:
    server.start()


@contextmanager
def started(on: Loop, server: Server) -> Iterator[None]:
    on.run(_started(server))
    try:
        yield
    finally:
        on.run(server.close())


class Parts:
    def __init__(self, worker: Worker, methods: Methods, events: Events, machine: MachineClient) -> None:
        self.worker = worker
        self.methods = methods
        self.events = events
        self.machine = machine


@contextmanager
def daemon_parts(
    path: Path,
    on: Loop,
    may_change: frozenset[int] | None = None,
    settings: Configuration | None = None,
    supervisor: Supervisor | None = None,
) -> Iterator[Parts]:
    """Two idle guests of 1,100 pages each, `web` and `db`, with an engine at work and a socket served at `path`."""
    settings = settings or configuration({"engine": ENGINE, "domain": BOTH})
    contents = [np.concatenate([text_pages(1000, seed), random_pages(100, seed)]) for seed in NAMES]
    frames = sum(map(len, contents)) + 512
    with host_processes(MachineScenario(None, 0, None), frames) as processes:
        choice = HostChoice(processes.state, processes.machine, NAMES)
        with connect(choice) as connected:
            machine = connected.host
            assert isinstance(machine, MachineClient)
            for pages in contents:
                machine.create_domain(addresses(pages))
            events = Events()
            operations = Operations(
                connected, settings, lambda *event: on.loop.call_soon_threadsafe(events.tell, *event)
            )
            worker = Worker(operations, lambda failure: None, supervisor)
            methods = Methods(worker, events, connected)
            server = Server(path, "no-such-group", methods.call, events, may_change, UNLIMITED)
            worker.start()
            try:
                with started(on, server):
                    yield Parts(worker, methods, events, machine)
            finally:
                worker.stop()


def _connected(path: Path, timeout_s: float) -> socket.socket:
    """The file is there a moment before somebody listens."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(timeout_s)
        try:
            made.connect(str(path))
        except ConnectionRefusedError:
            made.close()
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
        else:
            return made


class Line:
    """A connection to a status socket that sends what it likes."""

    def __init__(self, path: Path, timeout_s: float = 300.0) -> None:
        self.socket = _connected(path, timeout_s)
        self._lines = self.socket.makefile("rb")

    def send(self, line: bytes) -> None:
        self.socket.sendall(line + b"\n")

    def read(self) -> dict[str, Any] | None:
        """None: the other end has hung up."""
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            return None
        return json.loads(line) if line else None

    def ask(self, method: str, id_: Any = 1, **parameters: Any) -> dict[str, Any]:
        self.send(json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": parameters}).encode())
        answer = self.read()
        assert answer is not None
        return answer

    def close(self) -> None:
        self._lines.close()
        self.socket.close()
