# SPDX-License-Identifier: GPL-2.0-or-later
"""Passes and table memory: what Xen's 12 MB of heap made the paper do."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from diffengine.evaluation import drawing, simulating
from diffengine.evaluation.experiment import Basis, Column, Experiment, Outcome, Picture, Results, Step, Table, Target
from diffengine.evaluation.setting import Setting
from diffengine.evaluation.texts import percent

PASSES = (1, 5, 20)
# Of what one pass needs.
MEMORY_SHARES = (1.0, 0.5, 0.2, 0.05)
DURATION_S = {True: 150.0, False: 300.0}
# Of the sharing table: what it holds for one content.
BYTES_PER_PAGE = 8 / 0.875
END_DIFFERENCE = 0.02


def _values(setting: Setting, **engine: float) -> simulating.Values:
    images = simulating.stand_ins(setting.guests)["homogeneous"][:2]
    domains = [simulating.guest(image, number) for number, image in enumerate(images, 1)]
    return simulating.scenario(setting.seed, DURATION_S[setting.quick], domains, policy="sharing-only", **engine)


def _seconds(setting: Setting) -> float:
    images = simulating.stand_ins(setting.guests)["homogeneous"][:2]
    return simulating.expected_seconds(simulating.bytes_of(images), DURATION_S[setting.quick]) / 2


def plan_passes(setting: Setting) -> list[Step]:
    return [
        Step(f"{passes}", simulating.run, {"values": _values(setting, passes=passes)}, _seconds(setting))
        for passes in PASSES
    ]


def plan_heap(setting: Setting) -> list[Step]:
    images = simulating.stand_ins(setting.guests)["homogeneous"][:2]
    needed_mib = simulating.bytes_of(images) / 4096 * BYTES_PER_PAGE / (1 << 20)
    return [
        Step(
            f"{round(share * 100)}-percent",
            simulating.run,
            {"values": _values(setting, table_memory_mib=max(0.004, needed_mib * share))},
            _seconds(setting),
        )
        for share in MEMORY_SHARES
    ]


def _conclude(results: Results, what: str, picture: str, text: str, verdict: str) -> Outcome:
    ends = [result["saving"]["end"] for result in results.values()]
    # Nothing saved is the same each time, too.
    same = len(ends) > 1 and max(ends) - min(ends) <= END_DIFFERENCE < min(ends)
    return Outcome(
        tables=[_table(results, what)],
        pictures=[Picture(picture, text, partial(_draw, results, what))],
        targets=[
            Target(
                f"{what}: the saving at the end is above {percent(END_DIFFERENCE)} of the memory, and the same "
                "within that",
                f"{percent(min(ends), 1)} to {percent(max(ends), 1)}",
                same if len(ends) > 1 else None,
            )
        ],
        verdict=[*(_line(shown(name), result) for name, result in results.items()), *([verdict] if same else [])],
    )


def shown(name: str) -> str:
    """A step's name, which is a number of passes or a share of the table's memory, in words."""
    if name.endswith("-percent"):
        return f"{name.removesuffix('-percent')} % of the memory"
    return "1 pass" if name == "1" else f"{name} passes"


def _line(name: str, result: dict[str, object]) -> str:
    found = _times(result)
    saving: dict[str, float] = result["saving"]  # type: ignore[assignment]
    when = "not reached" if found is None else f"reached after {found:.0f} s"
    end, mean = (percent(saving[which], 1) for which in ("end", "mean"))
    return f"{name}: {end} at the end, {mean} on average; 90 % of the end value {when}."


def _times(result: dict[str, object]) -> float | None:
    """Seconds until 90 % of the saving at the end."""
    series: dict[str, list[float]] = result["series"]  # type: ignore[assignment]
    reached = np.flatnonzero(np.array(series["saving"]) >= 0.9 * series["saving"][-1])
    return float(series["time_s"][reached[0]]) if len(reached) else None


def _table(results: Results, what: str) -> Table:
    rows = [
        [
            shown(name),
            result["passes"],
            result["table_bytes"]["engine"] / 1024,
            result["saving"]["mean"] * 100,
            result["saving"]["end"] * 100,
            _times(result),
            result["cpu_s"]["scan"],
        ]
        for name, result in results.items()
    ]
    columns = [
        Column(what),
        Column("passes", "d"),
        Column("engine's tables, KiB", ",.0f"),
        Column("saved, mean, %", ".1f"),
        Column("end, %", ".1f"),
        Column("90 % of it after, s", ".0f"),
        Column("engine's CPU, s (model)", ".2f"),
    ]
    return Table(f"Sharing alone, by {what}", columns, rows)


def _draw(results: Results, what: str) -> Figure:
    figure, (axis,) = drawing.figure(height=3.2)
    colours = (drawing.BLUE, drawing.ORANGE, drawing.RED, drawing.GREEN)
    for (name, result), colour in zip(results.items(), colours, strict=False):
        axis.plot(
            result["series"]["time_s"], np.array(result["series"]["saving"]) * 100, color=colour, label=shown(name)
        )
    axis.set_ylim(bottom=0)
    drawing.titles(axis, f"Sharing alone, by {what}", "time (s)", "memory saved (%)")
    drawing.legend(axis, loc="lower right")
    return figure


PASSES_EXPERIMENT = Experiment(
    name="passes",
    title="Passes: sharing with a small table",
    question="What do five passes, or twenty, cost against one?",
    method="Two guests that are alike, sharing alone. With n passes, each sweep indexes only pages whose digest falls "
    "into one of n intervals, and a sharing cycle takes n sweeps of at least 4 s.",
    basis=Basis.VIRTUAL,
    plan=plan_passes,
    conclude=lambda results: _conclude(
        results,
        "passes",
        "passes",
        "Memory saved by sharing alone, with 1, 5 and 20 passes.",
        "More passes find the same, later: a pass takes 1/n of the table and finds 1/n of the copies. The paper needed "
        "five since Xen's heap was 12 MB; where the table fits into memory of our own, one is best.",
    ),
)
HEAP_EXPERIMENT = Experiment(
    name="heap",
    title="Table memory: passes follow from it",
    question="How does a limit on the sharing table's memory change what is shared, and when?",
    method="The same guests; the table's memory is limited to a part of what one pass needs, and the engine makes as "
    "many passes as that makes necessary.",
    basis=Basis.VIRTUAL,
    plan=plan_heap,
    conclude=lambda results: _conclude(
        results,
        "table memory",
        "heap",
        "Memory saved by sharing alone, with the table's memory limited to a part of what one pass needs.",
        "The limit decides how long a cycle takes, not what it finds.",
    ),
)
