# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine completion SHELL`: what makes a shell complete commands, options and files."""

import argparse
from collections.abc import Callable
from typing import Any

import shtab

SHELLS = ("bash", "zsh", "fish")

DESCRIPTION = """\
Prints a script that makes a shell complete the command line. The Debian package installs all three.
By hand:

  bash   diffengine completion bash > ~/.local/share/bash-completion/completions/diffengine
  zsh    diffengine completion zsh > ~/.zfunc/_diffengine       (in a folder of $fpath)
  fish   diffengine completion fish > ~/.config/fish/completions/diffengine.fish"""


def add_parser(commands: "argparse._SubParsersAction[Any]", whole: Callable[[], argparse.ArgumentParser]) -> None:
    """whole: makes the parser of the whole command line."""
    parser = commands.add_parser(
        "completion",
        help="print a script that makes a shell complete the command line",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, whole=whole)
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="one of " + ", ".join(SHELLS))


def run(arguments: argparse.Namespace) -> int:
    print(script(arguments.whole(), arguments.shell))
    return 0


def script(whole: argparse.ArgumentParser, shell: str) -> str:
    _complete_files(whole)
    return str(shtab.complete(whole, shell=shell))


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Where a path is wanted, the shell knows what there is."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _complete_files(each)
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in ("FILE", "PATH", "SOCKET", "IMAGE", "SCENARIO", "PNG"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
