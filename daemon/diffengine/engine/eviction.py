# SPDX-License-Identifier: GPL-2.0-or-later
"""From cold pages to objects of the store: references, encoding and the proposal to evict, all off the fault path.

C3 pages take the fast forms (patch, LZ4), C4 pages the dense one: the colder, the more bytes count. The pager rebuilds
each object and compares it with the frame in the step that evicts it, so a page that changes meanwhile stays.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffengine.engine import clock
from diffengine.engine.mapping import map_pages, objects_of
from diffengine.engine.models import Models
from diffengine.engine.options import EngineOptions
from diffengine.engine.pace import Pace, Work
from diffengine.engine.pages import EVICTABLE, FUTILE, HEADER_BYTES, INDEXED, TRIED, PageTable, Place
from diffengine.engine.policy import State, Technique
from diffengine.engine.reasons import Reason, Reasons
from diffengine.engine.similarity import Similarity
from diffengine.engine.written import differing
from diffengine.hypervisor.protocol import Host, NewObjects, Outcome, Pager, Results, StoreFullError
from diffengine.native import (
    NONE,
    PAGE_BYTES,
    Addresses,
    EncodedBatch,
    EncodeOptions,
    Encoding,
    NativeError,
    PageCopies,
    PageEncoder,
    PageNumbers,
    checksums,
)

MayGo = Callable[[PageNumbers], NDArray[np.bool_]]

# Encoding takes up to some 0.1 ms a page, and frames are mapped meanwhile.
BATCH_PAGES = 256
# A page that stays nearly as large is not worth a fault.
LARGEST_OBJECT = PAGE_BYTES * 7 // 8


@dataclass(frozen=True)
class Candidates:
    """Cold pages, and for each the state it is in."""

    pages: PageNumbers
    states: NDArray[np.uint8]

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "Candidates":
        return Candidates(self.pages[chosen], self.states[chosen])


@dataclass(frozen=True)
class Job:
    """Pages to be encoded with one set of options. references: page numbers or NONE; reference_ids: their objects,
    NONE for one that has a frame still. rows: where among the pages such a reference is, else NONE."""

    pages: PageNumbers
    references: PageNumbers
    reference_ids: NDArray[np.uint32]
    rows: NDArray[np.uint32]


class Evictor:
    """Encodes and evicts in batches."""

    def __init__(
        self,
        host: Host,
        pager: Pager,
        table: PageTable,
        options: EngineOptions,
        reasons: Reasons,
        pace: Pace,
        may_go: MayGo,
    ) -> None:
        """may_go: which pages the limits of their domains let go besides those that `evict` is given."""
        self._host = host
        self._may_go = may_go
        self._let_through = np.empty(0, dtype=np.uint32)
        self._pace = pace
        self._pager = pager
        self._table = table
        self.options = options
        self._reasons = reasons
        self._encoder = PageEncoder()
        self._models = Models(table, pager)
        self._similarity = Similarity(table, options.seed, options.similarity_bytes_per_page)
        policy = options.policy
        self._patches, self._compresses = policy.uses(Technique.PATCH), policy.uses(Technique.COMPRESS)
        self._may_patch = policy.allows(Technique.PATCH)
        self._may_compress = policy.allows(Technique.COMPRESS)
        self._may_refer = policy.allows(Technique.REFERENCE)
        self._compress_first = np.array([policy.compresses_first(state) for state in State])
        # Buffers: for references that are out, and for the pages of a batch and its references.
        self._rebuilt = np.empty(BATCH_PAGES * PAGE_BYTES, dtype=np.uint8)
        self._copies = PageCopies(2 * BATCH_PAGES)

    @property
    def bytes(self) -> int:
        return self._similarity.bytes

    def begin_cycle(self) -> None:
        if self._patches:
            self._similarity.begin_cycle()

    def end_sweep(self) -> None:
        """Trains the models that pages wait for."""
        for group, pages in self._models.groups_to_train().items():
            pages = pages[EVICTABLE[self._table.place[pages]]]
            if not len(pages):
                continue
            copies = PageCopies(len(pages))
            with map_pages(self._host, self._table, pages) as addresses:
                sample = copies.take(addresses[addresses != 0])
            try:
                self._models.train(group, sample)
                self._pace.worked(Work.TRAIN, len(sample))
            except StoreFullError:
                self._reasons.add(Reason.STORE_FULL, len(pages))

    def close(self) -> None:
        self._models.close()

    def worth_trying(self, pages: PageNumbers, states: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Is there anything that could still be done with each page, in its state."""
        notes = self._table.notes[pages]
        first_time = (notes & INDEXED) == 0
        compress = self._may_compress[states] & ((notes & FUTILE) == 0)
        patch = self._may_patch[states] & first_time
        result: NDArray[np.bool_] = compress | patch
        return result

    def evict(self, candidates: Candidates, group: int) -> None:
        """Evicts what it can of pages of one trust group, which the limits have let through."""
        self._let_through = candidates.pages
        for start in range(0, len(candidates.pages), BATCH_PAGES):
            part = Candidates(
                candidates.pages[start : start + BATCH_PAGES], candidates.states[start : start + BATCH_PAGES]
            )
            part = self._evict_patches(part)
            self._evict_compressed(part, group)

    def evict_as(self, pages: PageNumbers, copies: PageNumbers) -> NDArray[np.bool_]:
        """Evicts pages as the very objects that their copies are out as. Which of them went."""
        objects = self._objects_of(copies)
        known = np.flatnonzero(objects != NONE)
        results = self._propose(pages[known], objects[known])
        done = known[results == Outcome.DONE]
        self._note_evicted(pages[done], self._table.place[copies[done]], self._table.saved[copies[done]])
        went = np.zeros(len(pages), dtype=np.bool_)
        went[done] = True
        return went

    # Patches.

    def _evict_patches(self, candidates: Candidates) -> Candidates:
        """Evicts those that are similar to a page that is out, or cold as well. The others."""
        states = candidates.states
        notes = self._table.notes[candidates.pages]
        tries = self._may_patch[states] & (~self._compress_first[states] | ((notes & FUTILE) != 0))
        tries &= (notes & INDEXED) == 0
        if not tries.any():
            return candidates
        with map_pages(self._host, self._table, candidates.pages[tries]) as addresses:
            mapped = addresses != 0
            pages = candidates.pages[tries][mapped]
            proposed = self._similarity.propose(pages, addresses[mapped])
            self._pace.worked(Work.PROPOSE, len(pages))
        self._reasons.add(Reason.NO_REFERENCE, int((proposed == NONE).sum()))
        similar = proposed != NONE
        went = self._patch(pages[similar], proposed[similar])
        stay = ~np.isin(candidates.pages, went)
        # References were evicted on the way.
        stay &= EVICTABLE[self._table.place[candidates.pages]]
        return candidates[stay]

    def _patch(self, pages: PageNumbers, references: PageNumbers) -> PageNumbers:
        """Patches pages against references, evicting those of them that are cold themselves. The pages that went."""
        objects = self._objects_of(references)
        resident = objects == NONE
        cold = self._is_cold_reference(references)
        self._reasons.add(Reason.REFERENCE_IN_USE, int((resident & ~cold).sum()))
        usable = ~resident | cold
        pages, references, objects = pages[usable], references[usable], objects[usable]
        if not len(pages):
            return pages
        # A page can't be a patch and the raw reference of another one in the same batch.
        new_references = np.unique(references[objects == NONE])
        own = ~np.isin(pages, new_references)
        pages, references, objects = pages[own], references[own], objects[own]
        order = np.concatenate([new_references, pages])
        none = np.full(len(new_references), NONE, dtype=np.uint32)
        rows = np.where(objects == NONE, np.searchsorted(new_references, references), NONE).astype(np.uint32)
        job = Job(
            order,
            np.concatenate([none, references]),
            np.concatenate([none, objects]),
            np.concatenate([none, rows]),
        )
        return self._carry_out_patches(job, len(new_references))

    def _is_cold_reference(self, pages: PageNumbers) -> NDArray[np.bool_]:
        table = self._table
        states = clock.classify(table.quiet[pages], table.idle[pages], self.options.c4_visits)
        has_frame = EVICTABLE[table.place[pages]]
        cold: NDArray[np.bool_] = has_frame & self._may_refer[states]
        others = np.unique(pages[cold & ~np.isin(pages, self._let_through)])
        if len(others):
            cold &= ~np.isin(pages, others[~self._may_go(others)])
        return cold

    def _carry_out_patches(self, job: Job, new_references: int) -> PageNumbers:
        codec = Encoding.LZ4 if self._compresses else Encoding.RAW
        options = EncodeOptions(codec, patch_limit=self.options.patch_limit)
        mapped, addresses = self._copy(job.pages)
        if not mapped.any():
            return job.pages[:0]
        references, known = self._reference_addresses(job, addresses)
        mapped &= known
        batch = self._encode(options, addresses, references)
        sums = checksums(addresses)
        is_patch = np.arange(len(job.pages)) >= new_references
        keep = mapped & is_patch & batch.patched & (batch.sizes <= LARGEST_OBJECT)
        self._reasons.add(Reason.PATCH_TOO_LARGE, int((mapped & is_patch & ~keep).sum()))
        # A reference goes only if somebody needs it.
        needed = job.rows[keep & (job.rows != NONE)]
        keep[needed] = mapped[needed]
        in_batch = job.rows != NONE
        keep[in_batch] &= keep[job.rows[in_batch]]
        done = self._put_and_evict(job, keep, batch, sums, NONE)
        return job.pages[done]

    def _reference_addresses(self, job: Job, addresses: Addresses) -> tuple[Addresses, NDArray[np.bool_]]:
        """Where each page's reference is: mapped, or rebuilt. Known: is it there, or none needed."""
        result = np.zeros(len(job.pages), dtype=np.uint64)
        known = np.ones(len(job.pages), dtype=np.bool_)
        in_batch = job.rows != NONE
        result[in_batch] = addresses[job.rows[in_batch]]
        out = np.flatnonzero(job.reference_ids != NONE)
        objects, inverse = np.unique(job.reference_ids[out], return_inverse=True)
        right = self._pager.rebuild(objects, self._rebuilt)
        result[out] = self._rebuilt.ctypes.data + inverse.astype(np.uint64) * np.uint64(PAGE_BYTES)
        known[out] = right[inverse]
        result[~known] = 0
        return result, known

    # Compression.

    def _evict_compressed(self, candidates: Candidates, group: int) -> None:
        notes = self._table.notes[candidates.pages]
        chosen = candidates[self._may_compress[candidates.states] & ((notes & FUTILE) == 0)]
        dense = (chosen.states == State.C4) & self.options.dense
        self._compress(chosen.pages[~dense], EncodeOptions(Encoding.LZ4), NONE)
        if not dense.any():
            return
        known = self._models.model_of(group)
        if known is None:
            self._models.sample(group, chosen.pages[dense])
            return
        model, object_id = known
        self._compress(chosen.pages[dense], EncodeOptions(Encoding.DENSE, model=model), object_id)

    def _compress(self, pages: PageNumbers, options: EncodeOptions, model_id: int) -> None:
        if not len(pages):
            return
        mapped, addresses = self._copy(pages)
        pages, addresses = pages[mapped], addresses[mapped]
        batch = self._encode(options, addresses, np.zeros_like(addresses))
        sums = checksums(addresses)
        keep = batch.sizes <= LARGEST_OBJECT
        self._reasons.add(Reason.INCOMPRESSIBLE, int((~keep).sum()))
        self._table.notes[pages[~keep]] |= FUTILE
        # One that shared its frame goes as it is, and its sharers with it, or they would all keep frames of their own.
        keep |= (self._table.notes[pages] & TRIED) != 0
        none = np.full(len(pages), NONE, dtype=np.uint32)
        self._put_and_evict(Job(pages, none, none, none), keep, batch, sums, model_id)

    # Both.

    def _copy(self, pages: PageNumbers) -> tuple[NDArray[np.bool_], Addresses]:
        """Which of the pages could be mapped, and where copies are; of the others, of some other page."""
        with map_pages(self._host, self._table, pages) as addresses:
            mapped = addresses != 0
            self._reasons.add(Reason.UNMAPPED, int((~mapped).sum()))
            if mapped.any():
                addresses = self._copies.take(np.where(mapped, addresses, addresses[mapped][0]))
                self._pace.worked(Work.COPY, len(pages))
        return mapped, addresses

    def _encode(self, options: EncodeOptions, addresses: Addresses, references: Addresses) -> EncodedBatch:
        batch = self._encoder.encode(options, addresses, references)
        work = Work.ENCODE_DENSE if options.codec is Encoding.DENSE else Work.ENCODE_FAST
        self._pace.worked(work, len(addresses))
        return batch

    def _put_and_evict(
        self,
        job: Job,
        keep: NDArray[np.bool_],
        batch: EncodedBatch,
        sums: NDArray[np.uint32],
        model_id: int,
    ) -> NDArray[np.intp]:
        """Puts and evicts the rows to keep. Which of them went."""
        rows = np.flatnonzero(keep)
        new_rows = np.cumsum(keep) - 1
        references = job.rows[rows]
        within = references != NONE
        references[within] = new_rows[references[within]]
        try:
            ids = self._pager.put(
                NewObjects(
                    batch.addresses()[rows],
                    batch.sizes[rows],
                    batch.encodings[rows],
                    sums[rows],
                    job.reference_ids[rows],
                    references,
                    model_id,
                )
            )
        except StoreFullError:
            self._reasons.add(Reason.STORE_FULL, len(rows))
            return rows[:0]
        except NativeError:
            # A reference's page came back since it was rebuilt here. There is always a next visit.
            self._table.notes[job.pages[rows]] &= ~INDEXED
            self._reasons.add(Reason.REFERENCE_GONE, len(rows))
            return rows[:0]
        # Between reading a reference's object and putting patches, its page may have come back and its object's number
        # been given to another page, even one of another trust group.
        fresh = self._unchanged_references(job, rows)
        results = self._propose(job.pages[rows[fresh]], ids[fresh])
        self._pager.release(ids)
        went = np.flatnonzero(fresh)[results == Outcome.DONE]
        place = np.where(batch.patched[rows[went]], Place.PATCHED, Place.COMPRESSED)
        saved = PAGE_BYTES - np.minimum(batch.sizes[rows[went]].astype(np.int64) + HEADER_BYTES, PAGE_BYTES)
        self._note_evicted(job.pages[rows[went]], place, saved)
        done: NDArray[np.intp] = rows[went]
        return done

    def _unchanged_references(self, job: Job, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        fresh = np.ones(len(rows), dtype=np.bool_)
        out = job.reference_ids[rows] != NONE
        fresh[out] = self._objects_of(job.references[rows[out]]) == job.reference_ids[rows[out]]
        return fresh

    def _propose(self, pages: PageNumbers, objects: NDArray[np.uint32]) -> Results:
        domids, gfns = self._table.locate(pages)
        results = self._pager.evict(domids, gfns, objects)
        self._reasons.add_results("evict", results)
        # It is nominated all the same, unless it was touched.
        refused = pages[results != Outcome.DONE]
        self._table.doubt(pages[differing(results)])
        self._table.idle[refused] = 0
        self._table.quiet[refused] = np.minimum(self._table.quiet[refused], 1)
        return results

    def _note_evicted(self, pages: PageNumbers, place: NDArray[np.integer], saved: NDArray[np.integer]) -> None:
        self._table.leave_frames(pages)
        self._table.place[pages] = place
        self._table.saved[pages] = saved

    def _objects_of(self, pages: PageNumbers) -> NDArray[np.uint32]:
        return objects_of(self._pager, self._table, pages)
