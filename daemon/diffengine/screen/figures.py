# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of a screen, from what the status socket said now and before. Pure: no socket, no terminal."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from diffengine.engine.report import TECHNIQUES

COUNTED = ("refaults", "touches", "evictions")
HISTORY = 120
Values = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """The results of `status` and `domains` (docs/socket.md)."""

    status: Values
    domains: tuple[Values, ...]

    @property
    def taken(self) -> tuple[int, float]:
        """Two readings with the same are the same, as the daemon takes one per second, or fewer."""
        return self.status["pid"], self.status["taken_s"]


@dataclass(frozen=True)
class DomainFigures:
    """per_s: counted events per second, empty until there are two readings. top_reason: what keeps most pages, and
    how many; None: not known, or nothing does."""

    domid: int
    name: str
    standing: str
    why: str
    trust_group: str
    memory_bytes: int
    saved_by: Mapping[str, int]
    per_s: Mapping[str, float]
    top_reason: tuple[str, int] | None

    @property
    def saved_bytes(self) -> int:
        return sum(self.saved_by.values())

    @property
    def saved_share(self) -> float:
        return self.saved_bytes / self.memory_bytes if self.memory_bytes else 0.0


@dataclass(frozen=True)
class Figures:
    """saved_share: of what the domains have, after costs. saved_history, refault_history: oldest first."""

    reading: Reading
    domains: tuple[DomainFigures, ...]
    per_s: Mapping[str, float]
    saved_share: float
    saved_history: tuple[float, ...]
    refault_history: tuple[float, ...]

    def as_json(self) -> Values:
        """What the socket says, with rates."""
        per_s = {domain.domid: domain.per_s for domain in self.domains}
        domains = [{**domain, "per_s": per_s[domain["domid"]]} for domain in self.reading.domains]
        return {
            "status": {**self.reading.status, "per_s": self.per_s, "saved_share": round(self.saved_share, 6)},
            "domains": domains,
        }


@dataclass
class Past:
    """What was read before."""

    _latest: Reading | None = None
    _figures: Figures | None = None
    _saved: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    _refaults: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def add(self, now: Reading) -> Figures:
        if self._figures and self._latest and self._latest.taken == now.taken:
            return self._figures
        before = self._latest if self._latest and self._latest.taken[0] == now.taken[0] else None
        seconds = now.taken[1] - before.taken[1] if before else 0.0
        per_s = rates(now.status, before.status if before else None, seconds)
        earlier = {domain["domid"]: domain for domain in before.domains} if before else {}
        domains = tuple(_domain(each, earlier.get(each["domid"]), seconds) for each in now.domains)
        memory = sum(domain.memory_bytes for domain in domains)
        share = now.status["memory"]["saved"] / memory if memory else 0.0
        self._saved.append(share)
        if "refaults" in per_s:
            self._refaults.append(per_s["refaults"])
        self._latest = now
        self._figures = Figures(now, domains, per_s, share, tuple(self._saved), tuple(self._refaults))
        return self._figures


def rates(now: Values, before: Values | None, seconds: float) -> dict[str, float]:
    """Per second, of whatever both count. A count that went back began anew: nothing is said of it."""
    if before is None or seconds <= 0:
        return {}
    counted = [name for name in COUNTED if name in now and name in before and now[name] >= before[name]]
    return {name: round((now[name] - before[name]) / seconds, 3) for name in counted}


def _domain(now: Values, before: Values | None, seconds: float) -> DomainFigures:
    reasons = {name: pages for name, pages in (now["reasons"] or {}).items() if pages > 0}
    most = max(reasons, key=lambda name: (reasons[name], name)) if reasons else None
    return DomainFigures(
        domid=now["domid"],
        name=now["name"],
        standing=now["standing"],
        why=now["why"],
        trust_group=now["trust_group"],
        memory_bytes=now["memory_bytes"],
        saved_by={name: now["saved_by"].get(name, 0) for name in TECHNIQUES},
        per_s=rates(now, before, seconds),
        top_reason=(most, reasons[most]) if most else None,
    )


class SortKey(StrEnum):
    """What a list of domains goes by. Numbers: largest first; others: smallest."""

    DOMAIN = "domain"
    NAME = "name"
    MEMORY = "memory"
    SAVED = "saved"
    REFAULTS = "refaults/s"

    @property
    def next(self) -> "SortKey":
        keys = list(SortKey)
        return keys[(keys.index(self) + 1) % len(keys)]

    @property
    def largest_first(self) -> bool:
        return self not in (SortKey.DOMAIN, SortKey.NAME)


def ordered(domains: tuple[DomainFigures, ...], key: SortKey, reverse: bool) -> list[DomainFigures]:
    """Domains that are equal by the key go by number."""
    by = {
        SortKey.DOMAIN: lambda domain: domain.domid,
        SortKey.NAME: lambda domain: domain.name,
        SortKey.MEMORY: lambda domain: domain.memory_bytes,
        SortKey.SAVED: lambda domain: domain.saved_bytes,
        SortKey.REFAULTS: lambda domain: domain.per_s.get("refaults", 0.0),
    }[key]
    return sorted(sorted(domains, key=lambda domain: domain.domid), key=by, reverse=key.largest_first != reverse)
