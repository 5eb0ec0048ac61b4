# SPDX-License-Identifier: GPL-2.0-or-later
"""The rig's parts that need no Xen: what is kept and when it is made anew, archives, kernels, verdicts."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest

from xen.rig import died_of_emulator, kernels, qemu, results, simulated
from xen.rig.cache import KEPT, Cache, digest
from xen.rig.errors import RigError
from xen.rig.initramfs import Archive
from xen.rig.processes import NotStartedError, Start, wait_for

ELF = b"\x7fELF" + bytes(range(256)) * 64
CASES = '<testsuites><testsuite><testcase classname="suite.test_a" name="one" time="1.5"/>{}</testsuite></testsuites>'
BAD = '<testcase classname="test_a" name="two" time="2"><{0} message="why">where</{0}></testcase>'


def bz_image(payload: bytes, size: int) -> bytes:
    image = bytearray(0x250)
    image[0x1F1] = 1
    packed = payload + struct.pack("<I", size)
    struct.pack_into("<II", image, 0x248, 0, len(packed))
    return bytes(image).ljust(1024, b"\0") + packed


def lz4_legacy(content: bytes) -> bytes:
    block = lz4.block.compress(content, store_size=False)
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


def test_a_kernel_is_unpacked_from_its_image() -> None:
    assert kernels.unpack(bz_image(lz4_legacy(ELF), len(ELF))) == ELF


@pytest.mark.parametrize("image", [bz_image(lz4_legacy(ELF), len(ELF) - 1), bz_image(b"unknown", 7)])
def test_a_kernel_that_is_not_what_it_says_is_refused(image: bytes) -> None:
    with pytest.raises(RigError):
        kernels.unpack(image)


def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    archive = Archive()
    archive.folder("lib")
    archive.file("lib/odd", b"three")
    archive.program("init", b"#!/bin/sh\n")
    listing = subprocess.run(["cpio", "-idv"], input=archive.content(), capture_output=True, cwd=tmp_path, check=True)
    assert listing.stderr.split()[:3] == [b"lib", b"lib/odd", b"init"]
    assert (tmp_path / "lib/odd").read_bytes() == b"three"
    assert (tmp_path / "init").stat().st_mode & 0o111


def test_an_entry_is_made_once_and_what_fails_leaves_nothing(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("content")

    def fail(folder: Path) -> None:
        make(folder)
        raise RigError("no")

    cache = Cache(tmp_path)
    with pytest.raises(RigError):
        cache.entry("kind", digest("a"), fail)
    assert not list(tmp_path.glob("kind-*")) and not list(tmp_path.glob("*.unfinished"))
    first, second = (cache.entry("kind", digest("a"), make) for _ in range(2))
    assert first == second and (first / "file").read_text() == "content" and len(made) == 2


def test_old_entries_go(tmp_path: Path) -> None:
    for number in range(KEPT + 2):
        Cache(tmp_path).entry("kind", digest(str(number)), lambda folder: None)
    assert len(list(tmp_path.glob("kind-*"))) == KEPT


def test_a_key_follows_every_file_below(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/file").write_text("one")
    before = digest(tmp_path)
    (tmp_path / "below/file").write_text("two")
    changed = digest(tmp_path)
    (tmp_path / "below/file").chmod(0o755)
    assert len({before, changed, digest(tmp_path)}) == 3


def leave(share: Path, verdict: str, more: str) -> None:
    (share / results.VERDICT).write_text(verdict + "\n")
    (share / results.RESULTS).write_text(CASES.format(more))


def test_a_run_passes_only_with_every_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, "PASSED", "")
    assert results.print_table(results.read(tmp_path))
    assert "passed      1.5 s  test_a::one\n1 passed, 0 failed" in capsys.readouterr().out
    for kind in ("failure", "error", "skipped"):
        leave(tmp_path, "FAILED", BAD.format(kind))
        assert not results.print_table(results.read(tmp_path))
    assert "1 passed, 1 failed" in capsys.readouterr().out
    assert not results.print_table([])


def test_a_run_without_its_own_word_is_no_success(tmp_path: Path) -> None:
    leave(tmp_path, "PASSED", BAD.format("failure"))
    with pytest.raises(RigError, match="otherwise"):
        results.read(tmp_path)
    results.forget(tmp_path)
    with pytest.raises(RigError, match="no verdict"):
        results.read(tmp_path)


def shell(script: str, log: Path, start_s: float = 60, whole_s: float = 60) -> int:
    """A machine that has started when it has written "begun" to the log."""
    start = Start(lambda: b"begun" in log.read_bytes(), start_s)
    return wait_for(["sh", "-c", script], log, start, whole_s)


def test_a_machine_that_starts_is_waited_for(tmp_path: Path) -> None:
    assert shell("echo begun; exit 7", tmp_path / "log") == 7
    with pytest.raises(RigError, match="still running") as found:
        shell("echo begun; sleep 600", tmp_path / "log", whole_s=0.1)
    assert not isinstance(found.value, NotStartedError)


@pytest.mark.parametrize("script", ["exit 0", "echo beg; sleep 600"])
def test_a_machine_that_does_not_start_is_another_failure(tmp_path: Path, script: str) -> None:
    with pytest.raises(NotStartedError):
        shell(script, tmp_path / "log", start_s=0.1 if "sleep" in script else 60)


def test_a_machine_does_not_outlive_a_rig_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = (
        "from pathlib import Path; from xen.rig.processes import Start, wait_for; "
        f"wait_for(['sh', '-c', 'echo $$; exec sleep 600'], Path({str(log)!r}), Start(lambda: True, 60), 600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as rig:
        wait_until(lambda: log.is_file() and log.read_text().endswith("\n"))
        rig.kill()
    machine = Path(f"/proc/{int(log.read_text())}/stat")

    def gone() -> bool:
        try:
            return ") Z " in machine.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(gone)


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize(("failures", "boots"), [(0, 1), (qemu.BOOTS - 1, qemu.BOOTS), (qemu.BOOTS, qemu.BOOTS)])
def test_a_boot_that_fails_before_the_script_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, boots: int
) -> None:
    """An emulator that dies early: stands for QEMU, with its options."""
    count, log, fake = tmp_path / "count", tmp_path / "serial.log", tmp_path / "qemu-system-x86_64"
    fake.write_text(
        f"#!/bin/sh\necho boot >> {count}\n[ $(wc -l < {count}) -le {failures} ] || echo 'rig: /run begins' > {log}\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    machine = qemu.Machine(tmp_path, tmp_path, tmp_path, (), tmp_path)
    if failures < qemu.BOOTS:
        qemu.run_script(machine, "/run", "", log, 60)
    else:
        with pytest.raises(NotStartedError):
            qemu.run_script(machine, "/run", "", log, 60)
    assert count.read_text().count("boot") == boots


@pytest.mark.parametrize(("freed_share", "enough"), [(1.0, True), (0.1, False)])
def test_what_xen_got_back_is_held_against_a_simulation_of_the_dumps(
    tmp_path: Path, freed_share: float, enough: bool
) -> None:
    page = bytes(range(256)) * 16
    for name in ("one", "two"):
        (tmp_path / f"{name}.raw").write_bytes(page * 512)
    found = {
        **{"guests": ["one", "two"], "sweeps": 3, "c4_visits": 1},
        **{"allocated_bytes": 4 << 20, "freed_bytes": int(freed_share * (4 << 20)), "store_bytes": 0, "table_bytes": 0},
    }
    (tmp_path / simulated.FOUND).write_text(json.dumps(found))
    assert simulated.compare(tmp_path) == enough
    assert json.loads((tmp_path / simulated.COMPARED).read_text())["simulated"] > 0.5
    assert not list(tmp_path.glob("*.raw")), "dumps are large"


def test_a_run_without_debian_guests_has_nothing_to_compare(tmp_path: Path) -> None:
    assert simulated.compare(tmp_path)


DUMP = """\
(XEN) d36v0 Triple fault - invoking HVM shutdown action 1
(XEN) *** Dumping Dom36 vcpu#0 state: ***
(XEN) ----[ Xen-4.17.5  x86_64  debug=n  Not tainted ]----
(XEN) CPU:    0
(XEN) RIP:    {}
(XEN) RFLAGS: 0000000000000246   CONTEXT: hvm guest (d36v0)
"""
OF_XEN = DUMP.format("e008:[<ffff82d040204505>]")
OF_THE_GUEST = DUMP.format("0010:[<ffffffff8103b16e>]")


def outcomes(**passed: bool) -> list[results.Outcome]:
    return [results.Outcome(f"{module}::one", right, 1.0, "") for module, right in passed.items()]


@pytest.mark.parametrize(
    ("console", "passed", "again"),
    [
        ("suite/test_a.py::one " + OF_XEN, {"test_a": False, "test_b": True}, ["test_a"]),
        ("suite/test_a.py::one " + OF_XEN, {"test_a": True, "test_b": True}, []),
        ("suite/test_a.py::one " + OF_THE_GUEST, {"test_a": False}, []),
        ("suite/test_a.py::one " + OF_XEN + "PASSED suite/test_b.py::one ", {"test_a": True, "test_b": False}, []),
        ("suite/test_a.py::one " + OF_XEN + "suite/test_b.py::one ", {"test_a": False, "test_b": False}, []),
        ("suite/test_a.py::one " + OF_XEN, {"test_a": False, "test_totals": False}, ["test_a", "test_totals"]),
        ("suite/test_a.py::one FAILED", {"test_a": False}, []),
    ],
    ids=["its module", "passed", "guest's own", "other module", "one more failed", "totals with it", "no dump"],
)
def test_what_the_emulator_may_have_done_is_tried_again(
    console: str, passed: dict[str, bool], again: list[str]
) -> None:
    assert died_of_emulator.to_be_tried_again(outcomes(**passed), console) == again


def test_a_second_try_takes_the_place_of_the_first() -> None:
    first, second = outcomes(test_a=False, test_b=True), outcomes(test_a=True)
    assert {test.name: test.passed for test in results.with_second_try(first, second)} == {
        "test_a::one": True,
        "test_b::one": True,
    }
