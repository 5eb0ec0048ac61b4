# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be asked over the status socket. docs/socket.md describes each; the command line has the same names."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from diffengine.errors import DiffengineError, one_line
from diffengine.hypervisor.room import NoRoomError
from diffengine.service.bringing_back import BringingBack
from diffengine.service.configuration import ConfigurationError
from diffengine.service.events import EventKind, Events
from diffengine.service.explain import explain
from diffengine.service.free_requests import HOLD_S, MOST_TIMEOUT_S, TIMEOUT_S, FreeRequest
from diffengine.service.host import Connected
from diffengine.service.operations import Operations, RefusedError, which
from diffengine.service.release import release, take_back
from diffengine.service.rpc import Code, RpcError
from diffengine.service.snapshot import DomainStatus, Snapshot
from diffengine.service.worker import Worker
from diffengine.settings import CheckedTable
from diffengine.settings.checked import MOST_MIB

MIB = 1 << 20
LOOK_S = 0.25
DOMAIN_WANTED = "params domain: must be a domain's number, UUID or name"
Result = TypeVar("Result")
Answer = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """changes: for root alone."""

    answer: Callable[[CheckedTable], Awaitable[Answer]]
    changes: bool


class Methods:
    """Belongs to the control loop; what needs the engine goes through the worker."""

    def __init__(self, worker: Worker, events: Events, connected: Connected) -> None:
        self._worker = worker
        self._events = events
        self._connected = connected
        self._busy = asyncio.Lock()
        self._bringing_back = BringingBack(self._on_engine)
        self.by_name = {
            "status": Method(self._status, changes=False),
            "domains": Method(self._domains, changes=False),
            "domain": Method(self._domain, changes=False),
            "reasons": Method(self._reasons, changes=False),
            "set": Method(self._set, changes=True),
            "pause": Method(self._pause, changes=True),
            "resume": Method(self._resume, changes=True),
            "page-in": Method(self._page_in, changes=True),
            "free": Method(self._free, changes=True),
            "release": Method(self._release, changes=True),
            "drain": Method(self._drain, changes=True),
        }

    async def call(self, name: str, untrusted_parameters: dict[str, Any], may_change: bool) -> Answer:
        """Raises RpcError for whatever went wrong."""
        method = self.by_name.get(name)
        if method is None:
            known = ", ".join([*self.by_name, "events"])
            raise RpcError(Code.UNKNOWN_METHOD, f"{name[:60]!r}: no such method; there are {known}")
        if method.changes and not may_change:
            raise RpcError(Code.NOT_PERMITTED, f"{name}: for root alone; run this as root, or with sudo")
        try:
            return await method.answer(CheckedTable("params", untrusted_parameters, []))
        except ConfigurationError as error:
            raise RpcError(Code.INVALID_PARAMETERS, one_line(str(error))) from error
        except NoRoomError as error:
            numbers = {"pages": error.pages, "free_pages": error.free_pages}
            raise RpcError(Code.REFUSED, one_line(str(error)), data=numbers) from error
        except DiffengineError as error:
            raise RpcError(Code.REFUSED, one_line(str(error))) from error

    # What only reads.

    async def _status(self, parameters: CheckedTable) -> Answer:
        """What is on its way back is told as it is now; the rest is the latest snapshot's."""
        finish(parameters)
        progress = self._bringing_back.progress
        return {**asdict(self._snapshot.status), "coming_back": progress and asdict(progress)}

    async def _domains(self, parameters: CheckedTable) -> Answer:
        finish(parameters)
        return {"domains": [asdict(domain) for domain in self._snapshot.domains]}

    async def _domain(self, parameters: CheckedTable) -> Answer:
        return asdict(self._which(parameters))

    async def _reasons(self, parameters: CheckedTable) -> Answer:
        """Of one domain ranked, with words; without one, of all domains since the engine began."""
        if not parameters.has("domain"):
            finish(parameters)
            return {"reasons": self._snapshot.reasons}
        domain = self._which(parameters)
        found = explain(domain, self._snapshot.status.paused)
        return {"domid": domain.domid, "name": domain.name, "reasons": [asdict(each) for each in found]}

    @property
    def _snapshot(self) -> Snapshot:
        return self._worker.snapshot

    def _which(self, parameters: CheckedTable) -> DomainStatus:
        """The domain that the parameter names, by number, UUID or name."""
        text = domain_parameter(parameters)
        finish(parameters)
        if text is None:
            raise RpcError(Code.INVALID_PARAMETERS, DOMAIN_WANTED)
        return find_domain(self._snapshot.domains, text)

    def _which_or_all(self, parameters: CheckedTable) -> DomainStatus | None:
        if parameters.has("domain"):
            return self._which(parameters)
        finish(parameters)
        return None

    # What changes something.

    async def _on_engine(self, order: Callable[[Operations], Result]) -> Result:
        return await asyncio.wrap_future(self._worker.submit(order))

    async def _set(self, parameters: CheckedTable) -> Answer:
        domain, key = parameters.text("domain"), parameters.text("key")
        if key is None:
            raise RpcError(Code.INVALID_PARAMETERS, "params key: must be the name of a setting")
        value = parameters.values.get("value")
        parameters.flag("value", False)  # known, whatever it is: it is checked as the file is
        parameters.errors.clear()
        finish(parameters)
        if isinstance(value, dict | list) or (isinstance(value, float) and not math.isfinite(value)):
            raise RpcError(Code.INVALID_PARAMETERS, "params value: must be a number, a text, true, false or null")
        await self._on_engine(lambda operations: operations.set(domain, key, value))
        return {"key": key, "value": value}

    async def _pause(self, parameters: CheckedTable) -> Answer:
        return await self._pause_or_resume(parameters, Operations.pause)

    async def _resume(self, parameters: CheckedTable) -> Answer:
        return await self._pause_or_resume(parameters, Operations.resume)

    async def _pause_or_resume(
        self, parameters: CheckedTable, order: Callable[[Operations, int | None], None]
    ) -> Answer:
        domain = self._which_or_all(parameters)
        domid = None if domain is None else domain.domid
        await self._on_engine(lambda operations: order(operations, domid))
        return {"domid": domid}

    async def _page_in(self, parameters: CheckedTable) -> Answer:
        domid = self._which(parameters).domid
        async with self._alone():
            out = await self._on_engine(lambda operations: operations.begin_page_in(domid))
            pages = await self._bringing_back.run("page-in", out)
        return {"domid": domid, "pages": pages}

    async def _drain(self, parameters: CheckedTable) -> Answer:
        """Everything comes back, and the engine is paused."""
        finish(parameters)
        async with self._alone():
            out = await self._on_engine(Operations.begin_drain)
            pages = await self._bringing_back.run("drain", out)
        return {"domains": len(out), "pages": pages}

    async def _release(self, parameters: CheckedTable) -> Answer:
        """The pager lets go of a domain, also of one that is not worked on; undo: it may take it again."""
        undo = parameters.flag("undo", False)
        text = domain_parameter(parameters)
        finish(parameters)
        if text is None:
            raise RpcError(Code.INVALID_PARAMETERS, DOMAIN_WANTED)
        async with self._alone():
            domid = await self._on_engine(lambda operations: operations.find(text))
            pages = 0
            if undo:
                await asyncio.to_thread(take_back, self._connected.state, domid)
                await self._on_engine(Operations.look)
            else:
                pages = await self._let_go(domid)
        kind, done = (EventKind.TAKEN_BACK, "may be paged again") if undo else (EventKind.RELEASED, "is released")
        self._events.tell(kind, f"domain {domid} {done}", domid)
        return {"domid": domid, "pages": pages}

    async def _let_go(self, domid: int) -> int:
        """How many pages came back: by this daemon, which says how far it is; what is left then, by the pager."""
        out = await self._on_engine(lambda operations: operations.begin_release(domid))
        try:
            pages = await self._bringing_back.run("release", out) if out[domid] else 0
            return pages + await asyncio.to_thread(release, self._connected.state, domid)
        finally:
            await self._on_engine(lambda operations: operations.end_release(domid))

    async def _free(self, parameters: CheckedTable) -> Answer:
        """A hint: whatever is free when the time is over is told."""
        mib = parameters.optional_whole("mib", 1, MOST_MIB, " MiB")
        timeout_s = parameters.number("timeout_s", TIMEOUT_S, 0.1, MOST_TIMEOUT_S, " seconds")
        hold_s = parameters.number("hold_s", HOLD_S, 0, MOST_TIMEOUT_S, " seconds")
        domain = domain_parameter(parameters)
        finish(parameters)
        if mib is None:
            raise RpcError(Code.INVALID_PARAMETERS, "params mib: must be how many MiB are wanted")
        async with self._alone():
            return await self._free_now(FreeRequest(mib, timeout_s, domain, hold_s))

    async def free(self, request: FreeRequest) -> Answer:
        """The same, in its turn: for who does not come over the socket."""
        async with self._busy:
            return await self._free_now(request)

    async def _free_now(self, request: FreeRequest) -> Answer:
        wanted, name = request.mib * MIB, request.domain
        domid = None if name is None else await self._on_engine(lambda operations: operations.find(name))
        free, enough = await self._on_engine(lambda operations: operations.take_free(wanted, domid))
        if not enough:
            free, enough = await self._make_free(wanted, domid, request.timeout_s)
        if enough and domid is None:
            await self._on_engine(lambda operations: operations.promise(wanted, request.hold_s))
        return {"mib": request.mib, "free_mib": free // MIB, "enough": enough, "claimed_for": domid if enough else None}

    async def _make_free(self, wanted: int, domid: int | None, timeout_s: float) -> tuple[int, bool]:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        await self._on_engine(lambda operations: operations.begin_freeing(wanted))
        free, enough = 0, False
        try:
            while not enough:
                free, enough = await self._on_engine(lambda operations: operations.take_free(wanted, domid))
                if loop.time() >= end_s:
                    break
                if not enough:
                    await asyncio.sleep(LOOK_S)
        finally:
            text = f"{wanted // MIB:,} MiB were wanted for another domain; {free // MIB:,} MiB are free"
            await self._on_engine(lambda operations: operations.end_freeing(text))
        return free, enough

    def _alone(self) -> "_Alone":
        return _Alone(self._busy)


class _Alone:
    """One long request at a time; the next is refused rather than kept waiting."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        if self._lock.locked():
            raise RefusedError("another free, release, page-in or drain is under way; try again when it is done")
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


def finish(parameters: CheckedTable) -> None:
    """Raises RpcError for parameters that are wrong, or that the method does not have."""
    parameters.finish()
    if parameters.errors:
        raise RpcError(Code.INVALID_PARAMETERS, one_line("; ".join(parameters.errors[:4])))


def domain_parameter(parameters: CheckedTable) -> str | None:
    if isinstance(parameters.values.get("domain"), int):
        return str(parameters.whole("domain", 0, 0, 0x7FEF))
    return parameters.text("domain")


def find_domain(domains: tuple[DomainStatus, ...], text: str) -> DomainStatus:
    """Raises RefusedError if none, or more than one, is meant."""
    domid = which(domains, text)
    return next(domain for domain in domains if domain.domid == domid)
