# SPDX-License-Identifier: GPL-2.0-or-later
"""What an experiment is: a question, the steps that answer it, and what is made of their results.

Steps run in processes of their own and give plain data; tables, pictures and verdicts are functions of that data, so
they can be made again without running anything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from diffengine.evaluation.setting import Setting, UnavailableError

if TYPE_CHECKING:
    # Steps' processes draw nothing.
    from matplotlib.figure import Figure

__all__ = [
    "MISSING",
    "TIMINGS",
    "Basis",
    "Cell",
    "Column",
    "Experiment",
    "Outcome",
    "Picture",
    "Result",
    "Results",
    "Step",
    "Table",
    "Target",
    "UnavailableError",
]

# What a step found. Times go under TIMINGS: all else is the same for the same seed. Under MISSING, if it is there, is
# what was left out since this machine lacks something: sentences that say what, and what would bring it.
Result = dict[str, Any]
TIMINGS = "timings"
MISSING = "missing"


class Basis(StrEnum):
    """What the figures of an experiment are."""

    COUNTED = "counted on memory images"
    VIRTUAL = "simulated: real pages, guest programs and engine on the embedded machine, in virtual time"
    MEASURED = "measured on this machine"
    RIG = "measured on a real Xen"


@dataclass(frozen=True)
class Step:
    """A piece of work that is not divided: run(**arguments), whose arguments are plain data.

    seconds: about how long it takes. alone: nothing else may run meanwhile, since it uses all cores or times things.
    """

    name: str
    run: Callable[..., Result]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 5.0
    alone: bool = False


@dataclass(frozen=True)
class Column:
    """A column's heading, and how its numbers are shown (a format specification); texts are shown as they are."""

    heading: str
    show: str = ""


Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A table's cells as they were found; None: there is nothing to say."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """name: of its files. text: what it shows, for whoever does not see it."""

    name: str
    text: str
    draw: "Callable[[], Figure]"


@dataclass(frozen=True)
class Target:
    """Something that was to be reached. met: None if it could not be judged; `measured` says why then."""

    claim: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Outcome:
    """What came of an experiment. verdict: paragraphs in plain words."""

    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    targets: Sequence[Target] = ()
    verdict: Sequence[str] = ()


Results = Mapping[str, Result]


@dataclass(frozen=True)
class Experiment:
    """plan: its steps, none if the setting lacks what it needs (it raises UnavailableError then). conclude: from the
    results by step name; steps that were skipped are not among them, and at least one is there."""

    name: str
    title: str
    question: str
    method: str
    basis: Basis
    plan: Callable[[Setting], Sequence[Step]]
    conclude: Callable[[Results], Outcome]
