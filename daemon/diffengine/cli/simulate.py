# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine simulate SCENARIO.toml`: guests and engine from a scenario file, on the embedded machine."""

import argparse
import json
from pathlib import Path
from typing import Any

from diffengine.cli.analyze import check_plot
from diffengine.cli.output import output
from diffengine.errors import one_line
from diffengine.simulation import SimulationResult, Where, as_json, as_tables, load_scenario, simulate
from diffengine.simulation.live import live_table
from diffengine.simulation.scenario import find_scenario, shipped_scenarios

# Where `make` unpacks the images that the project carries.
IMAGE_FOLDER = "build/images"

DESCRIPTION = """\
Runs guests and the engine from a scenario file: guests with real or generated memory run programs
on the embedded machine (Xen's page types, sharing and paging in this process); the engine finds
pages to share, patch and compress, and gives them back when a guest touches them. Every byte that
a guest reads is checked."""

EPILOG = """\
Scenario files are described in docs/simulate.md. Shipped, to be named without a path: {shipped}."""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "simulate",
        help="run guests and the engine from a scenario file",
        description=DESCRIPTION,
        epilog=EPILOG.format(shipped=", ".join(shipped_scenarios())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("scenario", metavar="SCENARIO", help="a .toml file, or the name of a shipped scenario")
    add("--json", action="store_true", help="print JSON instead of tables (keys: docs/simulate.md)")
    add("--plot", metavar="FILE", help="draw memory and stalls over time into FILE.png or FILE.svg")
    where = parser.add_mutually_exclusive_group()
    parser.set_defaults(where=Where.THREADS)
    for place, text in (
        (Where.PROCESSES, "run machine and pager each in a process of its own"),
        (Where.VIRTUAL, "run in virtual time, repeatably: the scenario's seed decides who runs when"),
    ):
        where.add_argument(f"--{place.value}", dest="where", action="store_const", const=place, help=text)
    add(
        "--images",
        metavar="DIR",
        action="append",
        default=[],
        help=f"look for images there too; may be given several times ({IMAGE_FOLDER})",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.plot:
        check_plot(Path(arguments.plot))
    folders = [Path(folder) for folder in arguments.images or [IMAGE_FOLDER]]
    scenario = load_scenario(find_scenario(arguments.scenario), folders)
    console = output()
    with live_table(console, scenario.duration_s) as watch:
        result = simulate(scenario, None if arguments.json else watch, arguments.where)
    if arguments.plot:
        save(result, arguments.plot)
    if arguments.json:
        print(json.dumps(as_json(result), indent=2))
    else:
        console.print(as_tables(result))
        if arguments.plot:
            console.print(f"Drawn into {one_line(arguments.plot)}", markup=False)
    result.check()
    return 0


def save(result: SimulationResult, path: str) -> None:
    # Loading matplotlib takes longer than reading a scenario.
    from diffengine.simulation.plot import save_simulation_plot

    save_simulation_plot(result, path)
