# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever container memory is put in, the same pages and frame numbers come back, and no other."""

import struct
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from diffengine.images import open_images
from image_fixtures import PAGE, Block, MemoryMapping, XenGuest, qemu_core, read_pages, xen_core

INVALID_PFN = (1 << 64) - 1
Image = tuple[bytes, list[bytes], list[int] | None]
"""A file, the pages in it, and their frame numbers."""


@st.composite
def page_contents(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["zero", "filled", "random"]))
    if kind == "zero":
        return bytes(PAGE)
    if kind == "filled":
        return draw(st.binary(min_size=8, max_size=8)) * (PAGE // 8)
    # Starts with a zero, as a page that starts a raw image must not look like another format by chance.
    return b"\0" + np.random.default_rng(draw(st.integers(0, 2**32))).bytes(PAGE - 1)


def memories(smallest: int = 1) -> st.SearchStrategy[list[bytes]]:
    return st.lists(page_contents(), min_size=smallest, max_size=16)


@st.composite
def raw_images(draw: st.DrawFn) -> Image:
    pages = [bytes(PAGE), *draw(memories(0))]
    return b"".join(pages), pages, None


@st.composite
def qemu_images(draw: st.DrawFn) -> Image:
    """Blocks with holes between them, in any order, described plainly or by any mappings that cover all."""
    blocks: list[Block] = []
    pages: list[bytes] = []
    gfns: list[int] = []
    gfn = draw(st.integers(0, 1 << 40))
    for _ in range(draw(st.integers(1, 4))):
        gfn += draw(st.sampled_from([0, 1, 7, 1 << 20]))
        block_pages = draw(memories())
        blocks.append(Block(gfn * PAGE, b"".join(block_pages)))
        pages += block_pages
        gfns += range(gfn, gfn + len(block_pages))
        gfn += len(block_pages)
    order = draw(st.permutations(blocks))
    mappings = draw(st.none() | covering_mappings(blocks))
    vmcoreinfo, cpus = draw(st.binary(max_size=40)), draw(st.integers(1, 3))
    content = qemu_core(order, mappings, cpus, vmcoreinfo, draw(st.booleans()), draw(st.booleans()))
    return content, pages, gfns


@st.composite
def covering_mappings(draw: st.DrawFn, blocks: Sequence[Block]) -> list[MemoryMapping]:
    """Each block in pieces of any size, other pieces on top, and some memory that is not RAM."""
    mappings = [MemoryMapping(1 << 60, PAGE)]
    for block in blocks:
        inner = st.integers(block.paddr, block.end - 1)
        cuts = sorted({block.paddr, *draw(st.lists(inner, max_size=3)), block.end})
        mappings += [MemoryMapping(start, end - start, 1) for start, end in zip(cuts, cuts[1:], strict=False)]
        for start in draw(st.lists(inner, max_size=3)):
            mappings.append(MemoryMapping(start, draw(st.integers(1, 8 * PAGE)), 2))
    return draw(st.permutations(mappings))


@st.composite
def xen_images(draw: st.DrawFn) -> Image:
    pages = draw(memories())
    count = len(pages)
    pfns = draw(st.lists(st.integers(0, 1 << 39), min_size=count, max_size=count, unique=True))
    padding = draw(st.integers(0, 3))
    guest = XenGuest(
        pages + [bytes(PAGE)] * padding,
        pfns + [INVALID_PFN] * padding,
        draw(st.sampled_from([None, [n + 9000 for n in range(count)] + [INVALID_PFN] * padding])),
        draw(st.integers(1, 3)),
    )
    return xen_core(guest), pages, pfns


@st.composite
def compressed(draw: st.DrawFn, inner: st.SearchStrategy[Image]) -> Image:
    """Any number of frames, with checksums or without, and frames to be skipped between them."""
    content, pages, gfns = draw(inner)
    cuts = sorted({0, *draw(st.lists(st.integers(0, len(content)), max_size=3)), len(content)})
    frames = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        checksum, size = draw(st.booleans()), draw(st.booleans())
        compressor = zstandard.ZstdCompressor(level=1, write_checksum=checksum, write_content_size=size)
        frames.append(compressor.compress(content[start:end]))
        skipped = draw(st.none() | st.binary(max_size=9))
        if skipped is not None:
            frames.append(struct.pack("<II", 0x184D2A50, len(skipped)) + skipped)
    return b"".join(frames), pages, gfns


plain_images = st.one_of(raw_images(), qemu_images(), xen_images())
images_of_any_format = plain_images | compressed(plain_images)


@settings(max_examples=300, deadline=None)
@given(st.lists(images_of_any_format, min_size=1, max_size=3))
def test_every_container_gives_its_pages_back(files: list[Image]) -> None:
    with TemporaryDirectory() as directory:
        paths = [Path(directory, str(index)) for index in range(len(files))]
        for path, (content, _, _) in zip(paths, files, strict=True):
            path.write_bytes(content)
        with open_images(paths) as images:
            assert read_pages(images) == [page for _, pages, _ in files for page in pages]
            for image, (_, pages, gfns) in zip(images.images, files, strict=True):
                found = image.gfns()
                assert (None if found is None else found.tolist()) == gfns
                assert image.pages == len(pages)
