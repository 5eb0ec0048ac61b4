# SPDX-License-Identifier: GPL-2.0-or-later
"""The Clock's hand: one sweep visits every domain's memory once, portion by portion, each domain in turn.

A portion is the same fraction of each domain, so that all of them are through at the same time, however different
their sizes: nobody's pages are looked at more often than anybody else's.
"""

# A portion of the largest domain: long enough for native calls to pay, short enough not to hold anything up.
PORTION_PAGES = 1024
FEWEST_PORTIONS = 16


def portions_of_sweep(largest: int) -> int:
    """How many portions a sweep has; largest: gfns of the largest domain."""
    return max(FEWEST_PORTIONS, -(-largest // PORTION_PAGES))


def portion(gfns: int, number: int, portions: int) -> range:
    """The gfns of portion `number` of a domain. All portions together are all gfns, each once."""
    return range(gfns * number // portions, gfns * (number + 1) // portions)
