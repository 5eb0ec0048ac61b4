# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests for memory as one line of text, and what became of them."""

from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from diffengine.errors import DiffengineError
from diffengine.settings.checked import MOST_MIB

TIMEOUT_S = 30.0
MOST_TIMEOUT_S = 600.0
HOLD_S = 60.0


class FreeRequestError(DiffengineError):
    """No such request: what is allowed."""


@dataclass(frozen=True)
class FreeRequest:
    """So many MiB are to be free for a domain that is about to start, in so many seconds if possible.

    domain: one that is there already, without its memory, and is to have the frames claimed for it. hold_s: without
    one, so long, or until a domain comes, the memory is freed anew if others take of it.
    """

    mib: int
    timeout_s: float = TIMEOUT_S
    domain: str | None = None
    hold_s: float = HOLD_S


def parse_free_request(untrusted_text: str) -> FreeRequest:
    """MIB, or MIB SECONDS. Raises FreeRequestError."""
    words = untrusted_text.split()
    digits = all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words)
    if digits and len(words) in (1, 2):
        mib, timeout_s = int(words[0]), float(words[1]) if len(words) == 2 else TIMEOUT_S
        if 1 <= mib <= MOST_MIB and 1 <= timeout_s <= MOST_TIMEOUT_S:
            return FreeRequest(mib, timeout_s)
    raise FreeRequestError(
        f"must be MIB, or MIB SECONDS: whole numbers from 1 to {MOST_MIB}, and to {MOST_TIMEOUT_S:.0f}"
    )


def outcome_of(future: "Future[dict[str, Any]]") -> str:
    """enough MIB, short MIB (so much is free), or refused WHY."""
    try:
        answer = future.result()
    except (DiffengineError, CancelledError) as error:
        return f"refused {str(error) or 'the daemon is ending'}"
    except Exception as error:
        return f"refused a defect of the daemon's: {error}"
    return f"{'enough' if answer['enough'] else 'short'} {answer['free_mib']}"
