# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever is damaged in an image: an ImageError or pages inside the file, soon and in little memory."""

import struct
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffengine.errors import ImageError
from diffengine.images import open_images
from image_fixtures import (
    PAGE,
    Block,
    MemoryMapping,
    XenGuest,
    numbered_pages,
    qemu_core,
    read_pages,
    xen_core,
)

PAGES = numbered_pages(6)
QEMU = qemu_core([Block(0, b"".join(PAGES[:4])), Block(1 << 32, b"".join(PAGES[4:]))])
QEMU_EXTENDED = qemu_core(
    [Block(0, b"".join(PAGES))], [MemoryMapping(n * PAGE, 2 * PAGE, n) for n in range(5)], extended=True
)
QEMU_7_2 = qemu_core([Block(0, b"".join(PAGES))], extended=True, named_sections=True)
XEN_HVM = xen_core(XenGuest(PAGES, [0, 1, 2, 3, 1 << 20, 1 << 21]))
XEN_PV = xen_core(XenGuest(PAGES, [5, 4, 3, 2, 1, 0], gmfns=range(6)))
ZSTD = zstandard.ZstdCompressor(level=1).compress(QEMU + b"".join(PAGES))
BASES = (QEMU, QEMU_EXTENDED, QEMU_7_2, XEN_HVM, XEN_PV, ZSTD)
# The values at which sums, products and signs go wrong.
EDGES = [0, 1, 0xFFF, 0x1000, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 52) - 1, 1 << 63, (1 << 64) - 1]
MEMORY_BOUND = 8 << 20


def open_damaged(content: bytes) -> None:
    """Opens it and reads all that is offered; touching what is outside of the file would end the test run."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "damaged")
        path.write_bytes(content)
        try:
            with open_images([path]) as images:
                assert images.pages > 0
                assert len(read_pages(images)) == images.pages
                for image in images.images:
                    image.gfns()
                if images.images[0].format != "raw" and not content.startswith(ZSTD[:4]):
                    assert images.pages <= len(content) // PAGE
        except ImageError as error:
            assert len(str(error).splitlines()) == 1 and str(path) in str(error)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Some fields overwritten, mostly in the tables at the start, then perhaps cut."""
    content = bytearray(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 6))):
        limit = draw(st.sampled_from([64, 512, 2500, len(content)]))
        offset = draw(st.integers(0, min(limit, len(content)) - 8))
        kind, mask = draw(st.sampled_from([("<B", 0xFF), ("<H", 0xFFFF), ("<I", 0xFFFFFFFF), ("<Q", 2**64 - 1)]))
        value = draw(st.sampled_from(EDGES) | st.integers(0, 2**64 - 1) | st.integers(0, len(content)))
        struct.pack_into(kind, content, offset, value & mask)
    return bytes(content[: draw(st.none() | st.integers(1, len(content)))])


@settings(max_examples=2000, deadline=10_000)
@given(damaged())
@example(b"\x7fELF")
@example(b"\x28\xb5\x2f\xfd")
@example(QEMU[:64])
@example(XEN_HVM[:64])
def test_damage_is_refused_or_harmless(content: bytes) -> None:
    open_damaged(content)


@settings(max_examples=200, deadline=None)
@given(damaged())
def test_damage_does_not_cost_memory(content: bytes) -> None:
    tracemalloc.start()
    try:
        open_damaged(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_BOUND


@st.composite
def cut(draw: st.DrawFn) -> bytes:
    content = draw(st.sampled_from(BASES))
    return content[: draw(st.integers(0, len(content) - 1))]


@settings(max_examples=300, deadline=10_000)
@given(cut())
@example(QEMU_7_2[:-1])
def test_a_cut_image_is_refused_unless_all_its_pages_are_there(content: bytes) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory, "cut")
        path.write_bytes(content)
        try:
            with open_images([path]) as images:
                # Behind the memory, QEMU 7.2 writes a name that tells nothing.
                assert QEMU_7_2.startswith(content)
                assert read_pages(images) == PAGES
        except ImageError as error:
            assert len(str(error).splitlines()) == 1
