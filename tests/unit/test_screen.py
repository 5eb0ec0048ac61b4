# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of `diffengine top`, and how they are drawn."""

from dataclasses import replace
from typing import Any

import pytest

from diffengine.screen.draw import (
    ASCII,
    COLOUR,
    PLAIN,
    bar,
    cells,
    columns,
    domain_cells,
    duration,
    frame,
    glyphs,
    header,
    rate,
    size,
    spark,
)
from diffengine.screen.figures import Past, Reading, SortKey, ordered

MIB = 1 << 20


def reading(taken_s: float, pid: int = 1, **counts: int) -> Reading:
    counted = {"refaults": 0, "touches": 0, "evictions": 0, **counts}
    memory = {"host": 400, "free": 100, "used": 300, "store": 10, "tables": 5, "swap": 0, "swap_limit": 0, "saved": 185}
    status: dict[str, Any] = {
        **counted,
        **{
            "version": "1",
            "host": "xen",
            "paused": False,
            "freeing": False,
            "coming_back": None,
            "corrupt": 0,
            "domains": 2,
        },
        **{"pid": pid, "taken_s": taken_s, "evicted_pages": 7, "domains_worked_on": 1},
        "memory": {name: count * MIB for name, count in memory.items()},
        "saved_by": {"sharing": 100 * MIB, "patching": 40 * MIB, "compression": 60 * MIB, "swapping": 0},
        "fault_us": {"p50": 12.0, "p99": 12_345.0},
    }
    web = {
        **{"domid": 3, "uuid": "", "name": "web\n\x1b[2Jx", "standing": "worked_on", "why": "", "trust_group": "all"},
        **{"memory_bytes": 400 * MIB, "refaults": counted["refaults"], "touches": 0},
        "saved_by": status["saved_by"],
        "reasons": {"modified": 5, "incompressible": 9, "referenced": 0},
    }
    db = {
        **web,
        "domid": 1,
        "name": "db",
        "standing": "paused",
        "why": "paused; go on",
        "saved_by": {},
        "reasons": None,
    }
    return Reading(status, (db, web))


def test_what_is_on_its_way_back_is_told_in_the_title() -> None:
    now = reading(1.0)
    back = {"doing": "drain", "pages": 200, "done": 50, "left_s": 3.0}
    status = {**now.status, "paused": True, "coming_back": back}
    figures = Past().add(Reading(status, now.domains))
    assert "drain 25 %" in header(figures, 80, PLAIN)[0].plain


def test_rates_come_from_two_different_readings_of_one_daemon() -> None:
    past = Past()
    first = past.add(reading(1.0, refaults=10))
    assert first.per_s == {}
    assert first.saved_share == pytest.approx(185 / 800)
    assert past.add(reading(1.0, refaults=10)) is first
    second = past.add(reading(3.0, refaults=30, evictions=4))
    assert second.per_s == {"refaults": 10.0, "touches": 0.0, "evictions": 2.0}
    assert second.domains[1].per_s["refaults"] == 10.0
    # What counts anew, and another daemon, say nothing of how it goes.
    assert "refaults" not in past.add(reading(4.0, refaults=1)).per_s
    assert past.add(reading(5.0, pid=2, refaults=100)).per_s == {}
    assert len(second.saved_history) == 2 and len(second.refault_history) == 1
    said = second.as_json()
    assert said["status"]["per_s"] == second.per_s and said["domains"][1]["per_s"]["refaults"] == 10.0


def test_domains_go_by_any_column_in_both_directions() -> None:
    past = Past()
    past.add(reading(1.0))
    domains = past.add(reading(2.0, refaults=9)).domains
    db, web = domains
    assert (web.top_reason, db.top_reason) == (("incompressible", 9), None)
    small = replace(db, memory_bytes=1)
    for key, first in ((SortKey.DOMAIN, 1), (SortKey.NAME, 1), (SortKey.MEMORY, 3), (SortKey.SAVED, 3)):
        assert ordered((small, web), key, False)[0].domid == first, key
        assert ordered((small, web), key, True)[-1].domid == first, key
    key = SortKey.DOMAIN
    for _ in SortKey:
        key = key.next
    assert key is SortKey.DOMAIN


def test_a_bar_has_all_its_cells_and_each_its_share() -> None:
    assert cells([1, 1, 1], 10) == [4, 3, 3]
    assert cells([0, 0], 10) == [0, 0]
    assert cells([5, 0, 0.1], 8) == [8, 0, 0]
    for width in range(0, 50):
        assert sum(cells([3, 0, 11, 7.5], width)) == width
    assert bar({"used": 1, "sharing": 2, "free": 1}, 8, ASCII).plain == "##ssss.."
    assert bar({"used": -1, "sharing": 2}, 2, ASCII).plain == "ss"
    assert len(set(PLAIN.bars.values())) == len(PLAIN.bars)
    assert len(set(ASCII.bars.values())) == len(ASCII.bars)


def test_numbers_are_short() -> None:
    assert [size(count) for count in (0, 5 * MIB, 512 * MIB, 3 << 30, 5 << 40)] == [
        "0.0M",
        "5.0M",
        "512M",
        "3.0G",
        "5.00T",
    ]
    assert [rate(each) for each in (None, 0.0, 0.25, 9.96, 12345.6)] == ["-", "0", "0.2", "10.0", "12,346"]
    assert [duration(each) for each in (0.4, 999, 12_345)] == ["0us", "999us", "12ms"]
    assert spark([0, 1, 2], 2, ASCII) == "+@"
    assert spark([0.0, 0.0], 5, ASCII) == "__"


@pytest.mark.parametrize("width", [20, 60, 80, 100, 110, 130, 200])
@pytest.mark.parametrize("drawn", [COLOUR, PLAIN, ASCII])
def test_no_line_is_wider_than_the_terminal_nor_more_than_a_line(width: int, drawn: Any) -> None:
    past = Past()
    past.add(reading(1.0))
    figures = past.add(reading(2.0, refaults=5))
    lines = header(figures, width, drawn, "what is wrong\nis this")
    assert len(lines) == 6
    assert all(line.cell_len <= width and "\n" not in line.plain for line in lines)
    for domain in figures.domains:
        row = domain_cells(domain, columns(width), drawn)
        for text, column in zip(row, columns(width), strict=True):
            assert text.cell_len <= column.width
            assert text.plain.isprintable(), "a guest's name moves the cursor"
    if width >= 80:
        assert sum(column.width + 1 for column in columns(width)) <= width
        assert all(line.cell_len <= width for line in frame(figures, width, drawn))


def test_a_narrow_terminal_shows_all_that_is_not_nothing() -> None:
    legend = header(Past().add(reading(1.0)), 80, PLAIN)[2].plain
    for word in ("used 300M", "shared 100M", "patched 40.0M", "compressed 60.0M", "free 100M"):
        assert word in legend
    assert "swapped" in header(Past().add(reading(1.0)), 140, PLAIN)[2].plain


def test_every_terminal_can_show_it() -> None:
    assert glyphs("utf-8", True) is COLOUR
    assert glyphs("UTF8", False) is PLAIN
    for encoding in ("ascii", "iso-8859-1", None):
        assert glyphs(encoding, True) is ASCII
    text = "".join(line.plain for line in frame(Past().add(reading(1.0)), 130, ASCII))
    assert text.isascii()
