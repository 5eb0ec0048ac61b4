# SPDX-License-Identifier: GPL-2.0-or-later
"""An open connection to the hypervisor: hypercalls, their errors, and nothing of what they are for."""

import os
from contextlib import suppress
from dataclasses import dataclass
from errno import EACCES, ENODEV, ENOENT, EPERM
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from diffengine.errors import DiffengineError
from diffengine.hypervisor.xen.libraries import Libraries, XenUnavailableError, load, running_version

PRIVCMD = "/dev/xen/privcmd"
FEATURES = Path("/sys/hypervisor/properties/features")
# XENFEAT_dom0 of xen/features.h.
FEATURE_DOM0 = 1 << 11

DOM0 = 0
# How the UUID of the pager's store domain begins: DE_STORE_DOMAIN_PREFIX of hypervisor.h.
STORE_DOMAIN_PREFIX = b"DEstore\n"
# Never a domain's: what is asked of it is refused, after the question whether Xen knows the request at all.
NO_DOMAIN = 0x7FF4

XTL_CRITICAL = 9
XENVER_COMMANDLINE = 9
COMMANDLINE_BYTES = 1024

DOMINF_DYING = 1 << 0
DOMINF_HVM = 1 << 1
DOMINF_SHUTDOWN = 1 << 2
DOMINF_XENSTORE = 1 << 7
DOMINF_HAP = 1 << 8
# XEN_X86_EMU_VGA: an HVM domain, whose devices a device model emulates; PVH domains do without.
EMULATION_VGA = 1 << 6

# A vCPU's registers as Xen saves them: struct hvm_hw_cpu, and where its cr0 is.
CPU_RECORD = 2
CPU_RECORD_BYTES = 4096
CR0 = 656
CR0_PAGING = 1 << 31

PHYSCAP_HAP = 1 << 3
PHYSCAP_IOMMU = 1 << 2
DOMAINS_PER_CALL = 256


class XenError(DiffengineError):
    """A hypercall failed. error: the errno value."""

    def __init__(self, doing: str, error: int) -> None:
        super().__init__(f"{doing}: {os.strerror(error)}")
        self.error = error


@dataclass(frozen=True)
class XenDomain:
    """xc_domaininfo_t: a domain as the hypervisor has it.

    emulated: it has a device model's devices (HVM); hvm without it is PVH. pages, max_pages: frames it has now, and may
    have. shared, paged: its gfns that share a frame, or are out. shut_down: also if it is suspended.
    """

    domid: int
    uuid: UUID
    hvm: bool
    emulated: bool
    hap: bool
    dying: bool
    xenstore: bool
    pages: int
    max_pages: int
    outstanding_pages: int
    shared: int
    paged: int
    vcpus: int
    shut_down: bool = False

    @property
    def is_store(self) -> bool:
        """The pager's store lies in its frames (native/xen/store_domain.c); it is no guest."""
        return self.uuid.bytes.startswith(STORE_DOMAIN_PREFIX)


@dataclass(frozen=True)
class PhysicalMemory:
    """xc_physinfo_t, in pages. claimed: free, but promised to some domain."""

    total: int
    free: int
    scrub: int
    claimed: int
    cpus: int
    hap: bool
    iommu: bool


def is_dom0() -> bool:
    try:
        return bool(int(FEATURES.read_text(), 16) & FEATURE_DOM0)
    except (OSError, ValueError):
        return False


def refusal_to_open(error: int) -> XenUnavailableError:
    """Why /dev/xen/privcmd did not open, and what to do."""
    if error in (EACCES, EPERM):
        return XenUnavailableError(f"{PRIVCMD}: {os.strerror(error)}; run this as root")
    if error in (ENOENT, ENODEV):
        return XenUnavailableError(
            f"{PRIVCMD} is not there; run this in dom0, and load its module: modprobe xen-privcmd"
        )
    return XenUnavailableError(f"{PRIVCMD}: {os.strerror(error)}; run this as root in dom0")


class Connection:
    """Handles of libxenctrl and libxenforeignmemory; close it. Any thread may use it."""

    def __init__(self, version: str | None = None) -> None:
        """For the Xen that runs, unless another version is named. Raises XenUnavailableError."""
        self._libraries = load(version or running_version())
        self._handles: list[tuple[Any, Any]] = []
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        libraries = self._libraries
        # What goes wrong is said by us; the libraries' own lines on stderr would say it once more.
        logger = libraries.toollog.xtl_createlogger_stdiostream(libraries.libc.stderr, XTL_CRITICAL, 0)
        self._logger = libraries.ffi.cast("xentoollog_logger *", logger)
        self._handles.append((libraries.toollog.xtl_logger_destroy, self._logger))
        self.xc = libraries.xenctrl.xc_interface_open(self._logger, self._logger, 0)
        if not self.xc:
            raise refusal_to_open(libraries.ffi.errno)
        self._handles.append((libraries.xenctrl.xc_interface_close, self.xc))
        self.memory = libraries.foreignmemory.xenforeignmemory_open(self._logger, 0)
        if not self.memory:
            raise refusal_to_open(libraries.ffi.errno)
        self._handles.append((libraries.foreignmemory.xenforeignmemory_close, self.memory))

    def close(self) -> None:
        """No mapping may be in use any more."""
        while self._handles:
            free, handle = self._handles.pop()
            free(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def libraries(self) -> Libraries:
        return self._libraries

    def call(self, name: str, *arguments: Any, doing: str) -> int:
        """libxenctrl's function of that name on this connection. Raises XenError if it returns less than 0."""
        result = self.attempt(name, *arguments)
        if result < 0:
            raise XenError(doing, -result)
        return result

    def attempt(self, name: str, *arguments: Any) -> int:
        """The same; errors are negative errno values."""
        if not self._handles:
            raise XenError(f"calling {name}", ENODEV)
        result = int(getattr(self._libraries.xenctrl, name)(self.xc, *arguments))
        return result if result >= 0 else -int(self._libraries.ffi.errno)

    def command_line(self) -> str:
        """The hypervisor's own."""
        text = self._libraries.ffi.new("char[]", COMMANDLINE_BYTES)
        self.call("xc_version", XENVER_COMMANDLINE, text, doing="reading Xen's command line")
        return bytes(self._libraries.ffi.string(text)).decode(errors="replace")

    def physical_memory(self) -> PhysicalMemory:
        info = self._libraries.ffi.new("struct xen_sysctl_physinfo *")
        self.call("xc_physinfo", info, doing="asking Xen for its memory")
        return PhysicalMemory(
            total=int(info.total_pages),
            free=int(info.free_pages),
            scrub=int(info.scrub_pages),
            claimed=int(info.outstanding_pages),
            cpus=int(info.nr_cpus),
            hap=bool(info.capabilities & PHYSCAP_HAP),
            iommu=bool(info.capabilities & PHYSCAP_IOMMU),
        )

    def domains(self) -> tuple[XenDomain, ...]:
        """All that exist now, dom0 included."""
        found: list[XenDomain] = []
        infos = self._libraries.ffi.new("struct xen_domctl_getdomaininfo[]", DOMAINS_PER_CALL)
        first = 0
        while True:
            count = self.call("xc_domain_getinfolist", first, DOMAINS_PER_CALL, infos, doing="listing domains")
            found += [_domain(infos[i]) for i in range(count)]
            if count < DOMAINS_PER_CALL:
                return tuple(found)
            first = found[-1].domid + 1

    def highest_gfn(self, domid: int) -> int:
        """Of all that the domain's physical address space has something at."""
        gfn = self._libraries.ffi.new("uint64_t *")
        self.call("xc_domain_maximum_gpfn", domid, gfn, doing=f"asking for the memory of domain {domid}")
        return int(gfn[0])

    def translates(self, domain: XenDomain) -> bool:
        """Whether one of its vCPUs has turned paging on."""
        registers = self._libraries.ffi.new("uint8_t[]", CPU_RECORD_BYTES)
        for vcpu in range(domain.vcpus):
            record = (CPU_RECORD, vcpu, registers, CPU_RECORD_BYTES)
            if self.attempt("xc_domain_hvm_getcontext_partial", domain.domid, *record) < 0:
                return False
            if int.from_bytes(bytes(registers[CR0 : CR0 + 8]), "little") & CR0_PAGING:
                return True
        return False

    def populate_on_demand(self, domid: int) -> int:
        """Pages of the domain that have no frame yet, and will get one when they are touched."""
        ffi = self._libraries.ffi
        total, cached, entries = (ffi.new("uint64_t *") for _ in range(3))
        doing = f"asking for populate-on-demand of domain {domid}"
        self.call("xc_domain_get_pod_target", domid, total, cached, entries, doing=doing)
        return int(entries[0])

    def vcpu_is_pinned(self, domid: int, vcpu: int, cpus: int) -> bool:
        """Whether it may run on some of the CPUs only."""
        size = self.call("xc_get_cpumap_size", doing="asking for the number of CPUs")
        hard, soft = (self._libraries.ffi.new("uint8_t[]", size) for _ in range(2))
        doing = f"asking where vCPU {vcpu} of domain {domid} may run"
        # 1: XEN_VCPUAFFINITY_HARD
        self.call("xc_vcpu_getaffinity", domid, vcpu, hard, soft, 1, doing=doing)
        allowed = int.from_bytes(bytes(self._libraries.ffi.buffer(hard)), "little")
        return (allowed & ((1 << cpus) - 1)).bit_count() < cpus

    def sharing_counts(self) -> tuple[int, int]:
        """Frames that gfns share, and frames that this saves."""
        frames, saved = self.attempt("xc_sharing_used_frames"), self.attempt("xc_sharing_freed_pages")
        return max(frames, 0), max(saved, 0)

    def destroy(self, domid: int) -> None:
        with suppress(XenError):
            self.call("xc_domain_destroy", domid, doing=f"destroying domain {domid}")


def _domain(info: Any) -> XenDomain:
    flags = int(info.flags)
    return XenDomain(
        domid=int(info.domain),
        uuid=UUID(bytes=bytes(info.handle)),
        hvm=bool(flags & DOMINF_HVM),
        emulated=bool(flags & DOMINF_HVM and info.arch_config.emulation_flags & EMULATION_VGA),
        hap=bool(flags & DOMINF_HAP),
        dying=bool(flags & DOMINF_DYING),
        xenstore=bool(flags & DOMINF_XENSTORE),
        pages=int(info.tot_pages),
        max_pages=int(info.max_pages),
        outstanding_pages=int(info.outstanding_pages),
        shared=int(info.shr_pages),
        paged=int(info.paged_pages),
        vcpus=int(info.nr_online_vcpus),
        shut_down=bool(flags & DOMINF_SHUTDOWN),
    )
