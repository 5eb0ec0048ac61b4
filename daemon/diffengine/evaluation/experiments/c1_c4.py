# SPDX-License-Identifier: GPL-2.0-or-later
"""Clock states and policies, on a working set that moves."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from diffengine.evaluation import drawing, simulating
from diffengine.evaluation.experiment import Basis, Column, Experiment, Outcome, Picture, Results, Step, Table
from diffengine.evaluation.setting import Setting
from diffengine.evaluation.texts import percent

POLICIES = ("default", "compress-first", "aggressive")
COLOURS = dict(zip(POLICIES, (drawing.BLUE, drawing.GREEN, drawing.RED), strict=True))
DURATION_S = {True: 180.0, False: 300.0}
# A tenth of the memory is written for a minute, then another tenth.
WINDOW, INTERVAL_S, STAYS = 0.1, 15.0, 4


def plan(setting: Setting) -> list[Step]:
    images = simulating.stand_ins(setting.guests)["homogeneous"][:2]
    duration_s = DURATION_S[setting.quick]
    steps = []
    for policy in POLICIES:
        for limited in (True, False):
            domains = [simulating.guest(image, number) for number, image in enumerate(images, 1)]
            engine = {} if limited else {"refault_limit": 10_000_000, "fault_limit": 100_000.0}
            arguments = {
                "values": simulating.scenario(setting.seed, duration_s, domains, policy=policy, **engine),
                "window": WINDOW,
                "stays": STAYS,
                "interval_s": INTERVAL_S,
                "seed": setting.seed,
            }
            seconds = simulating.expected_seconds(simulating.bytes_of(images), duration_s) * 1.5
            name = policy if limited else f"{policy}-unlimited"
            steps.append(Step(name, simulating.run_shifting, arguments, seconds))
    return steps


def conclude(results: Results) -> Outcome:
    return Outcome(
        tables=[_table(results)],
        pictures=[
            Picture(
                "c1_c4",
                "Left: memory saved over time while a tenth of the memory is written for a minute, then another tenth "
                "(solid: with the limits on faults; dashed: without). Right: pages that came back, so far.",
                partial(_draw, results),
            )
        ],
        verdict=_verdict(results),
    )


def _table(results: Results) -> Table:
    rows = [
        [
            name,
            result["saving"]["mean"] * 100,
            result["saving"]["end"] * 100,
            *(result["mean_by_technique"][t] * 100 for t in ("sharing", "patching", "compression")),
            result["evictions"],
            result["refaults"],
            result["guest"]["stall_us_per_s"],
            result["cpu_s"]["scan"],
        ]
        for name, result in results.items()
    ]
    columns = [
        Column("policy"),
        Column("saved, mean, %", ".1f"),
        Column("end, %", ".1f"),
        Column("shared, mean, %", ".1f"),
        Column("patched, %", ".1f"),
        Column("compressed, %", ".1f"),
        Column("evictions", ",d"),
        Column("came back", ",d"),
        Column("worst vCPU stalls, µs/s", ",.0f"),
        Column("engine's CPU, s (model)", ".1f"),
    ]
    return Table("Policies on a working set that moves", columns, rows)


def _verdict(results: Results) -> list[str]:
    parts = []
    for name, result in results.items():
        share = result["refaults"] / max(1, result["evictions"])
        parts.append(
            f"{name}: {percent(result['saving']['mean'], 1)} saved on average; {percent(share)} of "
            f"{result['evictions']:,} evicted pages came back, and the "
            f"worst vCPU stood still for {result['guest']['stall_us_per_s']:,.0f} µs per second."
        )
    if "default" in results and "aggressive-unlimited" in results:
        default, aggressive = results["default"], results["aggressive-unlimited"]
        more = aggressive["saving"]["mean"] - default["saving"]["mean"]
        times = aggressive["guest"]["stall_us_per_s"] / max(1.0, default["guest"]["stall_us_per_s"])
        parts.append(
            f"Treating every page as C4, without limits, changes the mean saving by {more * 100:+.1f} points "
            "and the guests' "
            f"stalls by a factor of {times:.1f}: pages that are in use are evicted over and over, each time for the "
            "price of an encoding and a fault. That is why not too many pages should be compressed; and a compressed "
            "page can neither be shared nor be a reference."
        )
    return parts


def _draw(results: Results) -> Figure:
    figure, (saving, back) = drawing.figure(columns=2)
    for name, result in results.items():
        policy = name.removesuffix("-unlimited")
        line = "-" if name == policy else "--"
        times = result["series"]["time_s"]
        saving.plot(times, np.array(result["series"]["saving"]) * 100, line, color=COLOURS[policy], label=name)
        back.plot(times, result["series"]["refaults"], line, color=COLOURS[policy], label=name)
    saving.set_ylim(0, 100)
    back.set_yscale("symlog", linthresh=100)
    drawing.plain_numbers(back.yaxis)
    drawing.titles(saving, "Saved", "time (s)", "memory saved (%)")
    drawing.titles(back, "Pages that came back", "time (s)", "pages so far")
    drawing.legend(saving, loc="lower right")
    return figure


EXPERIMENT = Experiment(
    name="c1_c4",
    title="C1 to C4: how patient to be",
    question="What do the Clock states bring: what if every page counts as C4, or compression comes before patching, "
    "while the working set moves?",
    method="Two guests that are alike write a tenth of their pages for a minute, then another tenth, and so on, "
    "and read a "
    "fixed working set. Three policies, each with the usual limits on faults and without any.",
    basis=Basis.VIRTUAL,
    plan=plan,
    conclude=conclude,
)
