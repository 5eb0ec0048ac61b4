# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts whose guests the engine can work on. So far: the embedded machine, inside this process."""
