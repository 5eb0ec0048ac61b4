# SPDX-License-Identifier: GPL-2.0-or-later
"""The pager's code for Xen, called directly by C programs: each operation's contract, and takeover after kill -9."""

import subprocess

import pytest
from guests import Guest
from stack import PROGRAM

KILLS = 50
MIB = 128


def test_every_operation_keeps_its_contract() -> None:
    with Guest.start("guest1", MIB) as guest:
        region = guest.fill("random", 4000, 3)
        run("/opt/rig/xen-operations", str(guest.domid), str(MIB))
        assert guest.check(region).wrong_bytes == 0


@pytest.mark.parametrize("how", ["hidden", "destroyed"])
def test_operations_that_cost_the_guest_its_life(how: str) -> None:
    with Guest.start("guest1", MIB) as guest:
        guest.fill("random", 4000, 3)
        run("/opt/rig/xen-operations", str(guest.domid), str(MIB), how)


def test_a_guest_with_several_vcpus_is_left_alone() -> None:
    with Guest.start("guest1", MIB, vcpus=2) as guest:
        run("/opt/rig/xen-operations", str(guest.domid), str(MIB), "several")


def test_hypercalls_work_while_pages_are_nominated() -> None:
    with Guest.start("guest1", MIB) as guest:
        guest.fill("random", 2000, 3)
        guest.start_load(0, 0, 1000, 20)
        words = ["/opt/rig/xen-operations", str(guest.domid), str(MIB), "standing"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout
            line = next((line for line in program.stdout if line.startswith("nominated")), "")
            print(line)
            load = guest.stop_load()
            print(load)
            assert line
            assert load.reads
            assert load.writes
            assert load.wrong_bytes == 0
            assert guest.check(0).wrong_bytes == 0
            guest.destroy()


def test_pager_killed_at_random_under_load(guests: tuple[Guest, Guest]) -> None:
    for guest in guests:
        guest.fill("identical", 2000, 5)
        guest.fill("similar", 3000, 6, 90)
        guest.fill("words", 3000, 7 + guest.domid)
        guest.start_load(0, 2, 300, 20)
    run("/opt/rig/xen-takeover", str(PROGRAM), str(KILLS), "64", *(str(guest.domid) for guest in guests))
    for guest in guests:
        load = guest.stop_load()
        assert load.reads + load.writes > 1000
        assert load.wrong_bytes == 0
        assert [guest.check(region).wrong_bytes for region in range(3)] == [0, 0, 0]


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
