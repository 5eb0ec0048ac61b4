# SPDX-License-Identifier: GPL-2.0-or-later
"""What the running hypervisor can do, found out by asking for it where that changes nothing.

Xen does not tell how it was built. But it looks whether it knows a request before it looks for the domain: a request
for a domain that can't exist gives ENOSYS only where the option was left out. Whether the CPU can share shows only on
a domain; one without memory or vCPU is made for it, and destroyed at once.
"""

from dataclasses import dataclass
from errno import ENOSYS
from pathlib import Path

from diffengine.hypervisor.xen.connection import NO_DOMAIN, Connection

GUEST_TYPE = Path("/sys/hypervisor/guest_type")

CDF_HVM = 1 << 0
CDF_HAP = 1 << 1
EMULATION_LAPIC = 1 << 0
DEFAULT = -1


@dataclass(frozen=True)
class Abilities:
    """paging_built, sharing_built: the hypervisor was built with CONFIG_MEM_PAGING, CONFIG_MEM_SHARING.

    sharing_error: what switching sharing on for a domain gave: 0, EOPNOTSUPP where the CPU can't, None: not tried.
    dom0_type: of this kernel, "PV" or "PVH" or "HVM". hap: nested paging.
    """

    paging_built: bool
    sharing_built: bool
    sharing_error: int | None
    dom0_type: str
    hap: bool

    @property
    def paging(self) -> bool:
        """Xen refuses paging under a dom0 that is itself translated (vm_event_domctl)."""
        return self.paging_built and self.dom0_type == "PV" and self.hap

    @property
    def sharing(self) -> bool:
        return self.sharing_built and self.sharing_error == 0


def probe(connection: Connection) -> Abilities:
    handle = connection.libraries.ffi.new("uint64_t *")
    paging = connection.attempt("xc_mem_paging_nominate", NO_DOMAIN, 0)
    sharing = connection.attempt("xc_memshr_nominate_gfn", NO_DOMAIN, 0, handle)
    return Abilities(
        paging_built=paging != -ENOSYS,
        sharing_built=sharing != -ENOSYS,
        sharing_error=_try_to_share(connection) if sharing != -ENOSYS else None,
        dom0_type=kernel_type(),
        hap=connection.physical_memory().hap,
    )


def kernel_type() -> str:
    try:
        return GUEST_TYPE.read_text().strip()
    except OSError:
        return "unknown"


def _try_to_share(connection: Connection) -> int | None:
    ffi = connection.libraries.ffi
    config = ffi.new(
        "struct xen_domctl_createdomain *",
        {
            "flags": CDF_HVM | CDF_HAP,
            "max_vcpus": 1,
            "max_evtchn_port": 1,
            "max_grant_frames": DEFAULT,
            "max_maptrack_frames": DEFAULT,
            "grant_opts": 1,
            "arch": {"emulation_flags": EMULATION_LAPIC},
        },
    )
    domid = ffi.new("uint32_t *")
    if connection.attempt("xc_domain_create", domid, config) < 0:
        return None
    try:
        return -connection.attempt("xc_memshr_control", domid[0], 1)
    finally:
        connection.destroy(int(domid[0]))
