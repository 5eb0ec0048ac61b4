# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's side on a real Xen: what `check` says, mapping and digests, accounting, claims; and a domain that is
released while the engine works, saved with xl, and given back."""

import errno
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from guests import Guest, xl
from numpy.typing import NDArray
from stack import OPTIONS, STATE, PagerProcess, engine, run_until

from diffengine.engine.policy import Policy, State, Technique
from diffengine.hypervisor.xen import XenHost
from diffengine.hypervisor.xen.connection import XenDomain
from diffengine.native import Digester

DIFFENGINE = [sys.executable, "-m", "diffengine"]
PAGES = 1300  # more than two of the kernel's blocks
OUT_S = 600.0
OUT_PAGES = 300
# Whatever was seen once goes out: here it matters that pages are out, not which.
AT_ONCE = replace(OPTIONS, policy=Policy("compress at once", dict.fromkeys(State, (Technique.COMPRESS,))), dense=False)
SAVED = Path("/tmp/saved")


@pytest.fixture(scope="module")
def regions(guests: tuple[Guest, Guest]) -> list[dict[str, int]]:
    """By guest; the random ones differ."""
    return [
        {
            "identical": guest.fill("identical", PAGES, 7),
            "similar": guest.fill("similar", PAGES, 7, 95),
            "random": guest.fill("random", PAGES, 100 + guest.domid),
        }
        for guest in guests
    ]


def domain(host: XenHost, domid: int) -> XenDomain:
    (found,) = (domain for domain in host.connection.domains() if domain.domid == domid)
    return found


def diffengine(*words: str) -> str:
    done = subprocess.run([*DIFFENGINE, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def test_check_finds_a_host_that_is_ready(guests: tuple[Guest, Guest]) -> None:
    print(diffengine("check"))
    report = json.loads(diffengine("check", "--json"))
    assert report["verdict"] == "ready"
    levels = {(found["subject"], found["topic"]): found["level"] for found in report["findings"]}
    assert levels["host", "paging"] == levels["host", "sharing"] == "ok"
    assert [levels[guest.name, "type"] for guest in guests] == ["ok", "ok"]


def test_the_domain_that_sharing_is_tried_on_is_gone_again(host: XenHost, guests: tuple[Guest, Guest]) -> None:
    assert host.abilities.sharing_error == 0
    expected = {0, *(guest.domid for guest in guests)}
    # Guests of other modules may still be on their way out.
    deadline_s = time.monotonic() + OUT_S
    while (there := {found.domid for found in host.connection.domains()}) != expected:
        assert time.monotonic() < deadline_s, f"domains {there}"
        time.sleep(0.5)


def digests(host: XenHost, guest: Guest, region: int) -> NDArray[np.uint64]:
    gfns = guest.gfns(region)
    found = np.empty(len(gfns), dtype=np.uint64)
    with host.map(guest.domid, gfns) as mapping:
        assert not mapping.errors.any()
        kinds, none = np.empty(len(gfns), dtype=np.uint8), np.empty((len(gfns), 0), dtype=np.uint64)
        Digester(5, 0, 1).digest(mapping.addresses, found, kinds, none)
    return found


def test_equal_pages_of_two_guests_have_equal_digests(
    host: XenHost, guests: tuple[Guest, Guest], regions: list[dict[str, int]]
) -> None:
    one, two = (
        {kind: digests(host, guest, region) for kind, region in of_guest.items()}
        for guest, of_guest in zip(guests, regions, strict=True)
    )
    assert len(np.unique(np.concatenate([one["identical"], two["identical"]]))) == 1
    assert (one["similar"] == two["similar"]).all() and len(np.unique(one["similar"])) > 1
    assert len(np.unique(np.concatenate([one["random"], two["random"]]))) == 2 * PAGES


def test_holes_and_domains_that_are_gone_are_errors_of_their_pages(host: XenHost, guests: tuple[Guest, Guest]) -> None:
    (info,) = (found for found in host.domains() if found.domid == guests[0].domid)
    assert 128 * 256 <= info.gfns <= 129 * 256
    assert not info.device_model
    with host.map(info.domid, np.array([5, info.gfns + 5, 6], dtype=np.uint32)) as mapping:
        assert mapping.errors.tolist() == [0, -errno.EINVAL, 0]
        assert (mapping.addresses == 0).tolist() == [False, True, False]
    with host.map(9999, np.arange(PAGES, dtype=np.uint32)) as mapping:
        assert (mapping.errors == -errno.ESRCH).all() and not mapping.addresses.any()
    with pytest.raises(RuntimeError), host.map(info.domid, np.arange(PAGES, dtype=np.uint32)):
        raise RuntimeError
    assert "/dev/xen/privcmd" not in Path("/proc/self/maps").read_text(), "a mapping was left"


def test_memory_is_what_xl_says(host: XenHost) -> None:
    memory = host.memory()
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in xl("info").splitlines())}
    assert abs(memory.free // 256 - int(info["free_memory"])) <= 1
    assert memory.free + memory.used == memory.frames


def test_claims(host: XenHost, guests: tuple[Guest, Guest]) -> None:
    domid = guests[0].domid
    before = domain(host, domid)
    assert before.max_pages > before.pages
    assert not host.claim(domid, before.pages), "it has as many already"
    assert host.claim(domid, before.max_pages)
    assert host.connection.physical_memory().claimed == before.max_pages - before.pages
    assert host.claim(domid, 0)
    assert host.connection.physical_memory().claimed == 0


def test_a_released_domain_has_everything_back_can_be_saved_and_is_given_back(
    host: XenHost, guests: tuple[Guest, Guest], regions: list[dict[str, int]], pager: PagerProcess
) -> None:
    guest = guests[0]
    with engine(host, AT_ONCE) as (attached, client):
        assert run_until(attached, lambda: domain(host, guest.domid).paged >= OUT_PAGES, OUT_S)
        print(diffengine("release", guest.name, "--state", str(STATE)))
        assert domain(host, guest.domid).paged == 0
        other_out = domain(host, guests[1].domid).paged
        assert run_until(attached, lambda: domain(host, guests[1].domid).paged > other_out, OUT_S)
        assert domain(host, guest.domid).paged == 0, "the engine keeps off"
        xl("save", "-c", guest.name, str(SAVED))
        assert SAVED.stat().st_size > 2 * PAGES * 4096
        SAVED.unlink()
        assert [guest.check(region).wrong_bytes for region in regions[0].values()] == [0, 0, 0]
        diffengine("release", "--undo", guest.name, "--state", str(STATE))
        assert run_until(attached, lambda: domain(host, guest.domid).paged >= OUT_PAGES, OUT_S), "it takes it back"
        assert client.counters().corrupt == 0
    for other, of_guest in zip(guests, regions, strict=True):
        assert [other.check(region).wrong_bytes for region in of_guest.values()] == [0, 0, 0]
