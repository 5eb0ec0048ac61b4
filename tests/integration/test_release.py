# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine release`: a domain's pages come back and stay, while the daemon is connected; and what it refuses."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_pager_client import GFNS, System, domids, evict

from command import diffengine, refusal_of
from diffengine.errors import DiffengineError
from diffengine.hypervisor.protocol import Outcome


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    made = System(tmp_path)
    yield made
    made.close()


def release(system: System, *arguments: str) -> str:
    done = diffengine("release", str(system.domid), "--state", system.state, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_everything_comes_back_and_the_pager_keeps_off_until_it_is_undone(system: System) -> None:
    system.pager.add_domain(system.domid, GFNS)
    gfns = np.arange(500, dtype=np.uint32)
    evict(system, gfns)
    assert (system.pager.watch(domids(system, 100), gfns[:100] + 900) == Outcome.DONE).any()
    assert "500 pages came back" in release(system)
    assert system.used_frames() == GFNS
    assert (system.read_guest(gfns) == system.pages[:500]).all()
    assert (system.pager.watch(domids(system, 5), gfns[:5]) == Outcome.NO_DOMAIN).all()
    with pytest.raises(DiffengineError, match=f"it was released: diffengine release --undo {system.domid}"):
        system.pager.add_domain(system.domid, GFNS)
    release(system, "--undo")
    system.pager.add_domain(system.domid, GFNS)
    evict(system, gfns)
    assert system.used_frames() == GFNS - 500


def test_a_domain_that_was_never_paged_is_kept_from_it_too_also_by_the_next_pager(system: System) -> None:
    assert "0 pages" in release(system)
    system.pager.close()
    system.pager_process.kill()
    system.pager_process.communicate()
    system.start_pager()
    with pytest.raises(DiffengineError):
        system.pager.add_domain(system.domid, GFNS)
    assert not list(system.state.glob("table-*"))


def test_the_mark_of_another_domain_that_had_the_number_does_not_count(system: System) -> None:
    (system.state / f"released-{system.domid}").write_bytes(os.urandom(16))
    system.pager.add_domain(system.domid, GFNS)


def test_a_host_without_room_refuses_with_numbers_and_the_domain_goes_on(system: System) -> None:
    system.pager.add_domain(system.domid, GFNS)
    gfns = np.arange(700, dtype=np.uint32)
    evict(system, gfns)
    hog = system.fill_memory(leaving=100)
    refusal = refusal_of("release", str(system.domid), "--state", system.state, code=1)
    assert f"domain {system.domid} needs 2." in refusal and "make room first" in refusal
    # It is still paged, so more may go.
    assert (evict(system, np.arange(700, 710, dtype=np.uint32)) >= 0).all()
    system.destroy(hog)
    release(system)
    assert system.used_frames() == GFNS
    assert (system.read_guest(gfns) == system.pages[:700]).all()


def test_what_is_not_there_is_refused(system: System, tmp_path: Path) -> None:
    assert "no domain 999" in refusal_of("release", "999", "--state", system.state, code=1)
    assert "no pager runs" in refusal_of("release", "1", "--state", tmp_path, code=3)
    assert "known on Xen only" in refusal_of("release", "web", "--state", system.state, code=1)
