# SPDX-License-Identifier: GPL-2.0-or-later
"""The report: one HTML file that needs nothing else, no network, no script."""

import base64
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from diffengine.evaluation.evaluate import VERSION, Evaluated
from diffengine.evaluation.experiment import Cell, Column, Table
from diffengine.evaluation.setting import Setting
from diffengine.evaluation.writing import DrawnPicture

TEMPLATE = "report.html.j2"
# A line does not end between the two.
NUMBER_AND_UNIT = re.compile(r"(\d) (%|µs|s|B|KB|KiB|MiB|GiB)(?=[\s.,;:)<])")
MET = {True: "met", False: "not met", None: "not judged"}


@dataclass(frozen=True)
class Machine:
    """What the run was made on."""

    processor: str
    cores: int
    memory_gib: float
    kernel: str
    load: str


def this_machine() -> Machine:
    information = Path("/proc/cpuinfo").read_text()
    models = [line.split(":", 1)[1].strip() for line in information.splitlines() if line.startswith("model name")]
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return Machine(
        models[0] if models else platform.machine(),
        information.count("processor\t"),
        int(total.split()[1]) / (1 << 20),
        platform.release(),
        ", ".join(f"{average:.1f}" for average in os.getloadavg()),
    )


def shown(column: Column, cell: Cell) -> str:
    if cell is None:
        return "–"
    return cell if isinstance(cell, str) else format(cell, column.show)


def table_rows(table: Table) -> list[list[tuple[str, bool]]]:
    """Texts of all cells, and which of them are numbers."""
    return [
        [(shown(column, cell), not isinstance(cell, str)) for column, cell in zip(table.columns, row, strict=True)]
        for row in table.rows
    ]


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f}" if seconds >= 600 else f"{seconds / 60:.1f}"


def as_data(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def render(
    evaluations: Sequence[Evaluated],
    pictures: Mapping[str, Sequence[DrawnPicture]],
    setting: Setting,
    command: str,
    when: str,
) -> str:
    """pictures: by experiment."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffengine.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(rows=table_rows, as_data=as_data, minutes=minutes)
    targets = [(each, target) for each in evaluations for target in (each.outcome.targets if each.outcome else ())]
    page = environment.get_template(TEMPLATE).render(
        evaluations=evaluations,
        pictures=pictures,
        setting=setting,
        command=command,
        when=when,
        machine=this_machine(),
        version=VERSION,
        targets=targets,
        met=MET,
        counts={word: sum(MET[t.met] == word for _, t in targets) for word in MET.values()},
        missing=[(each, part) for each in evaluations for part in each.missing],
        seconds=sum(each.seconds for each in evaluations),
        cpu_s=sum(each.cpu_s for each in evaluations),
    )
    return NUMBER_AND_UNIT.sub("\\1\u00a0\\2", page)
