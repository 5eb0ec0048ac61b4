# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine release DOMAIN`: all pages of a domain come back, and the pager lets go of it."""

import argparse
from pathlib import Path
from typing import Any

from diffengine.cli.output import output
from diffengine.errors import DiffengineError
from diffengine.hypervisor.pager_control import PagerControl, no_room
from diffengine.hypervisor.xen.connection import Connection
from diffengine.hypervisor.xen.domain_names import find_domain
from diffengine.hypervisor.xen.libraries import running_version

STATE = Path("/run/diffengine/pager")
PATIENCE_S = 120.0
LARGEST_DOMID = 0x7FEF

DESCRIPTION = """\
Brings all pages of a domain back and lets go of it, so that it can be saved, migrated or suspended.
The pager does not take it again, while it lives, until --undo. Refuses, and says what is missing, if
there is not memory enough; then the domain goes on as before."""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "release",
        help="bring all pages of a domain back, before it is saved, migrated or suspended",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("domain", metavar="DOMAIN", help="its number; on Xen also its name or UUID")
    parser.add_argument("--state", type=Path, metavar="DIR", default=STATE, help=f"of the pager ({STATE})")
    parser.add_argument("--undo", action="store_true", help="let the pager take it again")


def run(arguments: argparse.Namespace) -> int:
    on_xen = running_version() is not None
    domid = _domid(arguments.domain, on_xen)
    with PagerControl(arguments.state) as pager:
        if arguments.undo:
            pager.take_back(domid)
            output().print(f"Domain {domid} may be worked on again")
            return 0
        pages = pager.pages_out(domid)
        if on_xen:
            _refuse_without_room(domid, pages)
        pager.release(domid, PATIENCE_S)
    output().print(f"Domain {domid} is released; {pages:,} pages came back")
    return 0


def _domid(text: str, on_xen: bool) -> int:
    if text.isdecimal() and int(text) <= LARGEST_DOMID:
        return int(text)
    if not on_xen:
        raise DiffengineError(f"{text}: not the number of a domain; names and UUIDs are known on Xen only")
    with Connection() as connection:
        return find_domain(connection, text)


def _refuse_without_room(domid: int, pages: int) -> None:
    """Before anything is moved: with part of it back, the domain is no nearer to its save and the host is full."""
    with Connection() as connection:
        memory = connection.physical_memory()
        claimed_by_it = sum(domain.outstanding_pages for domain in connection.domains() if domain.domid == domid)
    free = memory.free - memory.claimed + claimed_by_it
    if pages > free:
        raise no_room(domid, pages, free)
