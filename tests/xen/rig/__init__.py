# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Xen in an emulator, from Debian's packages: README.md one level up."""
