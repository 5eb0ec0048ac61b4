# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine check`: from facts, as any host may have them, to findings and the exit code."""

from dataclasses import replace
from errno import EOPNOTSUPP

import pytest

from diffengine.hypervisor.xen.facts import DeviceModel, Dom0Facts, DomainFacts, DomainKind, Facts, HypervisorFacts
from diffengine.hypervisor.xen.findings import Finding, Level, Verdict, judge, verdict
from diffengine.hypervisor.xen.libraries import LibraryFact
from diffengine.hypervisor.xen.probe import Abilities

MIB_PAGES = 256
ABILITIES = Abilities(paging_built=True, sharing_built=True, sharing_error=0, dom0_type="PV", hap=True)
DOM0 = Dom0Facts(
    pages=2048 * MIB_PAGES, max_pages=2048 * MIB_PAGES, autoballoon="off", swap_bytes=0, vcpus=2, pinned_vcpus=2
)
GUEST = DomainFacts(
    domid=1,
    name="web",
    uuid="6f5c1c1e-4e38-4a9c-b5b7-000000000001",
    kind=DomainKind.PVH,
    hap=True,
    vcpus=1,
    pages=128 * MIB_PAGES,
    max_pages=128 * MIB_PAGES + 256,
    paged=0,
    shared=0,
    populate_on_demand=0,
    iommu=False,
    stub_device_model=False,
    device_model=None,
)
HYPERVISOR = HypervisorFacts(
    abilities=ABILITIES,
    command_line="dom0_mem=2048M,max:2048M",
    cpus=4,
    total_pages=8192 * MIB_PAGES,
    free_pages=1024 * MIB_PAGES,
    dom0=DOM0,
    domains=(GUEST,),
)
LIBRARIES = (LibraryFact("libxenctrl.so.4.17", "/usr/lib/libxenctrl.so.4.17.0"),)
READY = Facts(
    xen_version="4.17",
    dom0=True,
    cpu_vendor="Intel",
    nested_paging=True,
    libraries=LIBRARIES,
    refused=None,
    hypervisor=HYPERVISOR,
)


def with_abilities(**changes: object) -> Facts:
    return replace(READY, hypervisor=replace(HYPERVISOR, abilities=replace(ABILITIES, **changes)))


def with_dom0(command_line: str = HYPERVISOR.command_line, **changes: object) -> Facts:
    return replace(READY, hypervisor=replace(HYPERVISOR, command_line=command_line, dom0=replace(DOM0, **changes)))


def with_guest(**changes: object) -> Facts:
    return replace(READY, hypervisor=replace(HYPERVISOR, domains=(replace(GUEST, **changes),)))


def finding(facts: Facts, subject: str, topic: str) -> Finding:
    (found,) = (found for found in judge(facts) if (found.subject, found.topic) == (subject, topic))
    return found


def test_a_host_that_can_do_everything_is_ready_and_has_nothing_to_change() -> None:
    findings = judge(READY)
    assert verdict(findings) is Verdict.READY
    assert [found.change for found in findings if found.change] == []
    assert {found.level for found in findings} == {Level.OK}
    assert "can be paged and shared" in finding(READY, "web", "type").text


NO_XEN = replace(READY, xen_version=None, dom0=False, libraries=(), hypervisor=None)
IMPOSSIBLE = {
    "no Xen": (NO_XEN, "Xen", "diffengine analyze"),
    "a guest": (replace(READY, dom0=False, hypervisor=None), "Xen", "in dom0"),
    "another Xen": (replace(READY, xen_version="4.20", libraries=(), hypervisor=None), "Xen", "use Xen 4.17"),
    "no library": (
        replace(READY, libraries=(LibraryFact("libxenctrl.so.4.17", None),), hypervisor=None),
        "libraries",
        "apt install libxenmisc4.17",
    ),
    "a function missing": (
        replace(READY, libraries=(LibraryFact("libxenctrl.so.4.17", "/lib/x", ("xc_physinfo",)),), hypervisor=None),
        "libraries",
        "belongs to this Xen",
    ),
    "not root": (
        replace(READY, refused="/dev/xen/privcmd: Permission denied; run this as root", hypervisor=None),
        "privileges",
        "run this as root",
    ),
    "Debian's hypervisor": (with_abilities(paging_built=False), "paging", "CONFIG_MEM_PAGING=y"),
    "a PVH dom0": (with_abilities(dom0_type="PVH"), "paging", "as PV"),
    "no nested paging": (with_abilities(hap=False), "paging", "firmware"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_what_makes_it_impossible_says_what_to_change(case: tuple[Facts, str, str]) -> None:
    facts, topic, change = case
    assert verdict(judge(facts)) is Verdict.IMPOSSIBLE
    found = finding(facts, "host", topic)
    assert found.level is Level.OBSTACLE
    assert change in found.change


@pytest.mark.parametrize(
    ("vendor", "nested", "text"),
    [("Intel", True, "page and share"), ("AMD", True, "share on Intel only"), ("AMD", False, "neither")],
)
def test_without_xen_it_says_what_the_cpu_would_allow(vendor: str, nested: bool, text: str) -> None:
    assert text in finding(replace(NO_XEN, cpu_vendor=vendor, nested_paging=nested), "host", "CPU").text


def test_amd_shares_cold_pages_in_the_store_and_is_ready_all_the_same() -> None:
    facts = replace(with_abilities(sharing_error=EOPNOTSUPP), cpu_vendor="AMD")
    found = finding(facts, "host", "sharing")
    assert found.level is Level.NOTE
    assert "AMD" in found.text and "in the store" in found.text
    assert finding(facts, "web", "type").text.endswith("can be paged")
    assert verdict(judge(facts)) is Verdict.READY


def test_the_cpus_name_does_not_decide_what_was_tried() -> None:
    assert finding(replace(READY, cpu_vendor="AMD"), "host", "sharing").level is Level.OK


@pytest.mark.parametrize("changes", [{"sharing_built": False, "sharing_error": None}, {"sharing_error": None}])
def test_sharing_that_is_not_there_or_could_not_be_tried_is_a_limit(changes: dict[str, object]) -> None:
    facts = with_abilities(**changes)
    assert finding(facts, "host", "sharing").level is Level.LIMIT
    assert verdict(judge(facts)) is Verdict.LIMITED


@pytest.mark.parametrize(
    ("command_line", "autoballoon", "level"),
    [
        ("dom0_mem=2G", "auto", Level.OK),
        ("console=com1", "auto", Level.LIMIT),
        ("xdom0_mem=2G", "auto", Level.LIMIT),
        ("dom0_mem=2G", "on", Level.LIMIT),
        ("console=com1", "off", Level.OK),
    ],
)
def test_xl_may_take_the_stores_memory(command_line: str, autoballoon: str, level: Level) -> None:
    assert finding(with_dom0(command_line, autoballoon=autoballoon), "host", "autoballoon").level is level


def test_no_xl_no_ballooning() -> None:
    assert all(found.topic != "autoballoon" for found in judge(with_dom0(autoballoon=None)))


def test_dom0_that_swaps_is_a_risk_and_a_small_or_unpinned_one_is_worth_a_note() -> None:
    assert finding(with_dom0(swap_bytes=1 << 30), "host", "dom0 swap").level is Level.LIMIT
    assert finding(with_dom0(pages=512 * MIB_PAGES), "host", "dom0 memory").level is Level.NOTE
    assert finding(with_dom0(pinned_vcpus=1), "host", "dom0 vCPUs").level is Level.NOTE


LIMITED_GUESTS = {
    "PV": ({"kind": DomainKind.PV, "hap": False}, "type", "pvh"),
    "shadow paging": ({"hap": False}, "hap", "hap = 1"),
    "passthrough": ({"iommu": True}, "passthrough", "pci"),
    "populate on demand": ({"populate_on_demand": 5}, "populate on demand", "memory = maxmem"),
    "several vCPUs": ({"vcpus": 2}, "vCPUs", "vcpus = 1"),
    "stub domain": ({"kind": DomainKind.HVM, "stub_device_model": True}, "stub domain", "override = 0"),
    "QEMU without shim": (
        {"kind": DomainKind.HVM, "device_model": DeviceModel(77, False)},
        "device model",
        "diffengine-device-model",
    ),
}


@pytest.mark.parametrize("case", LIMITED_GUESTS.values(), ids=LIMITED_GUESTS.keys())
def test_a_guest_that_is_left_out_limits_the_host_and_says_what_to_change(
    case: tuple[dict[str, object], str, str],
) -> None:
    changes, topic, change = case
    facts = with_guest(**changes)
    found = finding(facts, "web", topic)
    assert found.level is Level.LIMIT
    assert change in found.change
    assert verdict(judge(facts)) is Verdict.LIMITED


def test_everything_that_is_in_a_guests_way_is_said_at_once() -> None:
    topics = [found.topic for found in judge(with_guest(hap=False, iommu=True, populate_on_demand=1))]
    assert topics[-3:] == ["hap", "passthrough", "populate on demand"]


def test_a_guest_whose_device_model_keeps_holds_is_paged() -> None:
    facts = with_guest(kind=DomainKind.HVM, device_model=DeviceModel(77, True))
    assert "can be paged" in finding(facts, "web", "type").text


def test_what_is_out_and_shared_shows() -> None:
    found = finding(with_guest(pages=127 * MIB_PAGES, paged=MIB_PAGES, shared=7), "web", "type")
    assert "256 pages out, 7 shared" in found.text
    assert "PVH of 128 MiB" in found.text


def test_a_domain_that_never_runs_and_one_that_is_ballooned_down_are_notes() -> None:
    assert finding(with_guest(vcpus=0), "web", "type").level is Level.NOTE
    assert finding(with_guest(pages=64 * MIB_PAGES), "web", "memory").level is Level.NOTE
