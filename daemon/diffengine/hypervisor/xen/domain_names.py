# SPDX-License-Identifier: GPL-2.0-or-later
"""Which domain is meant by a name or a UUID."""

from uuid import UUID

from diffengine.hypervisor.xen.connection import Connection
from diffengine.hypervisor.xen.gather import toolstack_configurations
from diffengine.hypervisor.xen.libraries import XenUnavailableError


def find_domain(connection: Connection, text: str) -> int:
    """Its domid. Raises XenUnavailableError if there is none, or several."""
    try:
        wanted = UUID(text)
    except ValueError:
        found = [domid for domid, domain in toolstack_configurations().items() if domain.name == text]
    else:
        found = [domain.domid for domain in connection.domains() if domain.uuid == wanted and not domain.dying]
    if len(found) != 1:
        problem = "there is no such domain" if not found else "several domains are called so"
        raise XenUnavailableError(f"{text}: {problem}; `xl list` shows their numbers")
    return found[0]
