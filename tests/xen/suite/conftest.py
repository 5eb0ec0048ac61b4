# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests in dom0 share."""

from collections.abc import Iterator

import pytest
from guests import Guest, two_guests
from stack import PagerProcess, pager_process

from diffengine.hypervisor.xen import XenHost


@pytest.fixture(scope="module")
def guests() -> Iterator[tuple[Guest, Guest]]:
    with two_guests() as both:
        yield both


@pytest.fixture(scope="module")
def host() -> Iterator[XenHost]:
    with XenHost() as opened:
        yield opened


@pytest.fixture(scope="module")
def pager(guests: tuple[Guest, Guest]) -> Iterator[PagerProcess]:
    """Ends before the guests do; a guest that still has pages out is destroyed, not resumed."""
    with pager_process() as process:
        yield process
