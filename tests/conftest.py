# SPDX-License-Identifier: GPL-2.0-or-later
"""Being here makes the modules of this directory importable from the tests below it."""
