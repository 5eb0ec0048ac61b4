# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens, for the log and for whoever follows it over the socket."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

LOG = logging.getLogger("diffengine")
# Who reads slower than things happen misses some, and is told how many.
MOST_WAITING = 256


class EventKind(StrEnum):
    WORKED_ON = "worked_on"
    LEFT_ALONE = "left_alone"
    GONE = "gone"
    PAUSED = "paused"
    RESUMED = "resumed"
    PAGED_IN = "paged_in"
    FREED = "freed"
    RELEASED = "released"
    TAKEN_BACK = "taken_back"
    SETTINGS = "settings"
    SETTINGS_REFUSED = "settings_refused"


@dataclass(frozen=True)
class Event:
    """domid: None if it is of no one domain. uuid: of that domain, "" if the host does not say. reason: a Cause, or "".
    time_s: since 1970."""

    kind: EventKind
    text: str
    domid: int | None
    uuid: str
    reason: str
    time_s: float

    def as_json(self) -> dict[str, Any]:
        return {
            "event": self.kind.value,
            "text": self.text,
            "domid": self.domid,
            "uuid": self.uuid,
            "reason": self.reason,
            "time_s": round(self.time_s, 3),
        }

    def as_fields(self) -> dict[str, str]:
        """For the journal: `journalctl DIFFENGINE_DOMAIN=3`."""
        fields = {
            "DIFFENGINE_EVENT": self.kind.value,
            "DIFFENGINE_DOMAIN": "" if self.domid is None else str(self.domid),
            "DIFFENGINE_UUID": self.uuid,
            "DIFFENGINE_REASON": self.reason,
        }
        return {name: value for name, value in fields.items() if value}


class Follower:
    """Events that wait for one reader, up to MOST_WAITING."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: deque[Event] = deque()
        self._lost = 0

    def tell(self, event: Event) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._lost += 1
        else:
            self._waiting.append(event)
        self._wake()

    def take(self) -> list[dict[str, Any]]:
        """Everything since the last time; at its end, how many were lost, if any were."""
        taken = [event.as_json() for event in self._waiting]
        if self._lost:
            taken.append({"event": "lost", "count": self._lost})
        self._waiting.clear()
        self._lost = 0
        return taken


class Events:
    """Belongs to the thread of the control loop."""

    def __init__(self) -> None:
        self._followers: list[Follower] = []

    def tell(self, kind: EventKind, text: str, domid: int | None = None, uuid: str = "", reason: str = "") -> None:
        event = Event(kind, text, domid, uuid, reason, time.time())
        level = logging.WARNING if kind is EventKind.SETTINGS_REFUSED else logging.INFO
        LOG.log(level, "%s", text, extra=event.as_fields())
        for follower in self._followers:
            follower.tell(event)

    def follow(self, wake: Callable[[], None]) -> Follower:
        follower = Follower(wake)
        self._followers.append(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        self._followers.remove(follower)
