# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests in dom0 share."""

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from guests import Guest, two_guests
from scale import SMALLER
from stack import PagerProcess, pager_process

from diffengine.hypervisor.xen import XenHost

# What hangs fails, and what comes behind it still runs. No measure: nothing takes a tenth of it on an idle machine.
PART_S = 1500


@contextmanager
def _limited() -> Iterator[None]:
    """Of one test its set-up, itself, or what ends it."""

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {PART_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PART_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    with _limited():
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    with _limited():
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    with _limited():
        yield


@pytest.fixture(scope="module")
def guests() -> Iterator[tuple[Guest, Guest]]:
    with two_guests() as both:
        yield both


@pytest.fixture(scope="module")
def host() -> Iterator[XenHost]:
    with XenHost() as opened:
        yield opened


@pytest.fixture(scope="module")
def pager(guests: tuple[Guest, Guest]) -> Iterator[PagerProcess]:
    """Ends before the guests do; a guest that still has pages out is destroyed, not resumed."""
    with pager_process() as process:
        yield process


@pytest.fixture(scope="session")
def wanted() -> dict[str, int]:
    """What guests must have read back right in a whole run, after eviction, by how it was kept; and copies on write."""
    forms = dict.fromkeys(("patched", "lz4", "zstd", "dense", "swapped", "shared object"), 5000 // SMALLER)
    return {"out": 50_000 // SMALLER, **forms, "cow breaks": 1000 if SMALLER > 1 else 5000}
