# SPDX-License-Identifier: GPL-2.0-or-later
"""What stops the rig, said in one line."""


class RigError(Exception):
    """The message says what failed, why, and where to look."""
