# SPDX-License-Identifier: GPL-2.0-or-later
"""The C core, called in batches of pages.

A batch of pages is an array of addresses (uint64); Python never touches a page's bytes and never loops over pages. The
C headers in native/include/diffengine are the contracts; what is said there about arguments holds here. Calls release
the GIL. Objects free their C side when they go.
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from diffengine._native import ffi, lib
from diffengine.array_enum import ArrayEnum
from diffengine.errors import DiffengineError

PAGE_BYTES: int = lib.DE_PAGE_SIZE
NONE: int = lib.DE_NONE
SHARING_MIN_BYTES: int = lib.DE_SHARING_MIN_BYTES
SHARING_ENTRY_BYTES = 8
TRAINING_ROUNDS: int = lib.DE_DENSE_TRAINING_ROUNDS
SHIFT_MAX_FEATURES: int = lib.DE_SHIFT_MAX_FEATURES

Addresses = NDArray[np.uint64]
PageNumbers = NDArray[np.uint32]
Bytes = NDArray[np.uint8]


ELEMENTS = {
    "bool[]": np.dtype(np.uint8),
    "uint8_t[]": np.dtype(np.uint8),
    "uint16_t[]": np.dtype(np.uint16),
    "uint32_t[]": np.dtype(np.uint32),
    "uint64_t[]": np.dtype(np.uint64),
    "int32_t[]": np.dtype(np.int32),
}


class PageKind(ArrayEnum):
    """enum de_page_kind: what a page's content is."""

    PLAIN = lib.DE_PAGE_PLAIN
    ZERO = lib.DE_PAGE_ZERO
    SAME_FILLED = lib.DE_PAGE_SAME_FILLED


class Encoding(ArrayEnum):
    """enum de_encoding: how an object's payload encodes its page."""

    RAW = lib.DE_ENCODING_RAW
    FILL = lib.DE_ENCODING_FILL
    LZ4 = lib.DE_ENCODING_LZ4
    ZSTD = lib.DE_ENCODING_ZSTD
    PATCH = lib.DE_ENCODING_PATCH
    DENSE = lib.DE_ENCODING_DENSE
    MODEL = lib.DE_ENCODING_MODEL
    SWAPPED = lib.DE_ENCODING_SWAPPED


@dataclass(frozen=True)
class Binding:
    """A build of the C core, of machine and pager, that Python can call. What one of them made the others can't use."""

    ffi: Any
    lib: Any


NATIVE = Binding(ffi, lib)


class NativeError(DiffengineError):
    """A call into the C core failed: out of memory, a store that is full, a file that can't be made."""


class FullError(NativeError):
    """A table or a store has no room left."""


def check(status: int, doing: str) -> None:
    if status == lib.DE_OK:
        return
    if status == lib.DE_SYSTEM:
        code = ffi.errno
        remedy = "free some space" if code == errno.ENOSPC else "see the system's message"
        raise NativeError(f"{doing}: {os.strerror(code)}; {remedy}")
    if status == lib.DE_FULL:
        raise FullError(f"{doing}: it is full; allow it more memory")
    raise NativeError(f"{doing}: {ffi.string(lib.de_status_text(status)).decode()}")


def readable(kind: str, array: NDArray[Any]) -> Any:
    """A C view of an array that C reads. The caller's array must be contiguous, and outlive the call.

    Raises TypeError for another type of elements than `kind` says: C would read past the array's end.
    """
    _require_elements(kind, array)
    return ffi.from_buffer(kind, array)


def writable(kind: str, array: NDArray[Any]) -> Any:
    """The same of an array that C writes."""
    _require_elements(kind, array)
    return ffi.from_buffer(kind, array, require_writable=True)


def _require_elements(kind: str, array: NDArray[Any]) -> None:
    wanted = ELEMENTS[kind]
    if array.dtype != wanted:
        raise TypeError(f"an array of {array.dtype} where C takes {wanted}")


def as_addresses(addresses: Addresses) -> Any:
    """As `const uint8_t *const *`: numpy's uint64 and a pointer are the same bits."""
    return ffi.cast("const uint8_t *const *", readable("uint64_t[]", addresses))


def _made(create: Any, free: Any, kind: str, doing: str, *arguments: Any, binding: Binding = NATIVE) -> Any:
    """What a `*_create` function gives, to be freed with `free` when Python drops it."""
    result = binding.ffi.new(f"struct {kind} **")
    check(create(*arguments, result), doing)
    return binding.ffi.gc(result[0], free)


class Digester:
    """One seed's digests and HashSimilarityDetector(k, s) keys. Any number of threads may use one."""

    def __init__(self, seed: int, k: int, s: int, index_uniform_blocks: bool = False) -> None:
        """`index_uniform_blocks`: make keys of blocks of one repeated byte, too, which match everything."""
        self.k = k
        self._digester = _made(
            lib.de_digester_create, lib.de_digester_free, "de_digester", "making the digester", seed, k, s
        )
        if index_uniform_blocks:
            lib.de_digester_index_uniform_blocks(self._digester)

    def digest(self, pages: Addresses, digests: NDArray[np.uint64], kinds: Bytes, keys: NDArray[np.uint64]) -> None:
        """Fills digests (n), kinds (n) and keys (n, k) for n pages."""
        c_keys = writable("uint64_t[]", keys) if self.k else ffi.NULL
        lib.de_digest_batch(
            self._digester,
            as_addresses(pages),
            len(pages),
            writable("uint64_t[]", digests),
            writable("uint8_t[]", kinds),
            c_keys,
        )


def compare(left: Addresses, right: Addresses) -> NDArray[np.bool_]:
    """Byte-for-byte equality of n pairs of pages."""
    equal = np.zeros(len(left), dtype=np.bool_)
    lib.de_compare_batch(as_addresses(left), as_addresses(right), len(left), writable("bool[]", equal.view(np.uint8)))
    return equal


class PageCopies:
    """Copies of up to `most` pages, so that what is encoded does not change meanwhile."""

    def __init__(self, most: int) -> None:
        self._copies = np.empty(most * PAGE_BYTES, dtype=np.uint8)

    def take(self, pages: Addresses) -> Addresses:
        """Copies pages; their new addresses, valid until the next call."""
        lib.de_copy_batch(
            as_addresses(pages), len(pages), writable("uint8_t[]", self._copies[: len(pages) * PAGE_BYTES])
        )
        start = np.uint64(self._copies.ctypes.data)
        return start + np.arange(len(pages), dtype=np.uint64) * np.uint64(PAGE_BYTES)


def checksums(pages: Addresses) -> NDArray[np.uint32]:
    """The store's checksum of each page."""
    result = np.empty(len(pages), dtype=np.uint32)
    lib.de_checksum_batch(as_addresses(pages), len(pages), writable("uint32_t[]", result))
    return result


class SharingTable:
    """Digest -> first page number that had it, in fixed memory."""

    def __init__(self, memory_bytes: int) -> None:
        self._table = _made(
            lib.de_sharing_create,
            lib.de_sharing_free,
            "de_sharing_table",
            "making the sharing table",
            memory_bytes,
        )
        self.bytes: int = lib.de_sharing_bytes(self._table)
        self.capacity: int = lib.de_sharing_capacity(self._table)

    def clear(self) -> None:
        lib.de_sharing_clear(self._table)

    def run_pass(
        self,
        digests: NDArray[np.uint64],
        eligible: Bytes,
        pages: range,
        interval: int,
        intervals: int,
        leaders: PageNumbers,
    ) -> None:
        """Visits `pages`, those digests in one of equal intervals; sets their leaders. FullError: clear it."""
        status = lib.de_sharing_pass(
            self._table,
            readable("uint64_t[]", digests),
            readable("uint8_t[]", eligible),
            pages.start,
            len(pages),
            interval,
            intervals,
            writable("uint32_t[]", leaders),
        )
        check(status, "looking for identical pages")

    def run_pass_over(
        self,
        digests: NDArray[np.uint64],
        eligible: Bytes,
        pages: range,
        interval: int,
        intervals: int,
        leaders: PageNumbers,
    ) -> None:
        """As run_pass, but `eligible` and `leaders` hold only the visited pages, so that they may be short-lived."""
        status = lib.de_sharing_pass(
            self._table,
            readable("uint64_t[]", digests),
            _from_page_zero("uint8_t *", eligible, pages.start),
            pages.start,
            len(pages),
            interval,
            intervals,
            _from_page_zero("uint32_t *", leaders, pages.start),
        )
        check(status, "looking for identical pages")


def _from_page_zero(kind: str, array: NDArray[Any], first: int) -> Any:
    """Where page 0's element would be of an array that begins with page `first`'s; C only looks from there on."""
    return ffi.cast(kind, array.ctypes.data - first * array.itemsize)


class KeyIndex:
    """The paper's page-similarity table: key -> its first c pages."""

    def __init__(self, keys_expected: int, candidates: int) -> None:
        self.candidates = candidates
        self._index = _made(
            lib.de_key_index_create,
            lib.de_key_index_free,
            "de_key_index",
            "making the similarity table",
            keys_expected,
            candidates,
        )
        self.bytes: int = lib.de_key_index_bytes(self._index)

    def candidates_of(self, keys: NDArray[np.uint64], pages: PageNumbers) -> PageNumbers:
        """Looks n pages with keys (n, k) up, entering each; (n, k * c) page numbers, NONE where there is none."""
        k = keys.shape[1]
        found = np.empty((len(pages), k * self.candidates), dtype=np.uint32)
        lib.de_key_index_pass(
            self._index,
            readable("uint64_t[]", keys),
            k,
            readable("uint32_t[]", pages),
            len(pages),
            writable("uint32_t[]", found),
        )
        return found


def shift_features(seed: int, pages: Addresses) -> tuple[NDArray[np.uint32], Bytes]:
    """Features (n, SHIFT_MAX_FEATURES) of n pages, and how many each has."""
    features = np.empty((len(pages), SHIFT_MAX_FEATURES), dtype=np.uint32)
    counts = np.empty(len(pages), dtype=np.uint8)
    lib.de_shift_features(
        seed, as_addresses(pages), len(pages), writable("uint32_t[]", features), writable("uint8_t[]", counts)
    )
    return features, counts


class ShiftIndex:
    """The shift-tolerant detector's index: feature -> last page that had it."""

    def __init__(self, memory_bytes: int, max_depth: int) -> None:
        self._index = _made(
            lib.de_shift_index_create,
            lib.de_shift_index_free,
            "de_shift_index",
            "making the similarity index",
            memory_bytes,
            max_depth,
        )
        self.bytes: int = lib.de_shift_index_bytes(self._index)

    def references_of(
        self, features: NDArray[np.uint32], counts: Bytes, pages: PageNumbers, depths: Bytes
    ) -> PageNumbers:
        """Proposes a reference for each of n pages, or NONE; `depths`, by page number, is kept up."""
        references = np.empty(len(pages), dtype=np.uint32)
        lib.de_shift_index_pass(
            self._index,
            readable("uint32_t[]", features),
            readable("uint8_t[]", counts),
            readable("uint32_t[]", pages),
            len(pages),
            writable("uint8_t[]", depths),
            writable("uint32_t[]", references),
        )
        return references


class DenseCounts:
    """How often each symbol of the dense form is used on some pages. Belongs to one thread."""

    def __init__(self) -> None:
        self.handle = _made(lib.de_dense_counts_create, lib.de_dense_counts_free, "de_dense_counts", "counting symbols")

    def add(self, more: DenseCounts) -> None:
        lib.de_dense_counts_add(self.handle, more.handle)


class DenseModel:
    """The code tables of the dense form. Any number of threads may use one."""

    def __init__(self, counts: DenseCounts | None = None) -> None:
        """The model that fits `counts`, or the default model, which training starts from."""
        doing = "making a dense model"
        free = lib.de_dense_model_free
        if counts is None:
            self.handle = _made(lib.de_dense_model_default, free, "de_dense_model", doing)
        else:
            self.handle = _made(lib.de_dense_model_make, free, "de_dense_model", doing, counts.handle)
        self.bytes: int = lib.de_dense_model_bytes(self.handle)

    def save(self) -> bytes:
        out = ffi.new("uint8_t[]", lib.DE_DENSE_MODEL_MAX_BYTES)
        return bytes(ffi.buffer(out, lib.de_dense_model_save(self.handle, out)))


class DenseCounter:
    """Scratch memory for counting, for one thread."""

    def __init__(self) -> None:
        self._encoder = _made(
            lib.de_dense_encoder_create, lib.de_dense_encoder_free, "de_dense_encoder", "counting symbols"
        )

    def count(self, model: DenseModel, pages: Addresses, references: Addresses) -> DenseCounts:
        """The symbols that the model's codes choose for n pages; references has 0 for a page without one."""
        counts = DenseCounts()
        lib.de_dense_count(
            self._encoder, model.handle, as_addresses(pages), as_addresses(references), len(pages), counts.handle
        )
        return counts


@dataclass(frozen=True)
class EncodeOptions:
    """struct de_encode_options."""

    codec: Encoding
    patch_limit: int = 0
    patch_first: bool = False
    model: DenseModel | None = None
    reference_bytes: int = 4


@dataclass(frozen=True)
class EncodedBatch:
    """n payloads, PAGE_BYTES apart in one buffer."""

    payloads: Bytes
    sizes: NDArray[np.uint16]
    encodings: Bytes
    patched: NDArray[np.bool_]

    def addresses(self) -> Addresses:
        start = np.uint64(self.payloads.ctypes.data)
        return start + np.arange(len(self.sizes), dtype=np.uint64) * np.uint64(PAGE_BYTES)


class PageEncoder:
    """Encoding contexts of one thread."""

    def __init__(self, lz4_level: int = 1, zstd_level: int = 1) -> None:
        self._encoder = _made(
            lib.de_page_encoder_create,
            lib.de_page_encoder_free,
            "de_page_encoder",
            "making an encoder",
            lz4_level,
            zstd_level,
        )

    def encode(self, options: EncodeOptions, pages: Addresses, references: Addresses) -> EncodedBatch:
        """Encodes n pages; references has 0 for a page without one."""
        count = len(pages)
        payloads = np.empty(count * PAGE_BYTES, dtype=np.uint8)
        sizes = np.empty(count, dtype=np.uint16)
        encodings = np.empty(count, dtype=np.uint8)
        patched = np.empty(count, dtype=np.uint8)
        c_options = ffi.new(
            "struct de_encode_options *",
            {
                "codec": int(options.codec),
                "reference_bytes": options.reference_bytes,
                "patch_limit": options.patch_limit,
                "patch_first": options.patch_first,
                "model": options.model.handle if options.model else ffi.NULL,
            },
        )
        status = lib.de_encode_batch(
            self._encoder,
            c_options,
            as_addresses(pages),
            as_addresses(references),
            count,
            writable("uint8_t[]", payloads),
            writable("uint16_t[]", sizes),
            writable("uint8_t[]", encodings),
            writable("uint8_t[]", patched),
        )
        check(status, "encoding pages")
        return EncodedBatch(payloads, sizes, encodings, patched.astype(np.bool_))

    def patch_sizes(self, pages: Addresses, candidates: NDArray[np.uint64], limit: int) -> NDArray[np.uint16]:
        """Bytes of a fast patch of each of n pages against each of (n, w) candidates; 0 where there is none."""
        sizes = np.empty(candidates.shape, dtype=np.uint16)
        lib.de_patch_sizes(
            self._encoder,
            as_addresses(pages),
            as_addresses(candidates),
            len(pages),
            candidates.shape[1],
            limit,
            writable("uint16_t[]", sizes),
        )
        return sizes


def choose_references(
    pages: PageNumbers, candidates: PageNumbers, sizes: NDArray[np.uint16], patched: Bytes
) -> PageNumbers:
    """The candidate of (n, w) with the smallest patch that is no patch itself, or NONE; `patched` is kept up."""
    references = np.empty(len(pages), dtype=np.uint32)
    lib.de_choose_references(
        readable("uint32_t[]", pages),
        readable("uint32_t[]", candidates),
        readable("uint16_t[]", sizes),
        len(pages),
        candidates.shape[1],
        writable("uint8_t[]", patched),
        writable("uint32_t[]", references),
    )
    return references


@dataclass(frozen=True)
class StoreStatistics:
    """struct de_store_statistics, in bytes but for `objects`."""

    objects: int
    payload_bytes: int
    header_bytes: int
    populated_bytes: int
    table_bytes: int
    limbo_bytes: int


class Store:
    """A content store in memory of its own, or in a file. Close it before its file is removed."""

    def __init__(self, max_bytes: int, path: str | None = None, binding: Binding = NATIVE) -> None:
        self.binding, ffi = binding, binding.ffi
        c_path = ffi.NULL if path is None else ffi.new("char[]", os.fsencode(path))
        result = ffi.new("struct de_store **")
        check(binding.lib.de_store_create(c_path, max_bytes, result), f"making the store {path or 'in memory'}")
        self.handle = result[0]

    def put(
        self,
        payloads: Addresses,
        sizes: NDArray[np.uint16],
        encodings: Bytes,
        checksums: NDArray[np.uint32],
        pages: PageNumbers,
        references: PageNumbers,
        ids: NDArray[np.uint32],
        model: int = NONE,
    ) -> None:
        """Puts n objects, the content of n pages; references are page numbers or NONE.

        `ids`, by page number, gives the references' objects and takes the new ones.
        """
        status = self.binding.lib.de_store_put_batch(
            self.handle,
            as_addresses(payloads),
            readable("uint16_t[]", sizes),
            readable("uint8_t[]", encodings),
            readable("uint32_t[]", checksums),
            model,
            readable("uint32_t[]", pages),
            readable("uint32_t[]", references),
            len(payloads),
            writable("uint32_t[]", ids),
        )
        check(status, "putting pages into the store")

    def release(self, ids: NDArray[np.uint32]) -> None:
        """Gives up one reference on each object; NONE entries are passed over."""
        status = self.binding.lib.de_store_release_batch(self.handle, readable("uint32_t[]", ids), len(ids))
        check(status, "releasing objects")

    def compact(self) -> int:
        """Moves objects together so that frames come free; the bytes given back."""
        return int(self.binding.lib.de_store_compact(self.handle))

    def put_model(self, model: DenseModel) -> int:
        """Puts a dense model; its object id."""
        ffi = self.binding.ffi
        payload = ffi.from_buffer("uint8_t[]", model.save())
        new_object = ffi.new(
            "struct de_object *",
            {"encoding": int(Encoding.MODEL), "payload": payload, "payload_bytes": len(payload)},
        )
        result = ffi.new("uint32_t *")
        check(self.binding.lib.de_store_put(self.handle, new_object, result), "putting a model into the store")
        return int(result[0])

    def statistics(self) -> StoreStatistics:
        c_statistics = self.binding.ffi.new("struct de_store_statistics *")
        self.binding.lib.de_store_statistics(self.handle, c_statistics)
        names = StoreStatistics.__dataclass_fields__
        return StoreStatistics(**{name: int(getattr(c_statistics, name)) for name in names})

    def close(self) -> None:
        """Frees the store's memory. No rebuilder of it may be left."""
        if self.handle is not None:
            self.binding.lib.de_store_close(self.handle)
            self.handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Rebuilder:
    """Rebuilds pages from a store, for one thread. Drop it before the store is closed."""

    def __init__(self, store: Store) -> None:
        self._binding = store.binding
        self._rebuilder = _made(
            self._binding.lib.de_rebuilder_create,
            self._binding.lib.de_rebuilder_free,
            "de_rebuilder",
            "making a rebuilder",
            store.handle,
            binding=self._binding,
        )

    def close(self) -> None:
        """Frees it now; a store may only be closed when no rebuilder of it is left."""
        self._binding.ffi.release(self._rebuilder)

    def rebuild(self, ids: NDArray[np.uint32], pages: Bytes) -> NDArray[np.bool_]:
        """Rebuilds n objects into pages (n * PAGE_BYTES); False for one that is not there, or corrupt."""
        right = np.empty(len(ids), dtype=np.uint8)
        self._binding.lib.de_rebuild_batch(
            self._rebuilder,
            readable("uint32_t[]", ids),
            len(ids),
            writable("uint8_t[]", pages),
            writable("uint8_t[]", right),
        )
        return right.astype(np.bool_)

    def describe(self, ids: NDArray[np.uint32]) -> tuple[Bytes, NDArray[np.uint16], NDArray[np.bool_]]:
        """Of each object its encoding, the size of its payload (0: no such object), and whether it stands on another
        page's object."""
        encodings, patched = np.empty(len(ids), dtype=np.uint8), np.empty(len(ids), dtype=np.uint8)
        sizes = np.empty(len(ids), dtype=np.uint16)
        self._binding.lib.de_rebuild_describe_batch(
            self._rebuilder,
            readable("uint32_t[]", ids),
            len(ids),
            writable("uint8_t[]", encodings),
            writable("uint16_t[]", sizes),
            writable("uint8_t[]", patched),
        )
        return encodings, sizes, patched.astype(np.bool_)

    def verify(self, ids: NDArray[np.uint32], pages: Addresses) -> NDArray[np.bool_]:
        """Whether object ids[i] rebuilds to exactly the page at pages[i]."""
        right = np.empty(len(ids), dtype=np.uint8)
        self._binding.lib.de_rebuild_verify_batch(
            self._rebuilder, readable("uint32_t[]", ids), as_addresses(pages), len(ids), writable("uint8_t[]", right)
        )
        return right.astype(np.bool_)


def random_seed() -> int:
    """A seed for a run: random, so that a guest can't aim at collisions."""
    return secrets.randbits(64)
