# SPDX-License-Identifier: GPL-2.0-or-later
"""From facts to findings: what a host and each of its domains can do, and what to change. Decides, asks nobody."""

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from errno import EOPNOTSUPP

from diffengine.hypervisor.xen.facts import Dom0Facts, DomainFacts, DomainKind, Facts, HypervisorFacts
from diffengine.hypervisor.xen.libraries import PACKAGES, SUPPORTED

PAGE_BYTES = 4096
MIB = 1 << 20
PAGES_PER_MIB = MIB // PAGE_BYTES
# xl's own slack on what a domain may have beyond its memory (LIBXL_MAXMEM_CONSTANT), and pages that Xen's tools add.
SLACK_PAGES = 1024
# dom0 holds the store unless a store domain does; with less it starts to swap soon.
SMALL_DOM0_MIB = 1024
# What xl takes for a fixed dom0 (auto_autoballoon in xl.c), in short.
FIXED_DOM0 = re.compile(r"(^| )dom0_mem=")

SEVERAL_VCPUS = "vcpus = 1, or Xen with docs/several-vcpus.patch and the pager's --several-vcpus (docs/xen.md says why)"
REBUILD = "rebuild the hypervisor with CONFIG_EXPERT, CONFIG_UNSUPPORTED and {option}=y (docs/xen.md says how)"


class Level(IntEnum):
    """NOTE: good to know. LIMIT: something can't be saved, or is at risk. OBSTACLE: nothing can be done here."""

    OK = 0
    NOTE = 1
    LIMIT = 2
    OBSTACLE = 3


class Verdict(StrEnum):
    """READY: this host, and each of its domains that runs, can be worked on in full."""

    READY = "ready"
    LIMITED = "limited"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True)
class Finding:
    """One line. subject: "host", or the domain's name. change: what to do, "" if there is nothing to do."""

    subject: str
    topic: str
    level: Level
    text: str
    change: str = ""


HOST = "host"


def judge(facts: Facts) -> tuple[Finding, ...]:
    """All findings, the host's first."""
    found = _machine(facts)
    if facts.hypervisor is not None:
        found += _hypervisor(facts, facts.hypervisor) + _dom0(facts.hypervisor)
        paging, sharing = facts.hypervisor.abilities.paging, facts.hypervisor.abilities.sharing
        for domain in facts.hypervisor.domains:
            found += _domain(domain, paging, sharing)
    return tuple(found)


def verdict(findings: tuple[Finding, ...]) -> Verdict:
    """An obstacle on a domain limits the host, on the host it ends the matter."""
    if any(finding.level is Level.OBSTACLE and finding.subject == HOST for finding in findings):
        return Verdict.IMPOSSIBLE
    return Verdict.LIMITED if any(finding.level >= Level.LIMIT for finding in findings) else Verdict.READY


def _machine(facts: Facts) -> list[Finding]:
    """Whether there is a Xen that we can speak to."""
    if facts.xen_version is None:
        text = "this kernel does not run on Xen, so there are no domains to work on"
        change = (
            "boot Xen and run this in dom0; meanwhile `diffengine analyze` says what memory images would save, and "
            "`diffengine simulate` runs guests without Xen"
        )
        return [Finding(HOST, "Xen", Level.OBSTACLE, text, change), _processor(facts)]
    if not facts.dom0:
        text = f"this is a guest on Xen {facts.xen_version}, not dom0"
        return [Finding(HOST, "Xen", Level.OBSTACLE, text, "run this in dom0 of that host")]
    if facts.xen_version not in SUPPORTED:
        text = f"Xen {facts.xen_version}: diffengine was only tried on {', '.join(SUPPORTED)}, and structures differ"
        return [Finding(HOST, "Xen", Level.OBSTACLE, text, f"use Xen {' or '.join(SUPPORTED)}")]
    return [Finding(HOST, "Xen", Level.OK, f"Xen {facts.xen_version}, and this is dom0"), *_libraries(facts)]


def _processor(facts: Facts) -> Finding:
    """What Xen could do on this CPU, if it were there."""
    if not facts.nested_paging:
        text = f"{facts.cpu_vendor}, on which Linux sees no nested paging: Xen could neither page nor share here"
        return Finding(
            HOST, "CPU", Level.NOTE, text, "switch virtualization on in the firmware, or use another machine"
        )
    can = "page and share" if facts.cpu_vendor == "Intel" else "page; live pages share on Intel only"
    return Finding(HOST, "CPU", Level.NOTE, f"{facts.cpu_vendor} with nested paging: Xen could {can}")


def _libraries(facts: Facts) -> list[Finding]:
    found = []
    for library in facts.libraries:
        if library.path is None:
            text = f"{library.name} is not installed"
            found.append(Finding(HOST, "libraries", Level.OBSTACLE, text, f"on Debian: apt install {PACKAGES}"))
        elif library.missing:
            text = f"{library.path} has no {', '.join(library.missing)}"
            found.append(Finding(HOST, "libraries", Level.OBSTACLE, text, "install the one that belongs to this Xen"))
        else:
            found.append(Finding(HOST, "libraries", Level.OK, f"{library.path} has all functions that are needed"))
    if facts.refused is not None:
        what, _, change = facts.refused.partition("; ")
        found.append(Finding(HOST, "privileges", Level.OBSTACLE, what, change))
    return found


def _hypervisor(facts: Facts, hypervisor: HypervisorFacts) -> list[Finding]:
    return [_paging(hypervisor), _sharing(facts, hypervisor)]


def _paging(hypervisor: HypervisorFacts) -> Finding:
    abilities = hypervisor.abilities
    if not abilities.paging_built:
        text = "the hypervisor was built without CONFIG_MEM_PAGING, as Debian's is: no page can be taken from a guest"
        return Finding(HOST, "paging", Level.OBSTACLE, text, REBUILD.format(option="CONFIG_MEM_PAGING"))
    if abilities.dom0_type != "PV":
        text = f"dom0 is {abilities.dom0_type}, under which Xen refuses paging"
        return Finding(HOST, "paging", Level.OBSTACLE, text, "boot dom0 as PV: remove dom0=pvh from Xen's command line")
    if not abilities.hap:
        text = "Xen finds no nested paging (EPT, NPT), without which no domain can be paged"
        return Finding(HOST, "paging", Level.OBSTACLE, text, "switch it on in the firmware, and hap=0 off")
    return Finding(HOST, "paging", Level.OK, "built in: cold pages can be patched, compressed and swapped")


def _sharing(facts: Facts, hypervisor: HypervisorFacts) -> Finding:
    abilities = hypervisor.abilities
    cold = "equal pages that are cold are still kept once, in the store"
    if not abilities.sharing_built:
        text = f"the hypervisor was built without CONFIG_MEM_SHARING: live pages can't share frames; {cold}"
        return Finding(HOST, "sharing", Level.LIMIT, text, REBUILD.format(option="CONFIG_MEM_SHARING"))
    if abilities.sharing_error == EOPNOTSUPP:
        text = f"Xen shares on Intel only, and this CPU is {facts.cpu_vendor}: live pages can't share frames; {cold}"
        return Finding(HOST, "sharing", Level.NOTE, text)
    if not abilities.sharing:
        text = "could not be tried, as Xen made no domain to try it on"
        return Finding(HOST, "sharing", Level.LIMIT, text, "see `xl dmesg` for what Xen says of it")
    return Finding(HOST, "sharing", Level.OK, "built in, and tried on this CPU: equal pages can share frames")


def _dom0(hypervisor: HypervisorFacts) -> list[Finding]:
    dom0 = hypervisor.dom0
    return [_memory(hypervisor), *_balloon(hypervisor), _swap(dom0), _pinning(hypervisor)]


def _memory(hypervisor: HypervisorFacts) -> Finding:
    mib = hypervisor.dom0.pages // PAGES_PER_MIB
    text = f"dom0 has {mib:,} MiB; Xen has {hypervisor.free_pages // PAGES_PER_MIB:,} MiB free"
    if mib < SMALL_DOM0_MIB:
        change = "what guests give up is kept in dom0's memory: give it more (dom0_mem=), or use a store domain"
        return Finding(HOST, "dom0 memory", Level.NOTE, f"{text}; that is little for the store", change)
    return Finding(HOST, "dom0 memory", Level.OK, text)


def _balloon(hypervisor: HypervisorFacts) -> list[Finding]:
    """xl takes memory from dom0 to start guests, unless it is told, or finds dom0's fixed; the store lies in it."""
    fixed = FIXED_DOM0.search(hypervisor.command_line) is not None
    setting = hypervisor.dom0.autoballoon
    if setting is None:
        return []
    if setting in ("on", "1") or (setting == "auto" and not fixed):
        text = "xl balloons dom0 down to start guests, so the store's memory may go"
        change = 'set autoballoon="off" in /etc/xen/xl.conf, and dom0_mem=N,max:N on Xen\'s command line'
        return [Finding(HOST, "autoballoon", Level.LIMIT, text, change)]
    return [Finding(HOST, "autoballoon", Level.OK, "xl leaves dom0's memory alone")]


def _swap(dom0: Dom0Facts) -> Finding:
    if dom0.swap_bytes:
        text = (
            f"dom0 has {dom0.swap_bytes // MIB:,} MiB of swap: the store's files on a tmpfs may go there, unencrypted, "
            "and a guest would wait for that disk"
        )
        change = "swapoff -a, or encrypt it; the pager has a swap file of its own"
        return Finding(HOST, "dom0 swap", Level.LIMIT, text, change)
    return Finding(HOST, "dom0 swap", Level.OK, "none, so the store stays in memory")


def _pinning(hypervisor: HypervisorFacts) -> Finding:
    dom0 = hypervisor.dom0
    if dom0.pinned_vcpus == dom0.vcpus or hypervisor.cpus == 1:
        return Finding(HOST, "dom0 vCPUs", Level.OK, f"{dom0.vcpus}, pinned")
    text = (
        f"{dom0.vcpus} on {hypervisor.cpus} CPUs, {dom0.pinned_vcpus} of them pinned: "
        "a guest's fault may wait until Xen lets dom0 run"
    )
    change = "dom0_max_vcpus=N dom0_vcpus_pin on Xen's command line, and keep guests off these CPUs"
    return Finding(HOST, "dom0 vCPUs", Level.NOTE, text, change)


def _domain(domain: DomainFacts, paging: bool, sharing: bool) -> list[Finding]:
    """What can be done with it, and each thing that is in the way."""
    subject = domain.name
    if domain.kind is DomainKind.PV:
        text = "PV: Xen can neither page nor share its memory"
        return [Finding(subject, "type", Level.LIMIT, text, 'type = "pvh"')]
    if not domain.vcpus:
        return [Finding(subject, "type", Level.NOTE, "has no vCPUs, and is left alone")]
    obstacles = _domain_obstacles(domain)
    if obstacles:
        return obstacles
    found = []
    if not domain.max_pages - SLACK_PAGES <= domain.pages + domain.paged + SLACK_PAGES:
        text = f"has {_mib(domain.pages)} of {_mib(domain.max_pages)}: ballooned down; what it has is worked on"
        found.append(Finding(subject, "memory", Level.NOTE, text))
    if domain.device_model is not None and not domain.device_model.keeps_holds:
        text = f"its device model (process {domain.device_model.pid}) does not say which pages it maps"
        can = "so its pages are only shared" if sharing else "so nothing is taken from it"
        change = 'device_model_override = "/usr/lib/diffengine/diffengine-device-model", or type = "pvh"'
        return [*found, Finding(subject, "device model", Level.LIMIT, f"{text}, {can}", change)]
    if domain.vcpus > 1 and paging:
        # Xen writes a vCPU's runstate through the guest's page tables inside its scheduler, and goes to sleep there
        # when the ring is full.
        text = f"has {domain.vcpus} vCPUs: paging it can bring down a Xen without a patch, so its pages are not taken"
        can = ", only shared" if sharing else ""
        return [*found, Finding(subject, "vCPUs", Level.LIMIT, f"{text}{can}", SEVERAL_VCPUS)]
    can = " and ".join(name for name, able in (("paged", paging), ("shared", sharing)) if able)
    state = f"; now {domain.paged:,} pages out, {domain.shared:,} shared" if domain.paged or domain.shared else ""
    size = _mib(domain.pages + domain.paged)
    text = f"{domain.kind} of {size} with hap: can be {can or 'neither paged nor shared'}{state}"
    return [*found, Finding(subject, "type", Level.OK if can else Level.LIMIT, text)]


def _domain_obstacles(domain: DomainFacts) -> list[Finding]:
    """What makes Xen refuse, with the errors that its hypercalls would give."""
    subject, found = domain.name, []
    if not domain.hap:
        text = "no nested paging: can neither be paged nor shared (ENODEV)"
        found.append(Finding(subject, "hap", Level.LIMIT, text, "hap = 1"))
    if domain.iommu:
        text = "may have passed-through devices, which write to memory: not paged (EMLINK), not shared (EXDEV)"
        found.append(Finding(subject, "passthrough", Level.LIMIT, text, 'passthrough = "disabled", and no pci devices'))
    if domain.populate_on_demand:
        text = f"{domain.populate_on_demand:,} of its pages are populated on demand: not paged (EXDEV)"
        found.append(Finding(subject, "populate on demand", Level.LIMIT, text, "memory = maxmem"))
    if domain.stub_device_model:
        text = "its device model is in a stub domain, where the shim can't be: left alone"
        found.append(Finding(subject, "stub domain", Level.LIMIT, text, "device_model_stubdomain_override = 0"))
    return found


def _mib(pages: int) -> str:
    return f"{pages // PAGES_PER_MIB:,} MiB"
