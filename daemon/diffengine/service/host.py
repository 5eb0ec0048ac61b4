# SPDX-License-Identifier: GPL-2.0-or-later
"""Which host the daemon works on, and its connections to it: the one place that knows which kinds there are."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from diffengine.hypervisor.machine_process import MachineClient
from diffengine.hypervisor.pager_client import PagerInUseError
from diffengine.hypervisor.protocol import Host
from diffengine.hypervisor.xen import XenHost
from diffengine.hypervisor.xen.gather import toolstack_configurations
from diffengine.hypervisor.xen.xenstore import find_xenstore
from diffengine.service.configuration import Identity
from diffengine.service.dom0_memory import SparingPager

# Of the pager alone, mode 0700; the status socket is beside it.
STATE = Path("/run/diffengine/pager")
LIBVIRT_URI = "xen:///system"
# libvirtd's socket, or that of its daemon for Xen alone.
LIBVIRT_SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtxend-sock"))
# A former engine's lock goes with its process, which takes a moment to end.
PATIENCE_S = 5.0
RETRY_S = 0.02


@dataclass(frozen=True)
class HostChoice:
    """state: the pager's directory. machine: the socket of a diffengine-machine; None: the Xen that this dom0 runs on.

    names: of a machine's domains, by domid. xenstore: where it is, if not where Xen has it.
    """

    state: Path
    machine: Path | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    xenstore: Path | None = None

    @property
    def kind(self) -> str:
        return "xen" if self.machine is None else "machine"

    def find_xenstore(self) -> Path | None:
        return find_xenstore() if self.machine is None and self.xenstore is None else self.xenstore

    def find_libvirt(self) -> str | None:
        """The URI of this Xen host's libvirt; None: it has none."""
        there = self.machine is None and any(path.exists() for path in LIBVIRT_SOCKETS)
        return LIBVIRT_URI if there else None


@dataclass(frozen=True)
class Connected:
    """identify: who is who now, by domid."""

    kind: str
    state: Path
    host: Host
    pager: SparingPager
    identify: Callable[[], Mapping[int, Identity]]


@contextmanager
def connect(choice: HostChoice) -> Iterator[Connected]:
    """Connections to the host and to the pager. HostGoneError or XenUnavailableError if one of them is not there."""
    with _host(choice) as (host, identify):
        pager = _connect_pager(choice.state)
        try:
            yield Connected(choice.kind, choice.state, host, pager, identify)
        finally:
            pager.close()


@contextmanager
def _host(choice: HostChoice) -> Iterator[tuple[Host, Callable[[], Mapping[int, Identity]]]]:
    if choice.machine is None:
        with XenHost() as xen:
            yield xen, lambda: _xen_identities(xen)
        return
    machine = MachineClient(choice.machine)
    try:
        yield machine, lambda: _machine_identities(machine, choice.names)
    finally:
        machine.close()


def _machine_identities(machine: MachineClient, names: Mapping[int, str]) -> dict[int, Identity]:
    return {
        domain.domid: Identity(domain.domid, str(uuid), names.get(domain.domid, ""))
        for domain in machine.domains()
        if (uuid := machine.domain_uuid(domain.domid))
    }


def _xen_identities(xen: XenHost) -> dict[int, Identity]:
    """UUIDs from the hypervisor, names from the toolstack."""
    names = {domid: configuration.name for domid, configuration in toolstack_configurations().items()}
    return {
        domain.domid: Identity(domain.domid, str(domain.uuid), names.get(domain.domid, ""))
        for domain in xen.connection.domains()
    }


def _connect_pager(state: Path) -> SparingPager:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return SparingPager(state)
        except PagerInUseError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(RETRY_S)
