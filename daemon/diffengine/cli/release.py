# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine release DOMAIN`: all pages of a domain come back, and the pager lets go of it."""

import argparse
from pathlib import Path
from typing import Any

from diffengine.cli.coming_back import call_and_show
from diffengine.cli.output import output
from diffengine.errors import DiffengineError
from diffengine.hypervisor.pager_control import PagerControl
from diffengine.hypervisor.room import require_room
from diffengine.hypervisor.xen.connection import Connection
from diffengine.hypervisor.xen.domain_names import find_domain
from diffengine.hypervisor.xen.libraries import running_version
from diffengine.service.client import NoDaemonError
from diffengine.service.configuration import SOCKET
from diffengine.service.host import STATE
from diffengine.service.release import release, take_back

LARGEST_DOMID = 0x7FEF

DESCRIPTION = """\
Brings all pages of a domain back and lets go of it, so that it can be saved, migrated or suspended.
The pager does not take it again, while it lives, until --undo. Refuses, and says what is missing, if
there is not memory enough; then the domain goes on as before. Done by the daemon, where one runs,
else by the pager."""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "release",
        help="bring all pages of a domain back, before it is saved, migrated or suspended",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("domain", metavar="DOMAIN", help="its number; on Xen also its name or UUID")
    parser.add_argument("--socket", type=Path, metavar="PATH", default=SOCKET, help=f"the daemon's ({SOCKET})")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help=f"of a pager to ask instead of the daemon ({STATE}, if there is none)"
    )
    parser.add_argument("--undo", action="store_true", help="let the pager take it again")


def run(arguments: argparse.Namespace) -> int:
    domid, pages = _by_pager(arguments) if arguments.state else _by_daemon(arguments)
    if arguments.undo:
        output().print(f"Domain {domid} may be worked on again")
    else:
        output().print(f"Domain {domid} is released; {pages:,} pages came back")
    return 0


def _by_daemon(arguments: argparse.Namespace) -> tuple[int, int]:
    parameters = {"domain": arguments.domain, "undo": arguments.undo}
    try:
        done = call_and_show(arguments.socket, "release", parameters, as_json=False)
    except NoDaemonError:
        return _by_pager(arguments)
    return int(done["domid"]), int(done["pages"])


def _by_pager(arguments: argparse.Namespace) -> tuple[int, int]:
    """As the daemon does it, where there is none: nobody has the domain's log of written pages then."""
    on_xen = running_version() is not None
    domid, state = _domid(arguments.domain, on_xen), arguments.state or STATE
    if arguments.undo:
        take_back(state, domid)
        return domid, 0
    if on_xen:
        _refuse_without_room(domid, state)
    return domid, release(state, domid)


def _domid(text: str, on_xen: bool) -> int:
    if text.isdecimal() and int(text) <= LARGEST_DOMID:
        return int(text)
    if not on_xen:
        raise DiffengineError(f"{text}: not the number of a domain; names and UUIDs are known on Xen only")
    with Connection() as connection:
        return find_domain(connection, text)


def _refuse_without_room(domid: int, state: Path) -> None:
    with PagerControl(state) as pager:
        pages = pager.pages_out(domid)
    with Connection() as connection:
        memory = connection.physical_memory()
        own = sum(domain.outstanding_pages for domain in connection.domains() if domain.domid == domid)
    require_room(f"domain {domid}", pages, memory.free, memory.claimed, min(own, pages))
