# SPDX-License-Identifier: GPL-2.0-or-later
"""The `diffengine` command: one module per subcommand."""

from diffengine.cli.main import main

__all__ = ["main"]
