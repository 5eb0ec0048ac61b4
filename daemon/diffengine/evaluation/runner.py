# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs steps, each in a process of its own: several at a time, or one alone.

A process that dies, or runs out of memory, takes one step with it and no more. What is done already is not done again.
"""

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from diffengine.errors import DiffengineError, one_line
from diffengine.evaluation import checkpoints
from diffengine.evaluation.checkpoints import Checkpoint, Fate
from diffengine.evaluation.experiment import Step, UnavailableError

# numpy's and native threads must not be there when a process forks.
PROCESSES = multiprocessing.get_context("spawn")
PR_SET_PDEATHSIG = 1
# To put away what a step has on disk. A machine that is busy takes its time.
ENDING_S = 60.0


@dataclass(frozen=True)
class Task:
    """A step of an experiment, and where its result goes."""

    experiment: str
    step: Step
    path: Path
    fingerprint: str


@dataclass(frozen=True)
class Progress:
    """done and total: steps. seconds_left: an estimate. task: the one that has just ended, None at the start."""

    done: int
    total: int
    seconds_left: float
    task: Task | None
    checkpoint: Checkpoint | None


def work(task: Task, parent: int) -> None:
    """What a step's process does."""
    _end_with(parent)
    start_s = time.monotonic()
    try:
        result, fate, reason = task.step.run(**task.step.arguments), Fate.DONE, ""
        json.dumps(result, allow_nan=False)  # what is no JSON is a defect of the step
    except UnavailableError as missing:
        result, fate, reason = {}, Fate.SKIPPED, str(missing)
    except DiffengineError as error:
        result, fate, reason = {}, Fate.FAILED, str(error)
    except Exception as defect:
        result, fate, reason = {}, Fate.FAILED, _defect(defect)
    checkpoint = Checkpoint(fate, result, one_line(reason), time.monotonic() - start_s, _cpu_s())
    checkpoints.save(task.path, task.fingerprint, checkpoint)


def _end_with(parent: int) -> None:
    """However the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked to stop, and ends this one
    signal.signal(signal.SIGTERM, _end)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit()


def _end(number: int, _: FrameType | None) -> None:
    """By an exception, so that what is on disk goes, too; a second signal does not disturb that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _cpu_s() -> float:
    """Of this process, and of those that it started and waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _defect(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno}); report this"


def run_tasks(tasks: Sequence[Task], jobs: int, watch: Callable[[Progress], None]) -> dict[Path, Checkpoint]:
    """Every task's checkpoint, by its path. Where there is an old one, steps that were skipped, in part or wholly, and
    those that failed are tried again."""
    found = {task.path: checkpoints.load(task.path, task.fingerprint) for task in tasks}
    ended = {path: each for path, each in found.items() if each and each.whole}
    waiting = [task for task in tasks if task.path not in ended]
    return _Run(waiting, len(tasks), jobs, ended, watch).run()


class _Run:
    def __init__(
        self,
        waiting: list[Task],
        total: int,
        jobs: int,
        ended: dict[Path, Checkpoint],
        watch: Callable[[Progress], None],
    ) -> None:
        self._waiting = waiting
        self._total = total
        self._jobs = jobs
        self._ended = ended
        self._watch = watch
        self._running: dict[BaseProcess, Task] = {}
        self._start_s = time.monotonic()
        self._expected_s = sum(self._cost(task) for task in waiting)
        self._done_s = 0.0

    def _cost(self, task: Task) -> float:
        """Of the whole machine's time."""
        return task.step.seconds if task.step.alone else task.step.seconds / self._jobs

    def run(self) -> dict[Path, Checkpoint]:
        self._tell(None)
        try:
            while self._waiting or self._running:
                while self._may_start():
                    self._start(self._waiting.pop(0))
                self._await_one()
        finally:
            for process in self._running:
                process.terminate()
            for process in self._running:
                process.join(ENDING_S)
                process.kill()
        return self._ended

    def _may_start(self) -> bool:
        if not self._waiting or len(self._running) >= self._jobs:
            return False
        one_alone = self._waiting[0].step.alone or any(task.step.alone for task in self._running.values())
        return not (one_alone and self._running)

    def _start(self, task: Task) -> None:
        task.path.unlink(missing_ok=True)
        process = PROCESSES.Process(target=work, args=(task, os.getpid()), name=task.step.name)
        process.start()
        self._running[process] = task

    def _await_one(self) -> None:
        ready = wait([process.sentinel for process in self._running])
        for process in [each for each in self._running if each.sentinel in ready]:
            process.join()
            task = self._running.pop(process)
            checkpoint = checkpoints.load(task.path, task.fingerprint)
            if checkpoint is None:
                reason = f"its process ended with code {process.exitcode}; there may be too little memory"
                checkpoint = Checkpoint(Fate.FAILED, {}, reason, 0.0, 0.0)
            self._ended[task.path] = checkpoint
            self._done_s += self._cost(task)
            self._tell(task)

    def _tell(self, task: Task | None) -> None:
        elapsed_s = time.monotonic() - self._start_s
        pace = elapsed_s / self._done_s if self._done_s else 1.0
        left_s = max(0.0, self._expected_s - self._done_s) * pace
        checkpoint = self._ended[task.path] if task else None
        self._watch(Progress(len(self._ended), self._total, left_s, task, checkpoint))
