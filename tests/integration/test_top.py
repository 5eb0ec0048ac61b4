# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine top` on a daemon that works, goes and comes back: keys pressed, screens read."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from command import diffengine, output_of, refusal_of
from daemon_host import Loop, daemon_parts, loop
from diffengine.screen.app import Domains, Help, Top, Why
from diffengine.screen.draw import PLAIN, glyphs

# Daemon and screen share this process with each other, and the machine with other tests.
DEADLINE_S = 240.0


@pytest.fixture(scope="module")
def on() -> Iterator[Loop]:
    with loop() as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "status.sock"


def text_of(app: Top) -> str:
    """What stands on the screen that is seen, widget by widget."""
    lines = [str(each.render()) for each in app.screen.query(Static)]
    for table in app.screen.query(DataTable):
        lines.append(" ".join(str(column.label) for column in table.ordered_columns))
        lines += [" ".join(str(cell) for cell in table.get_row_at(row)) for row in range(table.row_count)]
    return "\n".join(lines)


async def until(pilot: Pilot[None], condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await pilot.pause(0.05)
    assert condition(), what


def with_top(
    path: Path, test: Callable[[Top, Pilot[None]], Awaitable[None]], width: int = 80, height: int = 24
) -> None:
    async def run() -> None:
        app = Top(path, 0.3, PLAIN)
        async with app.run_test(size=(width, height)) as pilot:
            await test(app, pilot)

    asyncio.run(run())


def names(app: Top) -> list[str]:
    table = app.screen_stack[0].query_one(Domains)
    return [str(table.get_row_at(row)[1]) for row in range(table.row_count)]


def reasons(app: Top) -> int:
    return app.screen.query_one(DataTable).row_count


def test_the_host_and_its_domains_are_seen_and_sorted(path: Path, on: Loop) -> None:
    async def look(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: names(app) == ["web", "db"], "no domains are shown")
        await until(pilot, lambda: "at work  2 of 2 domains" in text_of(app), "it does not say how it goes")
        saved = {PLAIN.bars[name] for name in ("sharing", "patching", "compression")}
        await until(pilot, lambda: bool(saved & set(text_of(app).splitlines()[1])), "nothing is saved")
        # Figures are taken once a second, or less often.
        await asyncio.wrap_future(parts.worker.submit(lambda operations: operations.refresh()))
        await until(pilot, lambda: "refaults -" not in text_of(app), "no rates")
        assert "DOM▲" in text_of(app)
        await pilot.press("s")
        assert names(app) == ["db", "web"] and "NAME▲" in text_of(app)
        await pilot.press("r")
        assert names(app) == ["web", "db"] and "NAME▼" in text_of(app)
        await pilot.resize_terminal(140, 40)
        await until(pilot, lambda: "WHAT KEEPS MOST PAGES" in text_of(app), "no more is shown where there is more room")
        await pilot.press("h")
        assert isinstance(app.screen, Help) and "Refaults" in text_of(app)
        await pilot.press("escape")
        assert not isinstance(app.screen, Help)

    with daemon_parts(path, on) as parts:
        with_top(path, look)


def test_a_domain_is_paused_and_looked_into(path: Path, on: Loop) -> None:
    async def use(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: names(app) == ["web", "db"], "no domains are shown")
        await pilot.press("down", "p")
        await until(pilot, lambda: "paused" in text_of(app), "it is not paused")
        assert app.chosen == 2
        await pilot.press("enter")
        assert isinstance(app.screen, Why)
        await until(pilot, lambda: "left alone: paused" in text_of(app), "it does not say why")
        await pilot.press("p")
        await until(
            pilot, lambda: "left alone" not in text_of(app) and reasons(app) > 0, "it does not say why any more"
        )
        assert "Domain 2 db" in text_of(app)
        await pilot.press("escape", "P")
        await until(pilot, lambda: "paused  2 of 2 domains" in text_of(app), "the engine is not paused")
        await pilot.press("P")
        await until(pilot, lambda: "at work  2 of 2 domains" in text_of(app), "the engine does not go on")

    with daemon_parts(path, on):
        with_top(path, use)


def test_who_may_only_look_is_told_so(path: Path, on: Loop) -> None:
    async def use(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: names(app) == ["web", "db"], "no domains are shown")
        await pilot.press("p")
        await until(
            pilot, lambda: any("for root alone" in each.message for each in app._notifications), "it says nothing"
        )
        assert "paused" not in text_of(app)

    with daemon_parts(path, on, may_change=frozenset()):
        with_top(path, use)


def test_it_outlives_the_daemon_and_finds_the_next_one(path: Path, on: Loop) -> None:
    async def use(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "no daemon answers there" in text_of(app), "it does not say what is wrong")
        with ExitStack() as stack:
            # They run on a loop of their own, which must not wait for this one.
            parts = await asyncio.to_thread(stack.enter_context, daemon_parts(path, on))
            await until(pilot, lambda: names(app) == ["web", "db"], "it does not find the daemon")
            assert parts.worker.snapshot.status.domains == 2
            await pilot.press("down", "enter")
            await asyncio.to_thread(stack.close)
        await until(pilot, lambda: "this is what it said last" in text_of(app), "it does not say that it has gone")
        await pilot.press("escape")
        assert names(app) == ["web", "db"]
        with ExitStack() as stack:
            await asyncio.to_thread(stack.enter_context, daemon_parts(path, on))
            await until(pilot, lambda: "said last" not in text_of(app), "it does not find the next one")
            await asyncio.to_thread(stack.close)

    with_top(path, use)


def test_scripts_have_it_once_or_as_json(path: Path, on: Loop) -> None:
    with daemon_parts(path, on):
        there = ("--socket", path)
        once = output_of("top", "--once", "--sort", "name", *there)
        lines = once.splitlines()
        assert "2 of 2 domains" in lines[0]
        assert [line.split()[1] for line in lines[-2:]] == ["db", "web"]
        assert max(map(len, lines)) <= 120
        # No terminal: the same.
        assert "2 of 2 domains" in output_of("top", *there)
        said = json.loads(output_of("top", "--once", "--json", *there))
        assert {domain["name"] for domain in said["domains"]} == {"web", "db"}
        # Below nothing while costs are more than what is saved yet.
        assert -1 < said["status"]["saved_share"] < 1
        assert set(said["status"]["per_s"]) <= {"refaults", "touches", "evictions"}
    assert "no daemon answers there" in refusal_of("top", "--once", *there, code=1)
    assert diffengine("top", "--interval-s", "0").returncode == 2
    assert glyphs("utf-8", False) is PLAIN
