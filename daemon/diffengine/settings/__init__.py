# SPDX-License-Identifier: GPL-2.0-or-later
"""What people write into TOML files of ours, checked."""

from diffengine.settings.checked import CheckedTable, check_whole, read_toml, shown
from diffengine.settings.engine_table import engine_options, read_policies
from diffengine.settings.words import value_of

__all__ = ["CheckedTable", "check_whole", "engine_options", "read_policies", "read_toml", "shown", "value_of"]
