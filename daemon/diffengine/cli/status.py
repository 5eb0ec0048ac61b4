# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that ask and tell the daemon over its status socket. Names as in docs/socket.md."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from diffengine.cli.coming_back import call_and_show, words
from diffengine.cli.output import Output, output
from diffengine.cli.values import whole_number
from diffengine.engine.report import TECHNIQUES
from diffengine.errors import one_line
from diffengine.service.client import Client
from diffengine.service.configuration import SOCKET
from diffengine.settings import value_of
from diffengine.settings.checked import MOST_MIB

MIB = 1 << 20
Values = dict[str, Any]
# Methods that take as long as the pages do, and say how far they are.
BRING_BACK = ("page-in", "drain")
# `free` fell short of what was wanted.
EXIT_NOT_ENOUGH = 3


@dataclass(frozen=True)
class Command:
    """method: of the socket. show: prints the result for people."""

    method: str
    help: str
    show: Callable[[Output, Values], None]


def add_parsers(commands: "argparse._SubParsersAction[Any]") -> None:
    add = _add(commands)
    add("status", Command("status", "say what the daemon saves, and what it costs", show_status))
    add("domains", Command("domains", "list the domains, and what each saves", show_domains))
    why = add("why", Command("reasons", "say what keeps a domain from saving more, most important first", show_reasons))
    why.add_argument("domain", metavar="DOMAIN", help=DOMAIN)
    set_ = add("set", Command("set", "change a setting until the daemon's restart or SIGHUP", show_set))
    set_.add_argument("key", metavar="KEY", help="as in [engine], or with --domain as in a domain's table")
    set_.add_argument("value", metavar="VALUE", type=setting, help="a number, true, false or a text; `default`")
    set_.add_argument("--domain", metavar="DOMAIN", help=DOMAIN)
    for name, help_ in (("pause", "stop saving"), ("resume", "go on after a pause")):
        some = add(name, Command(name, f"{help_}, of one domain or altogether", show_done))
        some.add_argument("domain", metavar="DOMAIN", nargs="?", help=DOMAIN + "; without it, everything")
    page_in = add("page-in", Command("page-in", "bring all pages of a domain back, and pause it", show_pages))
    page_in.add_argument("domain", metavar="DOMAIN", help=DOMAIN)
    free = add("free", Command("free", "make room for a domain that is about to start", show_free))
    free.add_argument("mib", metavar="MIB", type=whole_number(1, MOST_MIB), help="that are to be free")
    free.add_argument(
        "--timeout-s", type=whole_number(1, 600), default=30, metavar="S", help="and then say how far it came (30)"
    )
    free.add_argument("--hold-s", type=whole_number(0, 600), metavar="S", help="keep it, until a domain comes (60)")
    free.add_argument("--for", dest="domain", metavar="DOMAIN", help="one that waits for its memory: claim it")
    add("drain", Command("drain", "bring all pages of all domains back, and pause the engine", show_pages))
    events = add("events", Command("events", "tell what happens, until interrupted", show_event))
    events.set_defaults(run=run_events)


DOMAIN = "its number, UUID or name"


def _add(commands: "argparse._SubParsersAction[Any]") -> Callable[[str, Command], argparse.ArgumentParser]:
    def add(name: str, command: Command) -> argparse.ArgumentParser:
        text = command.help[0].upper() + command.help[1:] + ". Asks the daemon over its status socket (docs/socket.md)."
        parser: argparse.ArgumentParser = commands.add_parser(name, help=command.help, description=text)
        parser.set_defaults(run=run, command=command)
        parser.add_argument("--socket", type=Path, metavar="PATH", default=SOCKET, help=f"the daemon's ({SOCKET})")
        parser.add_argument("--json", action="store_true", help="print what the socket says (keys: docs/socket.md)")
        return parser

    return add


def setting(text: str) -> Any:
    """`default`: None."""
    return None if text == "default" else value_of(text)


def parameters_of(arguments: argparse.Namespace) -> Values:
    names = ("domain", "key", "mib", "timeout_s", "hold_s")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}
    return {**given, "value": arguments.value} if "key" in given else given


def run(arguments: argparse.Namespace) -> int:
    method, parameters = arguments.command.method, parameters_of(arguments)
    if method in BRING_BACK:
        result = call_and_show(arguments.socket, method, parameters, arguments.json)
    else:
        with Client(arguments.socket) as client:
            result = client.call(method, **parameters)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        arguments.command.show(output(), result)
    return EXIT_NOT_ENOUGH if result.get("enough") is False else 0


def run_events(arguments: argparse.Namespace) -> int:
    with Client(arguments.socket) as client:
        try:
            for event in client.events():
                if arguments.json:
                    print(json.dumps(event), flush=True)
                else:
                    show_event(output(), event)
        except KeyboardInterrupt:
            pass
    return 0


def show_status(console: Output, status: Values) -> None:
    memory = status["memory"]
    state = "paused" if status["paused"] else "freeing memory" if status["freeing"] else "at work"
    worked_on, domains = status["domains_worked_on"], status["domains"]
    console.print(f"diffengine {status['version']} on {status['host']}, {state}: {worked_on} of {domains} domains")
    if status["coming_back"]:
        console.print(f"{status['coming_back']['doing']}: {words(status['coming_back'])}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "saved, all costs taken off": memory["saved"],
        **{f"  by {name}": saved for name, saved in status["saved_by"].items()},
        "  cost: store": memory["store"],
        "  cost: tables": memory["tables"],
        "free on the host": memory["free"],
        "of": memory["host"],
        "swap in use": memory["swap"],
    }
    for label, count in rows.items():
        table.add_row(label, mib(count))
    table.add_row("pages out", f"{status['evicted_pages']:,}")
    table.add_row("pages that came back", f"{status['refaults']:,}")
    p99 = status["fault_us"].get("p99")
    table.add_row("a fault, 99 %", "-" if p99 is None else f"{p99:,.0f} us")
    console.print(table)


def show_domains(console: Output, result: Values) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("domain", "name", "state", "memory", "sharing", "patching", "compression", "swapping", "refaults"):
        table.add_column(column, justify="left" if column in ("name", "state") else "right")
    for domain in result["domains"]:
        saved = domain["saved_by"]
        techniques = [mib(saved[name]) if name in saved else "" for name in TECHNIQUES]
        name, refaults = Text(one_line(domain["name"])), f"{domain['refaults']:,}"
        table.add_row(
            str(domain["domid"]), name, domain["standing"], mib(domain["memory_bytes"]), *techniques, refaults
        )
    console.print(table)


def show_reasons(console: Output, result: Values) -> None:
    table = Table(box=None, pad_edge=False)
    for column, justify in (("pages", "right"), ("MiB", "right"), ("what keeps them", "left"), ("reason", "left")):
        table.add_column(column, justify="right" if justify == "right" else "left", overflow="fold")
    for each in result["reasons"]:
        text = Text(one_line(each["text"]))
        if each["change"]:
            text.append(f"\n-> {one_line(each['change'])}", style="bold")
        table.add_row(f"{each['pages']:,}", f"{each['bytes'] / MIB:,.1f}", text, each["reason"])
    console.print(table if result["reasons"] else "Nothing kept a page from being saved at the latest visit.")


def show_set(console: Output, result: Values) -> None:
    console.print(f"{result['key']} = {json.dumps(result['value'])}", markup=False)


def show_done(console: Output, result: Values) -> None:
    console.print("Done" if result["domid"] is None else f"Done, domain {result['domid']}")


def show_pages(console: Output, result: Values) -> None:
    console.print(f"{result['pages']:,} pages came back")


def show_free(console: Output, result: Values) -> None:
    console.print(f"{result['free_mib']:,} MiB are free; {'enough' if result['enough'] else 'not enough'}")


def show_event(console: Output, event: Values) -> None:
    text = event.get("text", f"{event.get('count')} events were lost")
    console.print(f"{event['event']:16} {one_line(text)}", markup=False)


def mib(count: int) -> str:
    # + 0.0: a few pages of costs before anything is saved are 0.0, not -0.0.
    return f"{round(count / MIB, 1) + 0.0:,.1f} MiB"
