# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers as the report's sentences show them."""


def percent(fraction: float, digits: int = 0) -> str:
    return f"{fraction * 100:.{digits}f} %"
