# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine analyze` given what it can't use: exit code 2, one line that names it and says what to do."""

import os
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from command import refusal_of as refusal_of_process
from diffengine.analysis.census import table_bytes_allowed
from diffengine.cli import main
from image_fixtures import Block, XenGuest, numbered_pages, qemu_core, xen_core
from page_fixtures import PAGE, random_page, word_page

GOOD = b"".join(word_page(bytes([n]) * 8) for n in range(8)) + random_page(1)


Refusal = Callable[..., str]


@pytest.fixture
def refusal_of(capfd: pytest.CaptureFixture[str]) -> Refusal:
    """Runs the command in this process; the one line that it prints."""

    def run(*arguments: str | Path) -> str:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse does
            code = int(left.code or 0)
        printed = capfd.readouterr()
        assert (printed.out, code) == ("", 2), printed.err
        (line,) = printed.err.splitlines()
        assert line.startswith("diffengine")
        return line

    return run


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.raw"
    path.write_bytes(GOOD)
    return path


def broken_elf_headers() -> bytes:
    core = bytearray(qemu_core([Block(0, GOOD)]))
    struct.pack_into("<Q", core, 32, 1 << 60)  # e_phoff
    return bytes(core)


def truncated_xen_core() -> bytes:
    return xen_core(XenGuest(numbered_pages(8), range(8)))[: -4 * PAGE]


BAD_CONTENT = {
    "empty": (b"", "is empty"),
    "no-multiple-of-a-page": (GOOD[:-5], "multiple of 4096"),
    "truncated-qemu-core": (qemu_core([Block(0, GOOD)])[: -2 * PAGE], "is truncated"),
    "truncated-xen-core": (truncated_xen_core(), "is truncated"),
    "broken-elf-headers": (broken_elf_headers(), "header"),
    "elf-magic-only": (b"\x7fELF" + bytes(PAGE - 4), "ELF"),
    "executable": (Path(sys.executable).resolve().read_bytes()[: 1 << 20], "core"),
    "text": (b"This is a list of things to buy.\n" * 300, "is a text file"),
    "zstd-that-ends-early": (zstandard.compress(GOOD)[:-100], "ends"),
    "damaged-zstd": (zstandard.compress(GOOD)[:40] + b"\xff" * 4000, "zstd"),
    "zstd-of-no-multiple": (zstandard.compress(GOOD[:-5]), "multiple of 4096"),
    "gzip": (b"\x1f\x8b\x08" + bytes(PAGE - 3), "gzip"),
}


@pytest.mark.parametrize("name", BAD_CONTENT)
def test_a_file_that_is_no_image(tmp_path: Path, name: str, refusal_of: Refusal) -> None:
    content, problem = BAD_CONTENT[name]
    bad = tmp_path / f"{name}.img"
    bad.write_bytes(content)
    line = refusal_of("analyze", bad)
    assert line.startswith(f"diffengine: {bad}: ")
    assert problem in line
    assert "; " in line  # what is wrong; what to do


def test_a_missing_file(tmp_path: Path, refusal_of: Refusal) -> None:
    line = refusal_of("analyze", tmp_path / "no.raw")
    assert line == f"diffengine: {tmp_path}/no.raw: can't be opened (no such file or directory); check the path"


def test_a_directory(tmp_path: Path, refusal_of: Refusal) -> None:
    assert f"{tmp_path}: can't be opened (is a directory)" in refusal_of("analyze", tmp_path)


def test_a_file_that_the_system_does_not_let_us_read(refusal_of: Refusal) -> None:
    # Root may read any file of the disk; this one the kernel lets nobody read.
    line = refusal_of("analyze", "/proc/self/mem")
    assert line.startswith("diffengine: /proc/self/mem: ")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_image_among_good_ones_stops_all(tmp_path: Path, good: Path, place: int, refusal_of: Refusal) -> None:
    bad = tmp_path / "bad.raw"
    bad.write_bytes(GOOD[:-1])
    images = [good, good]
    images.insert(place, bad)
    assert str(bad) in refusal_of("analyze", "--json", *images)


@pytest.mark.parametrize("command", ["analyze", "simulate"])
def test_a_name_that_would_break_the_line(tmp_path: Path, command: str, refusal_of: Refusal) -> None:
    assert r"two\nlines\x1b[2J.raw" in refusal_of(command, tmp_path / "two\nlines\x1b[2J.raw")


def test_a_name_in_no_encoding(tmp_path: Path, refusal_of: Refusal) -> None:
    name = os.fsdecode(b"\xff\xfe.raw")
    (tmp_path / name).write_bytes(b"")
    assert r"\udcff\udcfe.raw: is empty" in refusal_of("analyze", tmp_path / name)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["-k", "9", "-s", "8"], "k * s is over the 64 blocks"),
        (["-k", "0"], "'0' is not a whole number from 1 to 32"),
        (["-k", "two"], "'two' is not a whole number"),
        (["-c", "17"], "'17' is not a whole number from 1 to 16"),
        (["--jobs", "0"], "'0' is not a whole number from 1 to 256"),
        (["--jobs", "-1"], "not a whole number from 1 to 256"),
        (["--seed", str(2**64)], "is not a whole number from 0 to"),
        (["--codec", "raw"], "invalid choice"),
        (["--detector", "xor"], "invalid choice"),
        (["--table-memory", "much"], "'much' is not a size; write for example 64M"),
        (["--table-memory", "1K"], "--table-memory 1024: too small for 8 non-zero pages; give at least 4096 bytes"),
        (["--plot", "a.gif"], "--plot a.gif: can only write .png and .svg"),
        (["--plot", "/no/such/place/a.png"], "can't write into /no/such/place"),
        (
            ["--store-file", "/no/such/place/store"],
            "--store-file /no/such/place/store: can't write into /no/such/place",
        ),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--group", "web"], "--group web: not of the form NAME=IMAGE,..."),
        (["--group", "web=other.raw"], "other.raw is not among the images"),
    ],
    ids=" ".join,
)
def test_options_that_can_not_be(good: Path, options: list[str], complaint: str, refusal_of: Refusal) -> None:
    assert complaint in refusal_of("analyze", good, *options)


def test_groups_that_overlap(good: Path, tmp_path: Path, refusal_of: Refusal) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(GOOD)
    twice = refusal_of("analyze", good, other, "--group", f"web={good}", "--group", f"db={good},{other}")
    assert f"{good} is in a group already" in twice
    again = refusal_of("analyze", good, other, "--group", f"web={good}", "--group", f"web={other}")
    assert "there is a group web already" in again


def test_a_table_too_small_tells_the_minimum(tmp_path: Path, refusal_of: Refusal) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(b"".join(word_page(n.to_bytes(8, "big")) for n in range(1, 1025)))
    # So many pages that 4 KiB, the smallest table, would need more passes than are allowed.
    images, pages = [path] * 128, 128 * 1024
    line = refusal_of("analyze", *images, "--table-memory", "4096")
    told = re.search(rf"--table-memory 4096: too small for {pages} non-zero pages; give at least (\d+) bytes", line)
    assert told
    least = int(told[1])
    assert 4096 < least < 8192
    assert f"give at least {least} bytes" in refusal_of("analyze", *images, "--table-memory", str(least - 1))
    assert table_bytes_allowed(pages, pages, least) == least


def test_no_command_and_no_image(refusal_of: Refusal) -> None:
    assert "COMMAND" in refusal_of()
    assert "IMAGE" in refusal_of("analyze")
    assert "invalid choice: 'analyse'" in refusal_of("analyse")


def test_a_plot_that_can_not_be_written(good: Path, tmp_path: Path, refusal_of: Refusal) -> None:
    directory = tmp_path / "directory.png"
    directory.mkdir()
    assert f"--plot {directory}: " in refusal_of("analyze", good, "--plot", directory)
    assert f"--plot {directory}: " in refusal_of("simulate", "steady", "--plot", directory)


def test_a_store_file_that_exists_stays_as_it_is(good: Path, tmp_path: Path, refusal_of: Refusal) -> None:
    store = tmp_path / "store"
    store.write_bytes(b"somebody's")
    assert f"--store-file {store}: exists already" in refusal_of("analyze", good, "--store-file", store)
    assert store.read_bytes() == b"somebody's"


def test_a_line_break_in_an_option_does_not_break_the_line(good: Path, refusal_of: Refusal) -> None:
    assert r"a\nb.gif" in refusal_of("analyze", good, "--plot", "a\nb.gif")
    assert r"--a\nb" in refusal_of("analyze", good, "--a\nb")


def test_another_process_s_exit_code_and_output_are_the_same(tmp_path: Path, good: Path) -> None:
    bad = tmp_path / "bad.raw"
    bad.write_bytes(GOOD[:-1])
    assert f"{bad}: has {len(GOOD) - 1} bytes" in refusal_of_process("analyze", good, bad, good)
    assert "k * s is over" in refusal_of_process("analyze", good, "-k", "32", "-s", "32")
    assert "expected one argument" in refusal_of_process("analyze", good, "--plot")
