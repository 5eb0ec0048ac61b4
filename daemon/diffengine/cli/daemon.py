# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine daemon`: the engine on this host, until it is told to end."""

import argparse
import faulthandler
import logging
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffengine.errors import one_line
from diffengine.hypervisor.machine_process import MachineClient
from diffengine.images import open_images
from diffengine.service import HostChoice, Settings, run_daemon, settings_from
from diffengine.service.configuration import CONFIGURATION, Configuration, configuration
from diffengine.service.host import STATE
from diffengine.service.supervisor import log_handler
from diffengine.settings import read_toml
from diffengine.simulation.guests import machine_frames, plan_domains, program_options
from diffengine.simulation.hosts import host_processes
from diffengine.simulation.scenario import Scenario, ScenarioError, find_scenario, load_scenario

IMAGE_FOLDER = "build/images"
SEED_MASK = 0xFFFF_FFFF_FFFF_FFFF

DESCRIPTION = """\
Saves memory of the domains that the configuration names, until SIGTERM. It may be killed at any
moment; the next one goes on. SIGHUP reads the configuration again. It needs a diffengine-pager,
which stays when it ends. See docs/service.md, and docs/socket.md for how it is asked and told."""

EPILOG = """\
exit codes:
  0  told to end
  1  could not be done; the message says why
  2  bad arguments, or a wrong configuration
  3  the machine or the pager is not there, or has gone: start again when it is back"""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "daemon",
        help="save memory on this host until told to end",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help=f"({CONFIGURATION}, if it is there)")
    add("--state", type=Path, metavar="DIR", default=STATE, help=f"of diffengine-pager ({STATE})")
    host = parser.add_mutually_exclusive_group()
    host.add_argument("--machine", type=Path, metavar="SOCKET", help="of a diffengine-machine, instead of Xen")
    host.add_argument(
        "--embedded",
        metavar="SCENARIO",
        help="bring machine, pager and guests of a scenario along; its [engine] and trust groups hold where --config "
        "says nothing",
    )
    add("--socket", type=Path, metavar="PATH", help="of the status socket, instead of the configuration's")
    add("--xenstore", type=Path, metavar="PATH", help="socket or device of xenstored, if not where Xen has it")
    add("--images", metavar="DIR", action="append", default=[], help=f"of --embedded, look there too ({IMAGE_FOLDER})")


def run(arguments: argparse.Namespace) -> int:
    file = arguments.config or (CONFIGURATION if CONFIGURATION.exists() else None)
    settings = settings_from(file)
    logging.basicConfig(level=logging.INFO, handlers=[log_handler()])
    logging.getLogger("diffengine").addFilter(_one_line)
    # A daemon that the watchdog ends says where its threads stood; guests' memory, which it maps, is in no core dump.
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with ExitStack() as stack:
        choice = HostChoice(arguments.state, arguments.machine)
        if arguments.embedded:
            folders = [Path(folder) for folder in arguments.images or [IMAGE_FOLDER]]
            path = find_scenario(arguments.embedded)
            scenario = load_scenario(path, folders)
            choice = stack.enter_context(embedded(scenario))
            if file is None:
                settings = Settings(None, of_scenario(path, scenario))
        choice = replace(choice, xenstore=arguments.xenstore)
        run_daemon(choice, at_socket(settings, arguments.socket))
    return 0


def _one_line(record: logging.LogRecord) -> bool:
    """Names that guests or users chose must not look like log lines of their own."""
    record.msg, record.args = one_line(record.getMessage()), ()
    return True


def at_socket(settings: Settings, path: Path | None) -> Settings:
    if path is None:
        return settings
    values = settings.configuration.values
    values = {**values, "socket": {**values.get("socket", {}), "path": str(path.absolute())}}
    return Settings(settings.file, configuration(values, settings.configuration.engine.seed))


def of_scenario(path: Path, scenario: Scenario) -> Configuration:
    """The same engine, and every domain is worked on."""
    said = read_toml(path, ScenarioError, "docs/simulate.md")
    values: dict[str, Any] = {table: said[table] for table in ("engine", "policies") if table in said}
    values["domain"] = {
        domain.name: {"trust_group": domain.trust_group, "min_resident_mib": domain.min_resident_mib}
        for domain in scenario.domains
    }
    return configuration(values, scenario.seed, scenario.name)


@contextmanager
def embedded(scenario: Scenario) -> Iterator[HostChoice]:
    """Machine and pager in processes of their own, guests at work; all of it goes with the block."""
    with ExitStack() as stack:
        images = stack.enter_context(open_images(scenario.images)) if scenario.images else None
        plans = plan_domains(scenario, images)
        processes = stack.enter_context(host_processes(scenario.machine, machine_frames(scenario, plans)))
        machine = MachineClient(processes.machine)
        stack.callback(machine.close)
        names = {}
        for number, plan in enumerate(plans):
            domid = machine.create_domain(plan.content)
            names[domid] = plan.scenario.name
            machine.start_program(domid, program_options(plan, scenario.seed * 1000 + number & SEED_MASK))
        yield HostChoice(processes.state, processes.machine, names)
