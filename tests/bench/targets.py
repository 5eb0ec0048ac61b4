# SPDX-License-Identifier: GPL-2.0-or-later
"""What must be reached, what was measured, and the table of both."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """NOT_JUDGED: the target is stated for whole images, and these are samples."""

    MET = "met"
    MISSED = "NOT MET"
    NOT_JUDGED = "not judged"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """One target. `values` are those of all runs, whose median counts; none if it could not be measured.

    at_least: the target is a lower bound. judged: whether the measured images are what the target is stated for.
    """

    name: str
    target: float
    values: tuple[float, ...]
    unit: str = ""
    at_least: bool = False
    judged: bool = True
    note: str = ""

    @property
    def measured(self) -> float | None:
        return sorted(self.values)[len(self.values) // 2] if self.values else None

    @property
    def verdict(self) -> Verdict:
        if self.measured is None:
            return Verdict.NOT_MEASURED
        if not self.judged:
            return Verdict.NOT_JUDGED
        reached = self.measured >= self.target if self.at_least else self.measured <= self.target
        return Verdict.MET if reached else Verdict.MISSED


def values(runs: Sequence[dict[str, Any]], *path: str) -> tuple[float, ...]:
    """One figure of each run; none if the runs lack it."""
    found = []
    for run in runs:
        node: Any = run
        for key in path:
            if key not in node:
                return ()
            node = node[key]
        found.append(float(node))
    return tuple(found)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{**asdict(row), "measured": row.measured, "verdict": row.verdict} for row in rows]


def as_table(rows: Sequence[Row]) -> str:
    """Columns in line; a note follows its row's verdict."""
    cells = [("", "target", "measured", "", "")]
    for row in rows:
        sign = ">=" if row.at_least else "<="
        cells.append((row.name, f"{sign} {row.target:.4g}{row.unit}", _measured(row), row.verdict, _note(row)))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {target:>{widths[1]}}  {measured:>{widths[2]}}  {verdict:<{widths[3]}}  {note}".rstrip()
        for name, target, measured, verdict, note in cells
    )


def _measured(row: Row) -> str:
    return "-" if row.measured is None else f"{row.measured:.3g}{row.unit}"


def _note(row: Row) -> str:
    spread = f"{min(row.values):.3g} to {max(row.values):.3g} in {len(row.values)} runs" if len(row.values) > 1 else ""
    return "; ".join(part for part in (spread, row.note) if part)
