# SPDX-License-Identifier: GPL-2.0-or-later
"""Where results go: stdout, as wide as the terminal, or 120 columns where there is none."""

import sys

from rich.console import Console


class Output(Console):
    """A Console that leaves it to the command what a closed pipe means; rich would exit with code 1."""

    def on_broken_pipe(self) -> None:
        raise


def output() -> Output:
    return Output(width=None if sys.stdout.isatty() else 120, highlight=False)
