# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine config check FILE`: says what is wrong with a configuration file, before anything uses it."""

import argparse
from pathlib import Path
from typing import Any

from diffengine.cli.output import output
from diffengine.errors import one_line
from diffengine.service.configuration import CONFIGURATION, read_configuration


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser("config", help="check a configuration file")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="read a whole file, and name everything that is wrong",
        description="Reads a whole file and names everything that is wrong: key, value, and what is allowed. "
        "Changes nothing. Keys: docs/service.md.",
    )
    check.set_defaults(run=run)
    check.add_argument("file", metavar="FILE", type=Path, nargs="?", default=CONFIGURATION, help=f"({CONFIGURATION})")


def run(arguments: argparse.Namespace) -> int:
    found = read_configuration(arguments.file)
    tables = f"{len(found.domains)} domain table{'' if len(found.domains) == 1 else 's'}"
    others = "worked on" if found.others.enabled else "left alone"
    output().print(f"{one_line(str(arguments.file))}: right; {tables}, all others {others}", markup=False)
    return 0
