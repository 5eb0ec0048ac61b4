# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon tells of itself, as plain data: taken on the engine's thread, read by anybody. docs/socket.md."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from diffengine.engine.report import TECHNIQUES, DomainReport
from diffengine.hypervisor.protocol import PagerCounters
from diffengine.native import PAGE_BYTES
from diffengine.service.attached import AttachedEngine, DomainTerms, LeftAlone, Standing, shown_group
from diffengine.service.configuration import Identity
from diffengine.service.host import Connected
from diffengine.service.left_alone import LeftAloneReports

PROTOCOL = 1
VERSION = version("diffengine")


@dataclass(frozen=True)
class Memory:
    """Bytes. host, free, used: of the hypervisor's memory for guests. store, tables: of what is kept instead of
    frames. saved: frames that are not needed, less store and tables."""

    host: int
    free: int
    used: int
    store: int
    tables: int
    swap: int
    swap_limit: int
    saved: int


@dataclass(frozen=True)
class DomainStatus:
    """standing: "worked_on", or why not, as a Cause; why: the same for people.

    Of a domain that is not worked on, the rest is what is out of it, and empty or 0 if that is nothing. Bytes by
    technique; pages by place; reasons: pages of the latest complete sweep, None before there was one.
    """

    domid: int
    uuid: str
    name: str
    standing: str
    why: str
    memory_bytes: int
    trust_group: str
    min_resident_bytes: int
    saved_by: dict[str, int]
    pages: dict[str, int]
    refaults: int
    touches: int
    reasons: dict[str, int] | None


@dataclass(frozen=True)
class Status:
    """paused: the whole engine. taken_s: seconds since the daemon began. sweeps, cycles, passes, cpu_s: the engine's.

    evicted_pages: out now; evictions, refaults, touches: counted since the pager began. latencies in microseconds.
    """

    version: str
    protocol: int
    pid: int
    host: str
    paused: bool
    freeing: bool
    taken_s: float
    sweeps: int
    cycles: int
    passes: int
    cpu_s: float
    memory: Memory
    saved_by: dict[str, int]
    pages: dict[str, int]
    domains: int
    domains_worked_on: int
    evicted_pages: int
    evictions: int
    refaults: int
    touches: int
    corrupt: int
    rebuild_us: dict[str, float]
    fault_us: dict[str, float]


@dataclass(frozen=True)
class Snapshot:
    status: Status
    domains: tuple[DomainStatus, ...]
    reasons: dict[str, int]


def take_snapshot(
    connected: Connected,
    attached: AttachedEngine,
    left_alone: LeftAloneReports,
    identities: dict[int, Identity],
    *,
    paused: bool,
    freeing: bool,
    taken_s: float,
) -> Snapshot:
    report, counters = attached.engine.report(), connected.pager.counters()
    worked_on = {each.domid: each for each in attached.engine.domain_reports()}
    left = left_alone.of(info for domid, info in attached.domains.items() if domid not in worked_on)
    reports = {**left, **worked_on}
    domains = tuple(
        _domain(identities.get(domid, Identity(domid)), info.gfns, attached.standings[domid], reports.get(domid))
        for domid, info in sorted(attached.domains.items())
        if domid in attached.standings
    )
    status = Status(
        version=VERSION,
        protocol=PROTOCOL,
        pid=os.getpid(),
        host=connected.kind,
        paused=paused,
        freeing=freeing,
        taken_s=round(taken_s, 3),
        sweeps=report.sweeps,
        cycles=report.cycles,
        passes=report.passes,
        cpu_s=report.cpu_s,
        memory=_memory(connected, counters, report.table_bytes),
        saved_by=_sums([report.saved_by, *(each.saved_by for each in left.values())]),
        pages=report.pages,
        domains=len(domains),
        domains_worked_on=len(worked_on),
        evicted_pages=counters.evicted,
        evictions=counters.evictions,
        refaults=counters.loads,
        touches=counters.touches,
        corrupt=counters.corrupt,
        rebuild_us=counters.rebuild_us,
        fault_us=counters.fault_us,
    )
    return Snapshot(status, domains, report.reasons)


def _sums(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Of counts by technique."""
    return {technique: sum(part[technique] for part in parts) for technique in TECHNIQUES}


def _memory(connected: Connected, counters: PagerCounters, engine_bytes: int) -> Memory:
    memory = connected.host.memory()
    tables = engine_bytes + counters.table_bytes + memory.metadata_bytes
    return Memory(
        host=memory.frames * PAGE_BYTES,
        free=memory.free * PAGE_BYTES,
        used=memory.used * PAGE_BYTES,
        store=counters.store_bytes,
        tables=tables,
        swap=counters.swap_bytes,
        swap_limit=counters.swap_limit_bytes,
        saved=(counters.evicted + memory.sharing_saved) * PAGE_BYTES - counters.store_bytes - tables,
    )


def _domain(identity: Identity, gfns: int, standing: Standing, report: DomainReport | None) -> DomainStatus:
    terms = standing if isinstance(standing, DomainTerms) else None
    left = standing if isinstance(standing, LeftAlone) else None
    return DomainStatus(
        domid=identity.domid,
        uuid=identity.uuid,
        name=identity.name,
        standing=left.cause.value if left else "worked_on",
        why=left.why if left else "",
        memory_bytes=gfns * PAGE_BYTES,
        trust_group=shown_group(terms.trust_group) if terms else "",
        min_resident_bytes=report.min_resident * PAGE_BYTES if report else 0,
        saved_by=report.saved_by if report else {},
        pages=report.pages if report else {},
        refaults=report.refaults if report else 0,
        touches=report.touches if report else 0,
        reasons=report.reasons if report else None,
    )
