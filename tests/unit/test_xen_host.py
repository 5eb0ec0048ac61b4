# SPDX-License-Identifier: GPL-2.0-or-later
"""What the Xen host reckons by itself, apart from Xen; tests/xen has the rest, on one that runs."""

from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffengine.hypervisor.xen.connection import STORE_DOMAIN_PREFIX, XenDomain
from diffengine.hypervisor.xen.gather import (
    cpu_vendor,
    nested_paging,
    parse_autoballoon,
    parse_configurations,
    swap_bytes,
)
from diffengine.hypervisor.xen.host import BLOCK, HOLE, in_blocks, may_be_worked_on, memory_gfns, sharing_metadata_bytes

STORE_UUID = UUID(bytes=STORE_DOMAIN_PREFIX + b"12345678")

PVH = XenDomain(
    domid=3,
    uuid=UUID(int=3),
    hvm=True,
    emulated=False,
    hap=True,
    dying=False,
    xenstore=False,
    pages=32768,
    max_pages=33024,
    outstanding_pages=0,
    shared=0,
    paged=0,
    vcpus=1,
)


@given(st.lists(st.integers(0, 0xFFFF_FFFE), max_size=3 * BLOCK))
def test_every_block_of_the_kernels_ends_with_a_hole_and_no_page_is_lost(numbers: list[int]) -> None:
    gfns = np.array(numbers, dtype=np.uint32)
    padded, places = in_blocks(gfns)
    assert padded[places].tolist() == numbers
    assert (padded == HOLE).sum() == len(padded) - len(numbers)
    ends = [min(start + BLOCK, len(padded)) - 1 for start in range(0, len(padded), BLOCK)]
    assert (padded[ends] == HOLE).all()


@pytest.mark.parametrize("count", [0, 1, BLOCK - 2, BLOCK - 1, BLOCK, 2 * (BLOCK - 1), 2 * BLOCK])
def test_one_hole_for_each_block(count: int) -> None:
    padded, _ = in_blocks(np.arange(count, dtype=np.uint32))
    assert len(padded) - count == -(-count // (BLOCK - 1))


def test_special_pages_below_four_gib_do_not_make_a_small_guest_large() -> None:
    assert memory_gfns(PVH, 0xFEFFF) == PVH.max_pages
    assert memory_gfns(PVH, 9999) == 10000


def test_memory_above_four_gib_counts_to_its_end() -> None:
    assert memory_gfns(replace(PVH, max_pages=5 << 18), 0x13FFFF) == 0x140000


@pytest.mark.parametrize(
    "changes",
    [{"domid": 0}, {"hvm": False}, {"hap": False}, {"dying": True}, {"vcpus": 0}, {"uuid": STORE_UUID}],
    ids=str,
)
def test_what_xen_would_refuse_is_not_worked_on(changes: dict[str, object]) -> None:
    assert may_be_worked_on(PVH)
    assert not may_be_worked_on(replace(PVH, **changes))


def test_metadata_is_what_was_measured_on_a_host() -> None:
    """1,024 pairs took 36 frames more than they freed."""
    assert sharing_metadata_bytes(1024, 1024) == 36 * 4096


def test_xls_list_is_read_and_dom0_and_strange_entries_are_passed_over() -> None:
    output = b"""[
      {"domid": 0, "config": {"c_info": {"type": "pv"}}},
      {"domid": 1, "config": {"c_info": {"name": "web", "type": "pvh"}, "b_info": {}}},
      {"domid": 2, "config": {"c_info": {"name": "win", "passthrough": "share_pt"},
                              "b_info": {"device_model_stubdomain": "True"}}},
      {"domid": 3, "config": {"c_info": {"name": "nic"}, "pcidevs": [{"bus": 1}]}},
      7]"""
    found = parse_configurations(output)
    assert {domid: (c.name, c.passthrough, c.stub_device_model) for domid, c in found.items()} == {
        1: ("web", False, False),
        2: ("win", True, True),
        3: ("nic", True, False),
    }


@pytest.mark.parametrize(
    ("text", "setting"),
    [("", "auto"), ('#autoballoon="on"\n', "auto"), ('autoballoon="off"\n', "off"), (" autoballoon = 1", "1")],
)
def test_xls_configuration(text: str, setting: str) -> None:
    assert parse_autoballoon(text) == setting


def test_swap_and_cpu() -> None:
    heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    assert swap_bytes(heading) == 0
    assert swap_bytes(heading + "/dev/sda2 partition\t1024\t\t0\t\t-2\n/a\\040b file 8 0 -3\n") == 1032 << 10
    assert cpu_vendor("processor : 0\nvendor_id\t: AuthenticAMD\n") == "AMD"
    assert nested_paging("flags\t\t: fpu svm npt lbrv\n") and not nested_paging("flags\t\t: fpu svm inept\n")
