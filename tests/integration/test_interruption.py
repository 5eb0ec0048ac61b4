# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C at any moment: gone at once, exit code 130, one line, no traceback, nothing left behind."""

import os
import pty
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from command import COMMAND

# Of CPU, its processes' too: how long that takes is up to the others who share the cores.
LIMIT_SECONDS = 1.0
PATIENCE_SECONDS = 60
Started = "subprocess.Popen[str]"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 MiB, no two pages alike, all of them compressible: many seconds of work."""
    path = tmp_path_factory.mktemp("large") / "large.raw"
    rng = np.random.default_rng(1)
    rng.choice(np.frombuffer(b"etaoinshrdlu \n\0\0", np.uint8), 64 << 20).tofile(path)
    return path


def start(*arguments: str | Path) -> Started:
    # In a session of its own, as a shell starts its jobs: the signal goes to the command alone.
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(happened: Callable[[], bool], process: Started) -> None:
    while not happened():
        assert process.poll() is None, "it ended before it was interrupted"
        time.sleep(0.005)


def interrupt(process: Started) -> None:
    """Interrupts it and holds it to what Ctrl-C must do."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent_seconds = cpu_seconds(process)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took_seconds = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime - spent_seconds
    assert (stdout, stderr) == ("", "diffengine: interrupted; nothing was changed\n")
    # Where an import was just compiling code, Python ends itself by the signal; shells show 130 for both.
    assert process.returncode in (130, -signal.SIGINT)
    assert took_seconds < LIMIT_SECONDS


def cpu_seconds(process: Started) -> float:
    return _cpu_ticks(process.pid) / os.sysconf("SC_CLK_TCK")


def _cpu_ticks(pid: int) -> int:
    """Of a process and all that it started, those that have ended and those that have not."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return sum(map(int, fields[11:15])) + sum(map(_cpu_ticks, map(int, children)))


def maps(process: Started, name: str) -> bool:
    return name in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.parametrize("module", ["_multiarray_umath", "_native"])
def test_while_importing(large: Path, module: str) -> None:
    process = start("analyze", large)
    wait_until(lambda: maps(process, module), process)
    interrupt(process)


@pytest.mark.parametrize("more_cpu_seconds", [0.0, 0.1, 0.5, 1.2, 2.5, 4.0])
def test_while_analysing(large: Path, more_cpu_seconds: float) -> None:
    process = start("analyze", large, large, "--jobs", "2")
    wait_until(lambda: maps(process, str(large)), process)
    begun = cpu_seconds(process)
    wait_until(lambda: cpu_seconds(process) >= begun + more_cpu_seconds, process)
    interrupt(process)


def test_a_store_file_does_not_stay(large: Path, tmp_path: Path) -> None:
    process = start("analyze", large, "--store-file", tmp_path / "store")
    wait_until(lambda: maps(process, str(tmp_path / "store")), process)
    interrupt(process)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [[], ["--processes"], ["--virtual"]])
def test_while_guests_run(samples: dict[str, Path], tmp_path: Path, where: list[str]) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(f'duration_s = 100000\n[[domain]]\nimage = "{samples["d12a-work"]}"\nprogram = "working-set"\n')
    process = start("simulate", scenario, "--json", *where)
    begun = cpu_seconds(process)
    wait_until(lambda: cpu_seconds(process) >= begun + 2, process)
    interrupt(process)


def test_on_a_terminal_progress_is_shown_and_the_cursor_comes_back(large: Path) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "analyze", str(large)],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(terminal)
    shown = b""
    while b"MB/s" not in shown:
        shown += os.read(controller, 4096)
    assert b"\x1b[?25l" in shown
    os.killpg(process.pid, signal.SIGINT)
    try:
        while chunk := os.read(controller, 4096):
            shown += chunk
    except OSError:  # the terminal's last user has left
        pass
    assert process.wait(timeout=60) == 130
    os.close(controller)
    assert b"%" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert b"interrupted" in shown and b"Traceback" not in shown
