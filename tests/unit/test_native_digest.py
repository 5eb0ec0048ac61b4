# SPDX-License-Identifier: GPL-2.0-or-later
"""Digests and block keys against what the contract says they are made of, worked out from the xxhash package."""

import struct

import numpy as np
import pytest
import xxhash
from diffengine._native import ffi, lib
from numpy.typing import NDArray

from diffengine.native import Digester, NativeError, PageKind, checksums, compare
from page_fixtures import PAGE, Pages, random_page, text_page, word_page

SEED = 0x0123456789ABCDEF
MASK = (1 << 64) - 1
PRIME32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
PRIME64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def words(data: bytes, offset: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}Q", data, offset)


def generated_secret(seed: int, length: int = 192) -> bytes:
    """XXH3_generateSecret(): the seed's bytes repeated, each 16 of them xored with a 128-bit hash."""
    custom = struct.pack("<Q", seed)
    secret = bytearray((custom * length)[:length])
    scrambler = xxhash.xxh3_128_digest(custom)
    hashes = [(16 * n, xxhash.xxh3_128_intdigest(scrambler, n)) for n in range(length // 16)]
    for at, number in [*hashes, (length - 16, int.from_bytes(scrambler, "big"))]:
        mixed = int.from_bytes(secret[at : at + 16], "little") ^ number
        secret[at : at + 16] = mixed.to_bytes(16, "little")
    return bytes(secret)


def accumulate(lanes: list[int], stripe: tuple[int, ...], keys: tuple[int, ...]) -> None:
    for i in range(8):
        keyed = stripe[i] ^ keys[i]
        lanes[i ^ 1] = (lanes[i ^ 1] + stripe[i]) & MASK
        lanes[i] = (lanes[i] + (keyed & 0xFFFFFFFF) * (keyed >> 32)) & MASK


def xxh3_with_secret(page: bytes, secret: bytes) -> int:
    """XXH3_64bits_withSecret() of a page, as the XXH3 specification tells it for long inputs."""
    lanes = [PRIME32[2], *PRIME64[:4], PRIME32[1], PRIME64[4], PRIME32[0]]
    for stripe in range(PAGE // 64 - 1):
        place = stripe % 16
        accumulate(lanes, words(page, 64 * stripe, 8), words(secret, 8 * place, 8))
        if place == 15:
            keys = words(secret, len(secret) - 64, 8)
            lanes = [(((x ^ x >> 47) ^ key) * PRIME32[0]) & MASK for x, key in zip(lanes, keys, strict=True)]
    accumulate(lanes, words(page, PAGE - 64, 8), words(secret, len(secret) - 64 - 7, 8))
    result = PAGE * PRIME64[0]
    keys = words(secret, 11, 8)
    for i in range(0, 8, 2):
        product = (lanes[i] ^ keys[i]) * (lanes[i + 1] ^ keys[i + 1])
        result += (product & MASK) ^ (product >> 64)
    result &= MASK
    result = ((result ^ result >> 37) * 0x165667919E3779F9) & MASK
    return result ^ result >> 32


def digested(
    pages: Pages, k: int = 2, s: int = 1, seed: int = SEED
) -> tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.uint64]]:
    """Digests, kinds and keys, in arrays that hold other values before."""
    digests = np.full(len(pages), 7, dtype=np.uint64)
    kinds = np.full(len(pages), 99, dtype=np.uint8)
    keys = np.full((len(pages), k), 7, dtype=np.uint64)
    Digester(seed, k, s).digest(pages.addresses, digests, kinds, keys)
    return digests, kinds, keys


def offsets(k: int, s: int, seed: int = SEED) -> list[int]:
    digester = Digester(seed, k, s)
    return list(ffi.unpack(lib.de_digester_offsets(digester._digester), k * s))


@pytest.mark.parametrize("seed", [0, 1, SEED, MASK])
def test_a_plain_page_s_digest_is_xxh3_with_a_secret_of_the_seed(seed: int) -> None:
    pages = Pages([random_page(1), text_page(2), bytes(PAGE - 1) + b"\1", b"\1" + bytes(PAGE - 1)])
    digests, kinds, _ = digested(pages, seed=seed)
    secret = generated_secret(seed)
    assert digests.tolist() == [xxh3_with_secret(page, secret) for page in pages.contents]
    assert kinds.tolist() == [PageKind.PLAIN] * 4


def test_a_repeated_word_s_digest_is_that_of_the_word_and_a_zero_page_s_is_0() -> None:
    repeated = [b"\xff" * 8, b"\0\0\0\0\0\0\0\1", b"ABCDEFGH"]
    digests, kinds, keys = digested(Pages([bytes(PAGE), *map(word_page, repeated)]))
    assert digests.tolist() == [0] + [xxhash.xxh3_64_intdigest(word, SEED) for word in repeated]
    assert kinds.tolist() == [PageKind.ZERO] + [PageKind.SAME_FILLED] * 3
    assert not keys.any()


@pytest.mark.parametrize("place", [0, 7, 8, 9, 255, 256, 2048, 4087, 4088, 4095])
def test_one_other_byte_makes_a_filled_page_plain(place: int) -> None:
    pages = []
    for filled in (bytes(PAGE), word_page(b"ABCDEFGH")):
        page = bytearray(filled)
        page[place] ^= 0x20
        pages.append(bytes(page))
    assert digested(Pages(pages))[1].tolist() == [PageKind.PLAIN] * 2


def test_words_repeated_out_of_step_are_plain() -> None:
    assert digested(Pages([(b"ABCDEFG" * 600)[:PAGE], word_page(b"ABCDEFGHabcdefgh")]))[1].tolist() == [0, 0]


@pytest.mark.parametrize(("k", "s"), [(1, 1), (2, 1), (4, 2), (32, 2), (1, 64)])
def test_keys_are_hashes_of_the_sampled_blocks(k: int, s: int) -> None:
    page = random_page(3)
    blocks = [page[at : at + 64] for at in offsets(k, s)]
    expected = []
    for group in range(k):
        hashes = [xxhash.xxh3_64_intdigest(block, SEED) for block in blocks[group * s : (group + 1) * s]]
        expected.append(xxhash.xxh3_64_intdigest(struct.pack(f"<{1 + s}Q", group, *hashes), SEED))
    assert digested(Pages([page]), k, s)[2].tolist() == [expected]


@pytest.mark.parametrize(("k", "s"), [(1, 1), (32, 2), (64 // 4, 4)])
def test_sampled_blocks_are_all_different_and_aligned(k: int, s: int) -> None:
    chosen = offsets(k, s)
    assert len(set(chosen)) == k * s
    assert all(at % 64 == 0 and 0 <= at < PAGE for at in chosen)
    assert chosen != offsets(k, s, seed=SEED + 1) or k * s == 1


@pytest.mark.parametrize("byte", [b"\0", b"\xff", b"a"])
def test_a_block_of_one_byte_has_no_key(byte: bytes) -> None:
    k, s = 4, 2
    chosen = offsets(k, s)
    page = bytearray(random_page(4))
    page[chosen[3] : chosen[3] + 64] = byte * 64  # the second block of group 1
    keys = digested(Pages([bytes(page)]), k, s)[2]
    assert (keys[0] == 0).tolist() == [False, True, False, False]


def test_another_seed_gives_other_digests_and_keys() -> None:
    pages = Pages([random_page(5), word_page(b"ABCDEFGH")])
    one, other = digested(pages, seed=1), digested(pages, seed=2)
    assert (one[0] != other[0]).all()
    assert (one[2][0] != other[2][0]).all()


def test_no_keys_are_made_for_k_0() -> None:
    digests, kinds, keys = digested(Pages([random_page(6)]), k=0)
    assert digests[0] not in (0, 7) and kinds[0] == PageKind.PLAIN and keys.shape == (1, 0)


@pytest.mark.parametrize(("k", "s"), [(33, 1), (32, 3), (1, 65), (2, 0)])
def test_sampling_out_of_range_is_refused(k: int, s: int) -> None:
    with pytest.raises(NativeError, match="making the digester"):
        Digester(SEED, k, s)


def test_both_code_paths_give_the_same(request: pytest.FixtureRequest) -> None:
    rng = np.random.default_rng(7)
    filled = [bytes(PAGE), word_page(b"ABCDEFGH")]
    pages = Pages(filled + [bytes(rng.integers(0, 2, 64, np.uint8)).ljust(PAGE, b"\0") for _ in range(64)])
    request.addfinalizer(lambda: lib.de_digest_force_portable(False))
    fast = (*digested(pages), checksums(pages.addresses))
    lib.de_digest_force_portable(True)
    assert ffi.string(lib.de_digest_path()) == b"portable"
    portable = (*digested(pages), checksums(pages.addresses))
    assert all((a == b).all() for a, b in zip(fast, portable, strict=True))


def test_checksums_are_the_low_half_of_xxh3() -> None:
    pages = Pages([bytes(PAGE), random_page(8), text_page(9)])
    assert checksums(pages.addresses).tolist() == [
        xxhash.xxh3_64_intdigest(page) & 0xFFFFFFFF for page in pages.contents
    ]


def test_compare_sees_every_byte() -> None:
    page = random_page(10)
    others = [page] + [page[:at] + bytes([page[at] ^ 1]) + page[at + 1 :] for at in (0, 63, 2047, 4095)]
    left, right = Pages([page] * 5), Pages(others)
    assert compare(left.addresses, right.addresses).tolist() == [True, False, False, False, False]
