# SPDX-License-Identifier: GPL-2.0-or-later
"""Figure 4: how long patched and compressed pages stay untouched."""

from functools import partial

from matplotlib.figure import Figure

from diffengine.evaluation import drawing, paper, simulating
from diffengine.evaluation.experiment import (
    Basis,
    Column,
    Experiment,
    Outcome,
    Picture,
    Result,
    Results,
    Step,
    Table,
)
from diffengine.evaluation.setting import Setting
from diffengine.evaluation.texts import percent

POLICIES = ("default", "compress-first", "aggressive")
COLOURS = dict(zip(POLICIES, (drawing.BLUE, drawing.GREEN, drawing.RED), strict=True))
DURATION_S = {True: 180.0, False: 400.0}


def plan(setting: Setting) -> list[Step]:
    images = simulating.stand_ins(setting.guests)["homogeneous"][:2]
    duration_s = DURATION_S[setting.quick]
    steps = []
    for policy in POLICIES:
        domains = [simulating.guest(image, number) for number, image in enumerate(images, 1)]
        values = simulating.scenario(setting.seed, duration_s, domains, policy=policy)
        seconds = simulating.expected_seconds(simulating.bytes_of(images), duration_s)
        steps.append(Step(policy, simulating.run_with_lifetimes, {"values": values}, seconds))
    return steps


def conclude(results: Results) -> Outcome:
    return Outcome(
        tables=[_table(results)],
        pictures=[
            Picture(
                "fig4",
                "Share of evicted (patched or compressed) pages still untouched, by the time since they were evicted. "
                "Hollow marks: the paper's, for its default policy.",
                partial(_draw, results),
            )
        ],
        verdict=_verdict(results),
    )


def _table(results: Results) -> Table:
    rows = []
    ages = next(iter(results.values()))["ages_s"]
    for number, age in enumerate(ages):
        printed = paper.FIGURE_4.get(age)
        found = [result["untouched"][number] for result in results.values()]
        if any(value is not None for value in found):
            percents = [None if value is None else value * 100 for value in (printed, *found)]
            rows.append([age, *percents])
    columns = [Column("age, s", ".0f"), Column("paper, %", ".0f"), *(Column(f"{name}, %", ".1f") for name in results)]
    return Table("Evicted pages still untouched", columns, rows)


def _at(result: Result, age: float) -> float | None:
    value: float | None = result["untouched"][result["ages_s"].index(age)]
    return value


def _verdict(results: Results) -> list[str]:
    parts = []
    for name, result in results.items():
        at = [_at(result, age) for age in (10.0, 100.0)]
        shown = ["not known" if each is None else percent(each) for each in at]
        parts.append(
            f"{name}: {shown[0]} untouched after 10 s and {shown[1]} after 100 s (the paper: 80 % and 50 %); "
            f"{result['refaults']:,} of {result['evictions']:,} evicted pages came back, "
            f"{percent(result['saving']['mean'])} saved on average, the worst "
            f"vCPU stood still for {result['guest']['stall_us_per_s']:,.0f} µs per second."
        )
    late = _at(results["default"], 100.0) if "default" in results else None
    if late is not None:
        most = "Most evicted pages stay" if late >= 0.5 else "Less than half of the evicted pages stay"
        parts.append(
            f"default: {most.lower()} untouched for 100 s and more. How long depends on what the guests do: here, "
            "a recorded trace of "
            "writes, and reads of a working set by popularity, whose rarest pages come up once in minutes."
        )
    return parts


def _draw(results: Results) -> Figure:
    figure, (axis,) = drawing.figure()
    for name, result in results.items():
        known = [
            (age, value * 100)
            for age, value in zip(result["ages_s"], result["untouched"], strict=True)
            if value is not None
        ]
        axis.step(
            [age for age, _ in known], [value for _, value in known], where="post", color=COLOURS[name], label=name
        )
    drawing.draw_paper(axis, list(paper.FIGURE_4), [value * 100 for value in paper.FIGURE_4.values()])
    axis.set_xscale("log")
    drawing.plain_numbers(axis.xaxis)
    axis.set_ylim(0, 104)
    drawing.titles(axis, "Lifetime of evicted pages", "time since eviction (s)", "still untouched (%)")
    drawing.legend(axis, loc="lower left")
    return figure


EXPERIMENT = Experiment(
    name="fig4",
    title="Figure 4: lifetime of evicted pages",
    question="How long do patched and compressed pages stay untouched, under the default policy and under others?",
    method="Two guests that are alike write as the recorded dump series did and read a working set of a tenth of "
    "their "
    "non-zero pages. Whether each page is out is looked at once a second of virtual time; pages that are out "
    "at the end count "
    "as having lived at least so long (Kaplan and Meier's estimate).",
    basis=Basis.VIRTUAL,
    plan=plan,
    conclude=conclude,
)
