# SPDX-License-Identifier: GPL-2.0-or-later
"""Clock without hardware bits: M from digests, R from watching. Pure functions on arrays, one element a page.

quiet: visits in a row that found the digest unchanged. idle: visits in a row that found the page watched and
untouched. backoff: how often it was touched while watched, or came back: the longer it must be quiet before it is
watched again.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffengine.engine.policy import State

Counts = NDArray[np.uint8]
MOST_VISITS = np.uint8(255)
# 2 quiet visits << 6 = 128 visits: at 4 s each some 9 minutes.
MOST_BACKOFF = 6
QUIET_VISITS = 2
# To look whether a shared page is cold takes a frame and a fault, so it must have been quiet for longer, and only one
# group of sharers in so many has its turn in a sweep.
SHARED_QUIET_VISITS = 4
TRIAL_TURNS = 32
# The frame is taken for as long as the page is watched. While this part of a domain is, because it was not watched for
# long or because evictions are held up, trials would take more than they give.
MOST_WAITING = 1 / 10
# Twice as long would find a page that is in use too often: each time costs the guest a fault.
TOUCH_BACKOFF = 2
REFAULT_BACKOFF = 2


def classify(quiet: Counts, idle: Counts, c4_visits: int) -> NDArray[np.uint8]:
    """State of each page."""
    states = np.full(len(quiet), State.C1, dtype=np.uint8)
    states[quiet > 0] = State.C2
    states[idle > 0] = State.C3
    states[idle >= c4_visits] = State.C4
    return states


def count_visit(visits: Counts, chosen: NDArray[Any], weight: int = 1) -> None:
    """One more visit for the chosen pages, up to MOST_VISITS. weight: as how many it counts."""
    visits[chosen] += np.minimum(np.uint8(weight), MOST_VISITS - visits[chosen])


def count_visit_of_all(visits: Counts, chosen: NDArray[np.bool_], weight: int = 1) -> None:
    """The same with a flag for each element: many times as fast where most are chosen."""
    more = MOST_VISITS - visits
    np.minimum(more, np.uint8(weight), out=more)
    more *= chosen.view(np.uint8)
    visits += more


def back_off(backoff: Counts, chosen: NDArray[Any], by: int) -> None:
    backoff[chosen] = np.minimum(backoff[chosen] + by, MOST_BACKOFF)


def on_trial(sources: NDArray[np.uint32], turn: int) -> NDArray[np.bool_]:
    """Whether the sharers' group with this number has its turn: all of its pages in the same sweep."""
    # Neighbouring numbers belong to different turns, or one would try all of one domain's pages.
    result: NDArray[np.bool_] = sources % TRIAL_TURNS == turn % TRIAL_TURNS
    return result


def has_room_for_trials(waiting: int, gfns: int) -> bool:
    """May shared pages of a domain be tried, so many of whose pages are watched already."""
    return waiting < gfns * MOST_WAITING


def unshareable(quiet: Counts, backoff: Counts) -> NDArray[np.bool_]:
    """Shared pages that were quiet for long enough to be tried."""
    needed = np.minimum(SHARED_QUIET_VISITS << backoff.astype(np.uint32), MOST_VISITS)
    result: NDArray[np.bool_] = quiet >= needed
    return result


def watchable(quiet: Counts, backoff: Counts, passes: int) -> NDArray[np.bool_]:
    """Quiet for long enough: at least two visits and a sharing cycle, doubled each time it was touched too soon."""
    needed = np.minimum(max(QUIET_VISITS, passes) << backoff.astype(np.uint32), MOST_VISITS)
    result: NDArray[np.bool_] = quiet >= needed
    return result
