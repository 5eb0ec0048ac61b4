# SPDX-License-Identifier: GPL-2.0-or-later
"""Values that are given as text, outside TOML."""

import json
from typing import Any


def value_of(text: str) -> Any:
    """A number, true or false as JSON has them, a text in quotes; anything else is the text itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | str) else text
