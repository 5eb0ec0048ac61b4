# SPDX-License-Identifier: GPL-2.0-or-later
"""Gathers the facts that `diffengine check` judges, on whatever machine this is. Changes nothing."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffengine.errors import DiffengineError
from diffengine.hypervisor.xen.connection import DOM0, Connection, XenDomain, XenError, is_dom0
from diffengine.hypervisor.xen.facts import DeviceModel, Dom0Facts, DomainFacts, DomainKind, Facts, HypervisorFacts
from diffengine.hypervisor.xen.libraries import SUPPORTED, look, running_version
from diffengine.hypervisor.xen.probe import Abilities, probe

XL_CONFIGURATION = Path("/etc/xen/xl.conf")
# `xl list` waits for locks that a domain under construction may hold.
XL_TIMEOUT_S = 30
QEMU_DOMAIN_OPTION = "-xen-domid"


def gather(look_at_domains: bool = True) -> Facts:
    version, dom0 = running_version(), is_dom0()
    usable = version in SUPPORTED and dom0
    libraries = look(version) if version is not None and usable else ()
    hypervisor, refused = None, None
    if usable and all(library.path and not library.missing for library in libraries):
        try:
            with Connection() as connection:
                hypervisor = _hypervisor(connection, probe(connection), look_at_domains)
        except DiffengineError as error:
            refused = str(error)
    cpuinfo = Path("/proc/cpuinfo").read_text()
    return Facts(version, dom0, cpu_vendor(cpuinfo), nested_paging(cpuinfo), libraries, refused, hypervisor)


def cpu_vendor(cpuinfo: str) -> str:
    match = re.search(r"^vendor_id\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    return {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}.get(match[1], match[1]) if match else "unknown"


def nested_paging(cpuinfo: str) -> bool:
    return re.search(r"^(flags|vmx flags)\s*:.*\s(ept|npt)\b", cpuinfo, re.MULTILINE) is not None


def _hypervisor(connection: Connection, abilities: Abilities, look_at_domains: bool) -> HypervisorFacts:
    memory, domains = connection.physical_memory(), connection.domains()
    guests = [d for d in domains if d.domid != DOM0 and not (d.dying or d.is_store)] if look_at_domains else []
    configurations = toolstack_configurations() if guests else {}
    return HypervisorFacts(
        abilities=abilities,
        command_line=connection.command_line(),
        cpus=memory.cpus,
        total_pages=memory.total,
        free_pages=memory.free,
        dom0=_dom0(connection, next(domain for domain in domains if domain.domid == DOM0), memory.cpus),
        domains=tuple(
            facts
            for domain in guests
            if (facts := _guest(connection, domain, configurations.get(domain.domid))) is not None
        ),
    )


def _dom0(connection: Connection, domain: XenDomain, cpus: int) -> Dom0Facts:
    return Dom0Facts(
        pages=domain.pages,
        max_pages=domain.max_pages,
        autoballoon=autoballoon_setting(),
        swap_bytes=swap_bytes(Path("/proc/swaps").read_text()),
        vcpus=domain.vcpus,
        pinned_vcpus=sum(connection.vcpu_is_pinned(DOM0, vcpu, cpus) for vcpu in range(domain.vcpus)),
    )


def swap_bytes(swaps: str) -> int:
    """From /proc/swaps: a heading, then file, type, size in KiB, used, priority."""
    return sum(int(line.split()[-3]) << 10 for line in swaps.splitlines()[1:])


def autoballoon_setting() -> str | None:
    """As in xl.conf; "auto" if it is not set there; None if there is no xl, or it can't be read."""
    try:
        return parse_autoballoon(XL_CONFIGURATION.read_text())
    except OSError:
        return None


def parse_autoballoon(configuration: str) -> str:
    settings = re.findall(r"^\s*autoballoon\s*=\s*[\"']?(\w+)[\"']?", configuration, re.MULTILINE)
    return settings[-1] if settings else "auto"


@dataclass(frozen=True)
class ToolstackConfiguration:
    """What libxl made the domain from."""

    name: str
    passthrough: bool
    stub_device_model: bool


def toolstack_configurations() -> dict[int, ToolstackConfiguration]:
    """By domid, from `xl list --long`; none where there is no xl, or it fails (domains of another toolstack)."""
    try:
        output = subprocess.run(["xl", "list", "--long"], capture_output=True, timeout=XL_TIMEOUT_S, check=True)
        return parse_configurations(output.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def parse_configurations(output: bytes) -> dict[int, ToolstackConfiguration]:
    """Raises ValueError if it is not what xl prints."""
    found = {}
    for entry in json.loads(output):
        try:
            config: dict[str, Any] = entry["config"]
            create = config["c_info"]
            passthrough = create.get("passthrough", "disabled") not in ("disabled", "default", "unknown")
            found[int(entry["domid"])] = ToolstackConfiguration(
                name=str(create["name"]),
                passthrough=passthrough or bool(config.get("pcidevs")) or bool(config.get("dtdevs")),
                stub_device_model=_is_true(config.get("b_info", {}).get("device_model_stubdomain")),
            )
        except (KeyError, TypeError, AttributeError):
            # dom0 has no such configuration.
            continue
    return found


def _is_true(value: object) -> bool:
    """libxl prints a "defbool" as true, false, or "<default>"."""
    return value in (True, "True", "true")


def _guest(
    connection: Connection, domain: XenDomain, configuration: ToolstackConfiguration | None
) -> DomainFacts | None:
    """None: it is gone by now."""
    try:
        on_demand = connection.populate_on_demand(domain.domid) if domain.hvm else 0
    except XenError:
        return None
    kind = DomainKind.PV if not domain.hvm else DomainKind.HVM if domain.emulated else DomainKind.PVH
    return DomainFacts(
        domid=domain.domid,
        name=configuration.name if configuration else f"domain {domain.domid}",
        uuid=str(domain.uuid),
        kind=kind,
        hap=domain.hap,
        vcpus=domain.vcpus,
        pages=domain.pages,
        max_pages=domain.max_pages,
        paged=domain.paged,
        shared=domain.shared,
        populate_on_demand=on_demand,
        iommu=configuration.passthrough if configuration else None,
        stub_device_model=configuration.stub_device_model if configuration else None,
        device_model=device_model(domain.domid) if kind is DomainKind.HVM else None,
    )


def device_model(domid: int) -> DeviceModel | None:
    """The QEMU in dom0 that serves a domain; it says so on its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            place = arguments.index(QEMU_DOMAIN_OPTION.encode())
            if arguments[place + 1] == str(domid).encode():
                keeps_holds = re.search(rf"/holds-{domid}$", (folder / "maps").read_text(), re.MULTILINE) is not None
                return DeviceModel(int(folder.name), keeps_holds)
        except (OSError, ValueError, IndexError):
            continue
    return None
