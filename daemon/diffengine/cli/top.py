# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine top`: a live screen; or the same once, or as JSON, for scripts."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from diffengine.cli.output import output
from diffengine.cli.values import number
from diffengine.screen.draw import frame, glyphs
from diffengine.screen.figures import Figures, Past, Reading, SortKey
from diffengine.service.client import Client
from diffengine.service.configuration import SOCKET

DESCRIPTION = """\
Shows, live, what the host's memory is used for and what each technique saves, every domain, refaults
and fault latencies; h on the screen explains it. Where stdout is no terminal, and with --once, it is
printed once. Only looks: p and P, which pause and resume, are for root."""

# --once: to see the figures change, so that there are rates; then without.
PATIENCE_S = 3.0
LOOK_S = 0.2


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "top",
        help="show live what is saved, domain by domain",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--socket", type=Path, metavar="PATH", default=SOCKET, help=f"the daemon's ({SOCKET})")
    add("--interval-s", type=number(0.1, 3600), metavar="S", default=1.0, help="look so often (1)")
    add("--sort", choices=[key.value for key in SortKey], default=SortKey.DOMAIN.value, help="(domain)")
    add("--once", action="store_true", help="print it once, after two looks, so that rates are known")
    add(
        "--json",
        action="store_true",
        help="print a line of JSON for each look (keys: docs/service.md)",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.json:
        return print_json(arguments)
    if arguments.once or not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        return print_once(arguments)
    # Loading it takes longer than a look.
    from diffengine.screen.app import Top

    drawn = glyphs(sys.stdout.encoding, coloured=not os.environ.get("NO_COLOR"))
    Top(arguments.socket, arguments.interval_s, drawn, SortKey(arguments.sort)).run()
    return 0


def print_once(arguments: argparse.Namespace) -> int:
    figures = _read_twice(arguments)
    console = output()
    drawn = glyphs(sys.stdout.encoding, coloured=sys.stdout.isatty())
    for line in frame(figures, console.width, drawn, SortKey(arguments.sort)):
        console.print(line, overflow="crop", no_wrap=True)
    return 0


def print_json(arguments: argparse.Namespace) -> int:
    if arguments.once:
        print(json.dumps(_read_twice(arguments).as_json()))
        return 0
    past = Past()
    try:
        while True:
            with Client(arguments.socket) as client:
                print(json.dumps(past.add(_read(client)).as_json()), flush=True)
            time.sleep(arguments.interval_s)
    except KeyboardInterrupt:
        return 0


def _read(client: Client) -> Reading:
    return Reading(client.call("status"), tuple(client.call("domains")["domains"]))


def _read_twice(arguments: argparse.Namespace) -> Figures:
    """The daemon takes its figures once a second, or less often on a large host: a look before that finds the same."""
    past = Past()
    with Client(arguments.socket) as client:
        first = _read(client)
        figures = past.add(first)
        end_s = time.monotonic() + PATIENCE_S
        while figures.reading.taken == first.taken and time.monotonic() < end_s:
            time.sleep(LOOK_S)
            figures = past.add(_read(client))
    return figures
