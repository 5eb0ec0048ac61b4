# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine in a process of its own, from Python: started, populated, paged, ended."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffengine.hypervisor.embedded import Pager
from diffengine.hypervisor.machine import MachineError
from diffengine.hypervisor.machine_process import PROGRAM, MachineProcess
from diffengine.hypervisor.programs import ProgramKind, ProgramOptions
from diffengine.hypervisor.protocol import Outcome
from diffengine.native import NONE, EncodeOptions, Encoding, PageEncoder, Store, checksums
from page_fixtures import PAGE, Pages, random_page, text_page

COUNT = 64
PAGES = [text_page(i) if i % 3 else bytes(PAGE) for i in range(COUNT)]


def options(pages: Pages, kind: ProgramKind = ProgramKind.WORKING_SET) -> ProgramOptions:
    return ProgramOptions(
        kind=kind,
        seed=1,
        operations_per_s=20_000,
        content=pages.addresses,
        hot=np.arange(4, dtype=np.uint32),
        excursion_fraction=0.5,
        write_fraction=0.2,
    )


def test_populate_map_account() -> None:
    pages, too_many = Pages(PAGES), Pages(PAGES * 2)
    with MachineProcess(2 * COUNT) as process:
        client = process.connect()
        domid = client.create_domain(pages.addresses)
        assert client.accounting().used == COUNT
        assert client.resident_bytes() == COUNT * PAGE
        assert [domain.domid for domain in client.domains()] == [domid]
        with client.map(domid, np.array([1, 0, COUNT], np.uint32)) as mapping:
            assert mapping.errors.tolist() == [0, 0, -22]
            assert mapping.addresses[2] == 0
            assert checksums(mapping.addresses[:2]).tolist() == checksums(pages.addresses[[1, 0]]).tolist()
            assert client.memory().free == COUNT
            assert client.accounting().mapped == 2
        assert client.accounting().mapped == 0
        with pytest.raises(MachineError, match="no frames left for 64 pages"):
            client.create_domain(too_many.addresses)
        assert client.accounting().used == COUNT
        client.destroy_domain(domid)
        assert client.resident_bytes() == 0
        with pytest.raises(MachineError, match="destroying domain"):
            client.destroy_domain(domid)
        with client.map(domid, np.array([1], np.uint32)) as mapping:
            assert mapping.errors.tolist() == [-3]
        client.close()
        assert process.close() == 0


def test_pager_serves_a_guest_of_another_process() -> None:
    pages = Pages(PAGES)
    with MachineProcess(COUNT + 8) as process, Store(1 << 20) as store:
        client = process.connect()
        domid = client.create_domain(pages.addresses)
        batch = PageEncoder().encode(EncodeOptions(Encoding.LZ4), pages.addresses, np.zeros(COUNT, np.uint64))
        none, objects = np.full(COUNT, NONE, np.uint32), np.full(COUNT, NONE, np.uint32)
        sums, numbers = checksums(pages.addresses), np.arange(COUNT, dtype=np.uint32)
        store.put(batch.addresses(), batch.sizes, batch.encodings, sums, numbers, none, objects)
        pager = Pager(client, store)
        pager.add_domain(domid, COUNT)
        results = pager.evict(np.full(COUNT, domid, np.uint16), numbers, objects)
        assert set(results.tolist()) == {Outcome.DONE}
        assert client.resident_bytes() == 0
        # A second client: the daemon starts guests, the pager serves them.
        daemon = process.connect()
        program = daemon.start_program(domid, options(pages))
        while daemon.read_program(program).reads < 1000:
            time.sleep(0.005)
        result, fault_ns = daemon.stop_program(program)
        assert result.wrong_bytes == 0
        assert result.status == 0
        assert 0 < result.faults <= COUNT
        assert len(fault_ns) == result.faults
        assert pager.statistics().loads == result.faults
        with pytest.raises(MachineError, match="reading program"):
            daemon.read_program(program)
        daemon.close()
        pager.restore(domid)
        pager.close()
        client.close()


def test_wrong_bytes_are_seen() -> None:
    pages, others = Pages(PAGES), Pages([random_page(1)] * COUNT)
    with MachineProcess(COUNT) as process:
        client = process.connect()
        domid = client.create_domain(pages.addresses)
        program = client.start_program(domid, options(others))
        while not client.read_program(program).reads:
            time.sleep(0.005)
        assert client.stop_program(program)[0].wrong_bytes > 1000
        client.close()


def test_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from diffengine.hypervisor.machine_process import MachineProcess\n"
        "process = MachineProcess(4)\n"
        "print(process.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{int(done.stdout)}/exe").is_symlink() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (
        not Path(f"/proc/{int(done.stdout)}/cmdline").exists()
        or not Path(f"/proc/{int(done.stdout)}/cmdline").read_bytes()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage: diffengine-machine"),
        (["--socket", "/nowhere/at/all", "--frames", "1"], "listening at /nowhere/at/all: No such file or directory"),
        (["--socket", "a", "--frames", "0"], "--frames 0: allowed are 1 to 2147483648"),
        (["--socket", "a", "--memory-mib", "4x"], "--memory-mib 4x: allowed are 1 to 8388608"),
        (["--socket", "a", "--memory-mib", "-1"], "--memory-mib -1: allowed"),
        (["--socket", "a", "--frames", "1", "b"], "argument b: not understood"),
        (["--socket", "x" * 200, "--frames", "1"], "File name too long"),
    ],
)
def test_refuses(arguments: list[str], message: str) -> None:
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr
    assert not done.stdout
