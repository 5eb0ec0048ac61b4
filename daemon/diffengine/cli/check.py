# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine check`: what this host and each of its domains can do, and what to change."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from diffengine.cli.output import output
from diffengine.errors import one_line
from diffengine.hypervisor.xen.facts import Facts
from diffengine.hypervisor.xen.findings import Finding, Level, Verdict, judge, verdict
from diffengine.hypervisor.xen.gather import gather

# 1 and 2 mean what they mean for every command.
EXIT_CODES = {Verdict.READY: 0, Verdict.LIMITED: 3, Verdict.IMPOSSIBLE: 4}
MARKS = {
    Level.OK: ("ok", "green"),
    Level.NOTE: ("note", "cyan"),
    Level.LIMIT: ("limit", "yellow"),
    Level.OBSTACLE: ("no", "bold red"),
}
SUMMARIES = {
    Verdict.READY: "Ready: diffengine can work here, on every domain that runs.",
    Verdict.LIMITED: "Limited: diffengine can work here; what is marked `limit` is left out, or at risk.",
    Verdict.IMPOSSIBLE: "Not here: what is marked `no` has to change first.",
}

DESCRIPTION = """\
Says line by line what this host and each of its domains can do, and what to change. Changes nothing:
what Xen can't be asked is tried on a domain without memory, which is gone at once."""

EPILOG = """\
exit codes:
  0    ready
  3    limited: some domains, or some techniques, are left out, or something is at risk
  4    not possible on this machine
  1    could not be found out; the message says why"""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "check",
        help="say what this Xen host and its domains can do, and what to change",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print JSON instead (keys: docs/check.md)")


def run(arguments: argparse.Namespace) -> int:
    facts = gather()
    findings = judge(facts)
    result = verdict(findings)
    if arguments.json:
        print(json.dumps(as_json(facts, findings, result), indent=2))
    else:
        console = output()
        console.print(as_table(findings))
        console.print(SUMMARIES[result], markup=False)
    return EXIT_CODES[result]


def as_table(findings: tuple[Finding, ...]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(4):
        table.add_column(overflow="fold")
    subject = None
    for finding in findings:
        mark, style = MARKS[finding.level]
        text = Text(one_line(finding.text))
        if finding.change:
            text.append(f"\n-> {one_line(finding.change)}", style="bold")
        name = "" if finding.subject == subject else one_line(finding.subject)
        subject = finding.subject
        table.add_row(Text(name, style="bold"), Text(mark, style=style), finding.topic, text)
    return table


def as_json(facts: Facts, findings: tuple[Finding, ...], result: Verdict) -> dict[str, Any]:
    return {
        "verdict": result.value,
        "findings": [{**asdict(finding), "level": finding.level.name.lower()} for finding in findings],
        "facts": asdict(facts),
    }
