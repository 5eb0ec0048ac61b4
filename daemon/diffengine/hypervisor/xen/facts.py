# SPDX-License-Identifier: GPL-2.0-or-later
"""What `diffengine check` knows of a machine before anything is judged: plain data, from gather.py or from a test."""

from dataclasses import dataclass
from enum import StrEnum

from diffengine.hypervisor.xen.libraries import LibraryFact
from diffengine.hypervisor.xen.probe import Abilities


class DomainKind(StrEnum):
    PV = "PV"
    PVH = "PVH"
    HVM = "HVM"


@dataclass(frozen=True)
class DeviceModel:
    """A domain's QEMU in dom0. keeps_holds: it tells the pager which pages it maps (holds.h)."""

    pid: int
    keeps_holds: bool


@dataclass(frozen=True)
class DomainFacts:
    """One domain other than dom0. pages, max_pages: frames that it has, and may have.

    populate_on_demand: pages that will get their frame on the first touch. iommu, stub_device_model: None where the
    toolstack's configuration can't be had. vcpus: those online; a domain without any never runs.
    """

    domid: int
    name: str
    uuid: str
    kind: DomainKind
    hap: bool
    vcpus: int
    pages: int
    max_pages: int
    paged: int
    shared: int
    populate_on_demand: int
    iommu: bool | None
    stub_device_model: bool | None
    device_model: DeviceModel | None


@dataclass(frozen=True)
class Dom0Facts:
    """dom0's own memory and vCPUs. autoballoon: what xl.conf says ("auto" where it says nothing), None: there is no xl.

    max_pages: how far it may be ballooned up. swap_bytes: of the system.
    """

    pages: int
    max_pages: int
    autoballoon: str | None
    swap_bytes: int
    vcpus: int
    pinned_vcpus: int


@dataclass(frozen=True)
class HypervisorFacts:
    """What a connection to the hypervisor tells. Memory in pages."""

    abilities: Abilities
    command_line: str
    cpus: int
    total_pages: int
    free_pages: int
    dom0: Dom0Facts
    domains: tuple[DomainFacts, ...]


@dataclass(frozen=True)
class Facts:
    """xen_version: None: no Xen under this kernel. dom0: this is dom0, not a guest on Xen.

    libraries: empty if this version is not supported. refused: why no connection could be had; then there is no
    hypervisor. cpu_vendor, nested_paging: from /proc/cpuinfo, which under Xen shows what Xen lets dom0 see.
    """

    xen_version: str | None
    dom0: bool
    cpu_vendor: str
    nested_paging: bool
    libraries: tuple[LibraryFact, ...]
    refused: str | None
    hypervisor: HypervisorFacts | None
