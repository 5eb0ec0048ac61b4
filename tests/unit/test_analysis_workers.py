# SPDX-License-Identifier: GPL-2.0-or-later
"""Batches on threads: order, errors, how much is under way, CPU time, what a progress display hears."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffengine.analysis import AnalysisOptions, analyze
from diffengine.analysis.workers import Pool, Stage, Workers
from diffengine.images import open_images
from page_fixtures import random_page, text_page, write_image


def test_results_come_in_order_and_from_several_threads() -> None:
    threads = set()

    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        threads.add(threading.current_thread().name)
        return number * number

    with Workers(3) as workers:
        assert list(workers.map(Stage.ENCODE, work, range(50))) == [n * n for n in range(50)]
    assert len(threads) == 3


def test_no_more_is_under_way_than_the_threads_need() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with Workers(2) as workers:
        for done, _ in enumerate(workers.map(Stage.ENCODE, lambda item: item, items())):
            assert len(taken) <= done + 4


def test_an_error_in_a_batch_reaches_the_caller() -> None:
    def work(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    with Workers(2) as workers, pytest.raises(ValueError, match="five"):
        list(workers.map(Stage.VERIFY, work, range(10)))


def test_cpu_time_is_counted_by_stage_and_sleep_is_not() -> None:
    def work(_: int) -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    with Workers(2) as workers:
        list(workers.map(Stage.SIMILARITY, work, range(4)))
        list(workers.map(Stage.DIGEST, lambda _: time.sleep(0.1), range(2)))
    assert 0.2 <= workers.cpu_seconds[Stage.SIMILARITY] < 0.4
    assert workers.cpu_seconds[Stage.DIGEST] < 0.1
    assert workers.cpu_seconds[Stage.ENCODE] == 0


def test_a_context_is_lent_to_one_thread_at_a_time() -> None:
    pool, lent = Pool(["a", "b"]), []

    def work(_: int) -> None:
        with pool.borrow() as context:
            assert context not in lent
            lent.append(context)
            time.sleep(0.001)
            lent.remove(context)

    with Workers(4) as workers:
        list(workers.map(Stage.ENCODE, work, range(40)))


class Recorder:
    """A progress display that remembers."""

    def __init__(self) -> None:
        self.expected = self.done = 0.0
        self.steps: list[str] = []

    def expect(self, cost: float) -> None:
        self.expected += cost

    def begin(self, step: str) -> None:
        self.steps.append(step)

    def advance(self, pages: int, cost: float) -> None:
        assert pages >= 0 and cost >= 0
        self.done += cost
        assert self.done <= self.expected * 1.0001


def test_progress_ends_where_it_was_expected_to(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{n}.raw", [text_page(n), random_page(n), text_page(0)] * 20) for n in range(2)]
    progress = Recorder()
    with open_images(paths) as images:
        analyze(images, AnalysisOptions(), progress)
    assert progress.done == pytest.approx(progress.expected)
    assert len(progress.steps) == len(set(progress.steps)) == 11  # the census, and five pipelines twice
