# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job, once from start to end: guests on the embedded machine, their memory saved and given back.

Share what is identical, evict the rest as patches and compressed pages, then let the guests read and write it all, and
check every byte. What is freed is what the kernel says, not what we say.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffengine.analysis.census import Census, Identical, find_identical, take_census
from diffengine.analysis.pipelines import Codec, Detector, Filled, Pipeline, PipelineRun, Plan, Scope, most_store_bytes
from diffengine.analysis.workers import Silent, Workers
from diffengine.errors import DiffengineError
from diffengine.hypervisor.embedded import Machine, Pager, PagerStatistics
from diffengine.hypervisor.programs import Guest, GuestResult
from diffengine.hypervisor.protocol import Outcome
from diffengine.images import ImageSet
from diffengine.native import NONE, Digester, PageKind, PageNumbers, Store

# Xen's list of sharers is under one lock: no frame serves more gfns (hypervisor.h).
MOST_SHARERS = 256
BEST = Pipeline("best", share=True, codec=Codec.DENSE, detector=Detector.SHIFT)
# Spare frames for copies on write while guests run with everything shared.
SPARE_SHARE = 1 / 8


@dataclass(frozen=True)
class Memory:
    """Bytes at one moment. rss: the shared memory of this process, by the kernel's own count; the machine's frames and
    the store are all of it."""

    frames: int
    store: int
    rss: int


@dataclass(frozen=True)
class Step:
    """One technique's turn: how many pages it took, how many it could not, and the memory afterwards."""

    name: str
    pages: int
    refused: dict[str, int]
    memory: Memory


@dataclass(frozen=True)
class DemoResult:
    start: Memory
    steps: tuple[Step, ...]
    guests: tuple[GuestResult, ...]
    pager: PagerStatistics
    end: Memory

    @property
    def wrong_bytes(self) -> int:
        return sum(guest.wrong_bytes for guest in self.guests)

    @property
    def fault_us(self) -> NDArray[np.float64]:
        return np.concatenate([guest.fault_ns for guest in self.guests]) / 1e3


class Demo:
    """One run: `steps` frees memory and yields after each technique, then `run_guests`, then `result`."""

    def __init__(self, images: ImageSet, machine: Machine, store: Store, pager: Pager) -> None:
        self._images = images
        self._machine = machine
        self._store = store
        self._pager = pager
        pages = np.arange(images.pages, dtype=np.uint32)
        self._content = images.addresses(pages)
        self._domids = np.zeros(images.pages, dtype=np.uint16)
        self._gfns = np.zeros(images.pages, dtype=np.uint32)
        for image in images.images:
            part = slice(image.first_page, image.first_page + image.pages)
            self._domids[part] = machine.create_domain(self._content[part])
            self._gfns[part] = pages[: image.pages]
            pager.add_domain(int(self._domids[image.first_page]), image.pages)
        self.start = self.memory()

    def memory(self) -> Memory:
        return Memory(
            frames=self._machine.resident_bytes(),
            store=self._store.statistics().populated_bytes,
            rss=resident_bytes(),
        )

    def save(self, workers: Workers) -> Iterator[Step]:
        """Shares, patches, compresses; a step after each."""
        seed = secrets.randbits(64)
        census = take_census(self._images, Digester(seed, 2, 1), workers, Silent())
        groups = [[range(image.first_page, image.first_page + image.pages) for image in self._images.images]]
        identical = find_identical(self._images, census, groups, None, workers)
        sources, clients = sharing_pairs(census, identical)
        results = self._pager.share(
            self._domids[sources], self._gfns[sources], self._domids[clients], self._gfns[clients]
        )
        yield self._step("share identical pages", results)

        run = PipelineRun(BEST, Scope("demo", groups, identical), self._images, census, seed, workers, 2, Silent())
        plan = run.plan(self._store, groups[0])
        unshared = pages_alone(self._images.pages, sources, clients)
        same_filled = np.flatnonzero(unshared & (census.kinds == PageKind.SAME_FILLED)).astype(np.uint32)
        alone = unshared[plan.pages]
        similar = with_references(plan, (plan.references != NONE) & alone)
        no_more = np.empty(0, dtype=np.uint32)
        for name, chosen, more in (
            ("patch similar pages", similar, no_more),
            ("compress the others", alone & ~similar, same_filled),
        ):
            run.put(self._store, plan, chosen)
            results = self._evict(np.concatenate([plan.pages[chosen & alone], more]), run.filled)
            yield self._step(name, results)
        # The page table has references of its own now; objects of pages that were not evicted go.
        self._store.release(run.filled.ids)

    def _evict(self, pages: PageNumbers, filled: Filled) -> NDArray[np.int32]:
        return self._pager.evict(self._domids[pages], self._gfns[pages], filled.ids[pages])

    def _step(self, name: str, results: NDArray[np.int32]) -> Step:
        refused = {p.name.lower(): int((results == p).sum()) for p in Outcome if p is not Outcome.DONE}
        return Step(name, int((results == Outcome.DONE).sum()), {k: n for k, n in refused.items() if n}, self.memory())

    def run_guests(self, operations: int, write_fraction: float, tick: Callable[[int], None]) -> list[GuestResult]:
        """Runs a program in every guest at once; tick(operations done by all) is called now and then."""
        guests = []
        for image in self._images.images:
            part = slice(image.first_page, image.first_page + image.pages)
            domid = int(self._domids[image.first_page])
            guests.append(Guest(self._machine, domid, self._content[part], operations, write_fraction, seed=domid))
        try:
            wait_for(guests, operations, tick)
        finally:
            for guest in guests:
                guest.stop()
            results = [guest.join() for guest in guests]
        return results

    def statistics(self) -> PagerStatistics:
        return self._pager.statistics()


def wait_for(guests: Sequence[Guest], operations: int, tick: Callable[[int], None]) -> None:
    """Calls tick(operations done by all) until all are done, or a guest has ended early."""
    while (done := sum(guest.progress() for guest in guests)) < operations * len(guests):
        tick(done)
        time.sleep(0.02)


@contextmanager
def demo_on(images: ImageSet) -> Iterator[Demo]:
    """A machine with one guest for each image, a pager and a store; all of it is gone afterwards."""
    frames = int(images.pages * (1 + SPARE_SHARE)) + 1024
    machine = Machine(frames)
    with Store(most_store_bytes(images.pages)) as store:
        pager = Pager(machine, store)
        try:
            yield Demo(images, machine, store, pager)
        finally:
            pager.close()


def sharing_pairs(census: Census, identical: Identical) -> tuple[PageNumbers, PageNumbers]:
    """(sources, clients): every page that has an identical one before it, with a page whose frame it can join.

    Pages of one content are cut into runs of MOST_SHARERS, each with a source of its own. Zero pages are one content.
    """
    content = identical.leaders.copy()
    zero = np.flatnonzero(census.kinds == PageKind.ZERO)
    if len(zero):
        content[zero] = zero[0]
    order = np.argsort(content, kind="stable").astype(np.uint32)
    first_of_content = np.flatnonzero(np.diff(content[order], prepend=np.uint32(NONE)))
    lengths = np.diff(first_of_content, append=len(order))
    rank = np.arange(len(order)) - np.repeat(first_of_content, lengths)
    source_place = np.arange(len(order)) - rank % MOST_SHARERS
    is_client = rank % MOST_SHARERS != 0
    return order[source_place[is_client]], order[is_client]


def with_references(plan: Plan, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The chosen pages of a plan and all that they refer to, directly or not."""
    while True:
        needed = plan.references[chosen & (plan.references != NONE)]
        more = chosen.copy()
        more[np.searchsorted(plan.pages, needed)] = True
        if (more == chosen).all():
            return chosen
        chosen = more


def pages_alone(pages: int, sources: PageNumbers, clients: PageNumbers) -> NDArray[np.bool_]:
    """By page number: does it take no part in sharing."""
    alone = np.ones(pages, dtype=np.bool_)
    alone[sources] = False
    alone[clients] = False
    return alone


def resident_bytes() -> int:
    """RssShmem of this process, as the kernel accounts it: all frames and the store, and nothing of Python's own."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssShmem"].split()[0]) * 1024


def check_result(result: DemoResult) -> None:
    """Raises DiffengineError if a guest read anything but what it last wrote."""
    if result.wrong_bytes:
        raise DiffengineError(f"guests read {result.wrong_bytes} wrong bytes; report this, with the images")
