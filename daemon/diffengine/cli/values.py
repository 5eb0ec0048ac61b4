# SPDX-License-Identifier: GPL-2.0-or-later
"""Values on the command line, checked as they are parsed."""

import argparse
import re
from collections.abc import Callable

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
SIZE = re.compile(r"([0-9]{1,15})\s*([kmgt]?)(i?b)?", re.IGNORECASE)


def size(text: str) -> int:
    """'64M', '64MiB', '67108864': bytes. Units are powers of 1024."""
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write for example 64M or 1GiB")
    return int(match[1]) * UNITS[match[2].lower()]


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parser for whole numbers from least to most."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def number(least: float, most: float) -> Callable[[str], float]:
    """A parser for numbers from least to most."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", text) or not least <= float(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} to {most:g}")
        return float(text)

    return parse
