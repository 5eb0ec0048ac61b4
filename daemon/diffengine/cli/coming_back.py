# SPDX-License-Identifier: GPL-2.0-or-later
"""How far it is with pages that come back, while a command waits for them: a bar on a terminal, else now and then a
line. On stderr, for the result is on stdout."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from diffengine.errors import DiffengineError
from diffengine.service.client import Client

LOOK_S = 0.25
# Between two lines where there is no terminal.
LINE_S = 5.0
Values = dict[str, Any]


class WaitEndedError(DiffengineError):
    """By Ctrl-C, which ends the command and not what the daemon does."""

    exit_code = 130


def call_and_show(socket: Path, method: str, parameters: Values, as_json: bool) -> Values:
    """The result of a method that brings pages back. Raises DaemonError with what the daemon says."""
    console = Console(stderr=True, highlight=False)
    shown: Bar | Lines = Bar(console) if console.is_terminal and not as_json else Lines(as_json)
    with Client(socket) as asking, Client(socket) as looking, shown:
        asking.begin(method, **parameters)
        try:
            while not asking.answered(LOOK_S):
                if progress := looking.call("status")["coming_back"]:
                    shown.show(progress)
        except KeyboardInterrupt:
            raise WaitEndedError("interrupted; the daemon goes on, see `diffengine status`") from None
        result: Values = asking.end()
    return result


def words(progress: Values) -> str:
    left_s = progress["left_s"]
    text = f"{progress['done']:,} of {progress['pages']:,} pages are back"
    return text if left_s is None else f"{text}, about {duration(left_s)} left"


def duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{round(whole / 60)} min"


class Bar:
    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.fields[doing]}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, doing="")

    def show(self, progress: Values) -> None:
        self._bar.update(
            self._task,
            doing=progress["doing"],
            total=progress["pages"],
            completed=progress["done"],
            description=words(progress),
        )

    def refresh(self) -> None:
        """Draws it now, not when it is time to."""
        self._bar.refresh()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class Lines:
    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._shown_s = float("-inf")

    def show(self, progress: Values) -> None:
        if time.monotonic() - self._shown_s >= LINE_S:
            self._shown_s = time.monotonic()
            text = json.dumps(progress) if self._as_json else f"{progress['doing']}: {words(progress)}"
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
