# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's libraries: which ones, of which version, with which functions. The one place that knows.

They are opened at run time (cffi in ABI mode), so that one build of diffengine runs wherever they are. Their structures
differ from one Xen to the next: only versions that were tried are in SUPPORTED, and anything else is refused here.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cffi import FFI

from diffengine.errors import DiffengineError

VERSION_FOLDER = Path("/sys/hypervisor/version")
HYPERVISOR_TYPE = Path("/sys/hypervisor/type")

# Part of every Xen that is in SUPPORTED: xenctrl.h, xentoollog.h, xenforeignmemory.h and the public headers.
COMMON = """
typedef struct _IO_FILE FILE;
extern FILE *stderr;
typedef struct xentoollog_logger xentoollog_logger;
xentoollog_logger *xtl_createlogger_stdiostream(FILE *f, int min_level, unsigned flags);
void xtl_logger_destroy(xentoollog_logger *logger);

typedef struct xc_interface xc_interface;
xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild_logger, unsigned open_flags);
int xc_interface_close(xc_interface *xch);
int xc_version(xc_interface *xch, int cmd, void *arg);

typedef struct xenforeignmemory_handle xenforeignmemory_handle;
xenforeignmemory_handle *xenforeignmemory_open(xentoollog_logger *logger, unsigned open_flags);
int xenforeignmemory_close(xenforeignmemory_handle *fmem);
void *xenforeignmemory_map(xenforeignmemory_handle *fmem, uint32_t dom, int prot, size_t pages, const uint64_t *arr,
                           int *err);
int xenforeignmemory_unmap(xenforeignmemory_handle *fmem, void *addr, size_t pages);
"""

# xenctrl.h and the structures of XEN_DOMCTL_INTERFACE_VERSION 0x15 and XEN_SYSCTL_INTERFACE_VERSION 0x15.
XENCTRL_4_17 = """
struct xen_arch_domainconfig {
    uint32_t emulation_flags;
    uint32_t misc_flags;
};
struct xen_domctl_getdomaininfo {
    uint16_t domain;
    uint16_t pad1;
    uint32_t flags;
    uint64_t tot_pages;
    uint64_t max_pages;
    uint64_t outstanding_pages;
    uint64_t shr_pages;
    uint64_t paged_pages;
    uint64_t shared_info_frame;
    uint64_t cpu_time;
    uint32_t nr_online_vcpus;
    uint32_t max_vcpu_id;
    uint32_t ssidref;
    uint8_t handle[16];
    uint32_t cpupool;
    uint8_t gpaddr_bits;
    uint8_t pad2[7];
    struct xen_arch_domainconfig arch_config;
};
struct xen_domctl_createdomain {
    uint32_t ssidref;
    uint8_t handle[16];
    uint32_t flags;
    uint32_t iommu_opts;
    uint32_t max_vcpus;
    uint32_t max_evtchn_port;
    int32_t max_grant_frames;
    int32_t max_maptrack_frames;
    uint32_t grant_opts;
    uint32_t vmtrace_size;
    uint32_t cpupool_id;
    struct xen_arch_domainconfig arch;
};
struct xen_sysctl_physinfo {
    uint32_t threads_per_core;
    uint32_t cores_per_socket;
    uint32_t nr_cpus;
    uint32_t max_cpu_id;
    uint32_t nr_nodes;
    uint32_t max_node_id;
    uint32_t cpu_khz;
    uint32_t capabilities;
    uint32_t arch_capabilities;
    uint32_t pad;
    uint64_t total_pages;
    uint64_t free_pages;
    uint64_t scrub_pages;
    uint64_t outstanding_pages;
    uint64_t max_mfn;
    uint32_t hw_cap[8];
};
int xc_physinfo(xc_interface *xch, struct xen_sysctl_physinfo *info);
int xc_domain_getinfolist(xc_interface *xch, uint32_t first_domain, unsigned int max_domains,
                          struct xen_domctl_getdomaininfo *info);
int xc_domain_create(xc_interface *xch, uint32_t *pdomid, struct xen_domctl_createdomain *config);
int xc_domain_destroy(xc_interface *xch, uint32_t domid);
int xc_domain_maximum_gpfn(xc_interface *xch, uint32_t domid, uint64_t *gpfns);
int xc_domain_claim_pages(xc_interface *xch, uint32_t domid, unsigned long nr_pages);
int xc_domain_get_pod_target(xc_interface *xch, uint32_t domid, uint64_t *tot_pages, uint64_t *pod_cache_pages,
                             uint64_t *pod_entries);
int xc_get_cpumap_size(xc_interface *xch);
int xc_vcpu_getaffinity(xc_interface *xch, uint32_t domid, int vcpu, uint8_t *hard, uint8_t *soft, uint32_t flags);
int xc_domain_hvm_getcontext_partial(xc_interface *xch, uint32_t domid, uint16_t typecode, uint16_t instance,
                                     void *ctxt_buf, uint32_t size);
int xc_mem_paging_nominate(xc_interface *xch, uint32_t domid, uint64_t gfn);
int xc_memshr_control(xc_interface *xch, uint32_t domid, int enable);
int xc_memshr_nominate_gfn(xc_interface *xch, uint32_t domid, unsigned long gfn, uint64_t *handle);
long xc_sharing_freed_pages(xc_interface *xch);
long xc_sharing_used_frames(xc_interface *xch);

struct xc_hypercall_buffer {
    void *hbuf;
    struct xc_hypercall_buffer *param_shadow;
    int dir;
    void *ubuf;
    size_t sz;
};
void *xc__hypercall_buffer_alloc_pages(xc_interface *xch, struct xc_hypercall_buffer *b, int nr_pages);
void xc__hypercall_buffer_free_pages(xc_interface *xch, struct xc_hypercall_buffer *b, int nr_pages);
struct xc_shadow_op_stats {
    uint32_t fault_count;
    uint32_t dirty_count;
};
int xc_shadow_control(xc_interface *xch, uint32_t domid, unsigned int sop, unsigned int *mb, unsigned int mode);
long long xc_logdirty_control(xc_interface *xch, uint32_t domid, unsigned int sop,
                              struct xc_hypercall_buffer *dirty_bitmap, unsigned long pages, unsigned int mode,
                              struct xc_shadow_op_stats *stats);
"""

# By version of Xen: what its libxenctrl offers. A version is added when diffengine was booted on it.
SUPPORTED = {"4.17": XENCTRL_4_17}

# Those whose names do not change with Xen's version. libxencall comes with libxenctrl.
STABLE_LIBRARIES = ("libxentoollog.so.1", "libxenforeignmemory.so.1")
PACKAGES = "libxenmisc4.17 libxenforeignmemory1 libxentoollog1"


class XenUnavailableError(DiffengineError):
    """This machine is not a Xen host, or lacks something that makes it one we can work on: what, and what to do."""


@dataclass(frozen=True)
class Libraries:
    """Open libraries. `xenctrl` and the others are cffi's; `ffi` makes their structures."""

    version: str
    ffi: Any
    xenctrl: Any
    foreignmemory: Any
    toollog: Any
    libc: Any


@dataclass(frozen=True)
class LibraryFact:
    """One library as it was found. path: None if it is not there. missing: functions that it does not have."""

    name: str
    path: str | None
    missing: tuple[str, ...] = ()


def running_version() -> str | None:
    """Of the hypervisor under this kernel, as "4.17"; None if there is no Xen."""
    try:
        if HYPERVISOR_TYPE.read_text().strip() != "xen":
            return None
        major, minor = ((VERSION_FOLDER / part).read_text().strip() for part in ("major", "minor"))
    except OSError:
        return None
    return f"{int(major)}.{int(minor)}"


def names(version: str) -> tuple[str, ...]:
    return (f"libxenctrl.so.{version}", *STABLE_LIBRARIES)


def _functions(declarations: str, prefix: str) -> tuple[str, ...]:
    return tuple(sorted(set(re.findall(rf"\b({prefix}\w+)\(", declarations))))


# Which functions are looked for in which library.
PREFIXES = {"libxenctrl": "xc_", "libxentoollog": "xtl_", "libxenforeignmemory": "xenforeignmemory_"}


def look(version: str) -> tuple[LibraryFact, ...]:
    """What is there of the libraries for this version of Xen."""
    ffi = FFI()
    declarations = COMMON + SUPPORTED[version]
    ffi.cdef(declarations)
    facts = []
    for name in names(version):
        try:
            library = ffi.dlopen(name)
        except OSError:
            facts.append(LibraryFact(name, None))
            continue
        wanted = _functions(declarations, PREFIXES[name.split(".")[0]])
        missing = tuple(function for function in wanted if not hasattr(library, function))
        facts.append(LibraryFact(name, _path_of(name), missing))
    return tuple(facts)


def _path_of(name: str) -> str | None:
    """Where the loader found an open library."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if path.startswith("/") and Path(path).name.startswith(name):
            return path
    return None


def supported(version: str | None) -> str:
    """The version, if it is one that we know."""
    if version is None:
        raise XenUnavailableError("this machine does not run on Xen; run this in dom0 of a Xen host")
    if version not in SUPPORTED:
        raise XenUnavailableError(
            f"this is Xen {version}, and diffengine was only tried on {', '.join(SUPPORTED)}, whose structures differ; "
            f"use one of these"
        )
    return version


def refuse_libraries(facts: tuple[LibraryFact, ...]) -> None:
    absent = [fact.name for fact in facts if fact.path is None]
    if absent:
        raise XenUnavailableError(f"{', '.join(absent)} is not installed; on Debian: apt install {PACKAGES}")
    for fact in facts:
        if fact.missing:
            raise XenUnavailableError(
                f"{fact.path} has no {', '.join(fact.missing)}; install the one that belongs to this Xen"
            )


@cache
def load(version: str | None) -> Libraries:
    """Opens the libraries for a version of Xen. Raises XenUnavailableError if they are not there, or lack something."""
    version = supported(version)
    refuse_libraries(look(version))
    ffi = FFI()
    ffi.cdef(COMMON + SUPPORTED[version])
    xenctrl, toollog, foreignmemory = (ffi.dlopen(name) for name in names(version))
    return Libraries(version, ffi, xenctrl, foreignmemory, toollog, ffi.dlopen(None))
