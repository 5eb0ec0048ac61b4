# SPDX-License-Identifier: GPL-2.0-or-later
"""Figure 8: several equal guests."""

from functools import partial

from matplotlib.figure import Figure

from diffengine.evaluation import drawing, paper, simulating
from diffengine.evaluation.experiment import Basis, Column, Experiment, Outcome, Picture, Result, Results, Step, Table
from diffengine.evaluation.setting import Setting
from diffengine.evaluation.texts import percent

GUESTS = (1, 2, 4, 6)
DURATION_S = {True: 120.0, False: 150.0}
OPERATIONS_PER_S = 2000.0
# A policy that does nothing: what the guests do when nobody is at work.
NOTHING = "nothing"


def plan(setting: Setting) -> list[Step]:
    alike = simulating.stand_ins(setting.guests)["homogeneous"]
    duration_s = DURATION_S[setting.quick]
    steps = []
    for count in GUESTS:
        images = [alike[number % len(alike)] for number in range(count)]
        for policy in ("default", NOTHING):
            domains = [
                simulating.guest(image, number, "working-set", operations_per_s=OPERATIONS_PER_S)
                for number, image in enumerate(images, 1)
            ]
            values = simulating.scenario(setting.seed, duration_s, domains, policy=policy)
            if policy == NOTHING:
                values["policies"] = {NOTHING: {}}
            seconds = simulating.expected_seconds(simulating.bytes_of(images), duration_s) * (
                1 if policy == "default" else 0.5
            )
            steps.append(Step(f"{count}-{policy}", simulating.run, {"values": values}, seconds))
    return steps


def per_second(result: Result) -> float:
    guest = result["guest"]
    return float((guest["reads"] + guest["writes"]) / result["duration_s"])


def mean_stall_us(result: Result) -> float:
    """Mean over the guests of what an operation waits."""
    stalled_us = sum(domain["stall_us_per_s"] for domain in result["domains"]) * result["duration_s"]
    return float(stalled_us / (result["guest"]["reads"] + result["guest"]["writes"]))


def _pairs(results: Results) -> dict[int, tuple[Result, Result]]:
    found = {count: [results.get(f"{count}-{policy}") for policy in ("default", NOTHING)] for count in GUESTS}
    return {count: (a, b) for count, (a, b) in found.items() if a is not None and b is not None}


def conclude(results: Results) -> Outcome:
    pairs = _pairs(results)
    return Outcome(
        tables=[_table(pairs)],
        pictures=[
            Picture(
                "fig8",
                "Left: mean saving by technique with 1, 2, 4 and 6 equal guests; the band is the paper's 58 to 63 %. "
                "Right: operations per second with the engine, as a share of those without it.",
                partial(_draw, pairs),
            )
        ],
        verdict=_verdict(pairs),
    )


def _table(pairs: dict[int, tuple[Result, Result]]) -> Table:
    rows = [
        [
            count,
            *(ours["mean_by_technique"][t] * 100 for t in ("sharing", "patching", "compression")),
            ours["saving"]["mean"] * 100,
            per_second(ours),
            per_second(bare),
            mean_stall_us(ours),
            ours["latency_us"]["guest_wait"]["p99"],
        ]
        for count, (ours, bare) in pairs.items()
    ]
    columns = [
        Column("guests", "d"),
        Column("shared, mean, %", ".1f"),
        Column("patched, %", ".1f"),
        Column("compressed, %", ".1f"),
        Column("saved, %", ".1f"),
        Column("operations/s", ",.0f"),
        Column("without engine", ",.0f"),
        Column("wait per operation, µs (model)", ".2f"),
        Column("p99 of a fault, µs (model)", ".1f"),
    ]
    return Table("Equal guests", columns, rows)


def _verdict(pairs: dict[int, tuple[Result, Result]]) -> list[str]:
    parts = []
    for count, (ours, bare) in pairs.items():
        most = max(("sharing", "patching", "compression"), key=lambda t: ours["mean_by_technique"][t])
        parts.append(
            f"{count} guest{'s' if count > 1 else ''}: {percent(ours['saving']['mean'])} saved on average, most by "
            f"{most}; {percent(per_second(ours) / per_second(bare), 1)} of the operations that are done without the "
            "engine."
        )
    parts.append(
        "Sharing brings most where guests are alike, and the more the more of them there are: each further guest adds "
        "mostly copies. A guest alone has little to share but zero pages, so patching and compression weigh "
        "most there. "
        "The wait per operation is the model's, and small; see table3 for applications on a real hypervisor."
    )
    return parts


def _draw(pairs: dict[int, tuple[Result, Result]]) -> Figure:
    figure, (saved, rate) = drawing.figure(columns=2)
    names = ("sharing", "patching", "compression")
    labels = [str(count) for count in pairs]
    parts = {t: [ours["mean_by_technique"][t] * 100 for ours, _ in pairs.values()] for t in names}
    drawing.stacked_bars(saved, labels, parts, [drawing.TECHNIQUES[t] for t in names])
    saved.axhspan(*paper.FIGURE_8, color="black", alpha=0.12, label="paper: mean")
    saved.set_ylim(0, 100)
    drawing.titles(saved, "Saved on average", "equal guests", "% of the guests' memory")
    drawing.legend(saved, loc="upper left")
    shares = [per_second(ours) / per_second(bare) * 100 for ours, bare in pairs.values()]
    rate.bar(labels, shares, 0.62, color=drawing.BLUE)
    drawing.note_bars(rate, shares, [f"{share:.1f}" for share in shares])
    rate.set_ylim(0, 115)
    drawing.titles(rate, "Throughput", "equal guests", "% of that without the engine")
    return figure


EXPERIMENT = Experiment(
    name="fig8",
    title="Figure 8: one, two, four, six equal guests",
    question="How much is saved, and by which technique, as equal guests are added, and what happens to throughput and "
    "response time?",
    method="Guests of one release, each with a working set of a tenth of its non-zero pages and 2,000 operations a "
    f"second (a page read, or a tenth of the time written). {simulating.FEW_IMAGES} Each number of guests runs twice, "
    "with the engine and without.",
    basis=Basis.VIRTUAL,
    plan=plan,
    conclude=conclude,
)
