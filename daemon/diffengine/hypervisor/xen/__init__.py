# SPDX-License-Identifier: GPL-2.0-or-later
"""A Xen host, through the libraries that Xen's own tools use, opened at run time."""

from diffengine.hypervisor.xen.host import XenHost
from diffengine.hypervisor.xen.libraries import XenUnavailableError

__all__ = ["XenHost", "XenUnavailableError"]
