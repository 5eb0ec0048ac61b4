# SPDX-License-Identifier: GPL-2.0-or-later
"""A progress bar on a terminal: the step, how far, how fast, how long still."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from diffengine.images import PAGE_BYTES


class ProgressBar:
    """Shows what an analysis reports (analysis.workers.Progress). Shows nothing where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=0.0, rate="")
        self._expected = 0.0
        self._step_start = time.monotonic()
        self._step_pages = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def expect(self, cost: float) -> None:
        self._expected += cost
        self._bar.update(self._task, total=self._expected)

    def begin(self, step: str) -> None:
        self._step_start = time.monotonic()
        self._step_pages = 0
        self._bar.update(self._task, description=step, rate="")

    def advance(self, pages: int, cost: float) -> None:
        self._step_pages += pages
        seconds = max(time.monotonic() - self._step_start, 1e-3)
        rate = self._step_pages * PAGE_BYTES / seconds / 1e6
        self._bar.update(self._task, advance=cost, rate=f"{rate:,.0f} MB/s")
