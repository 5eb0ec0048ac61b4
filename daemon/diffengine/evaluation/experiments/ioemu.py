# SPDX-License-Identifier: GPL-2.0-or-later
"""The device model: what its mappings cost, and what mapping on demand gives back."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffengine.evaluation import drawing, simulating
from diffengine.evaluation.experiment import Basis, Column, Experiment, Outcome, Picture, Result, Results, Step, Table
from diffengine.evaluation.setting import Setting
from diffengine.simulation import Observed, Where, simulate

DURATION_S = {True: 120.0, False: 600.0}
# Pages that emulated devices read or write in a second, of a guest's hot tenth.
IO_PAGES_PER_S = 64
HOT = 0.1
# A page is unmapped so long after it was mapped, used again or not.
AGE_S = 10.0
WINDOW_PAGES = 16
WAYS = {
    "no device model": None,
    "everything mapped": "all",
    "16-page window": "window",
    "on demand, 10 s": "ageing",
}


@dataclass
class DeviceModel:
    """Maps pages of a domain as its devices need them, once a second; a window starts empty each second.

    kept: open mappings, and when they were made.
    """

    way: str
    seed: int
    kept: list[tuple[float, ExitStack]] = field(default_factory=list)
    asked: int = 0
    mapped_anew: int = 0
    _mapped: dict[int, set[int]] = field(default_factory=dict)

    def observe(self, time_s: float, host: Observed) -> None:
        random = np.random.default_rng([self.seed, int(time_s)])
        if self.way == "all":
            if not self.kept:
                self._map_all(time_s, host)
            return
        self._unmap_older_than(time_s - (AGE_S if self.way == "ageing" else 0.5))
        for domid, gfns in host.domains.items():
            # Popular pages are asked for again and again.
            hot = max(1, int(gfns * HOT))
            pages = np.unique((hot * random.random(IO_PAGES_PER_S) ** 3).astype(np.uint32) * np.uint32(gfns // hot))
            there = self._mapped.setdefault(domid, set())
            self.asked += len(pages)
            new = [page for page in pages.tolist() if page not in there]
            self.mapped_anew += len(new)
            keep = new if self.way == "ageing" else new[-WINDOW_PAGES:]
            self._map(time_s, host, domid, keep)

    def _map_all(self, time_s: float, host: Observed) -> None:
        for domid, gfns in host.domains.items():
            self._map(time_s, host, domid, list(range(gfns)))

    def _map(self, time_s: float, host: Observed, domid: int, pages: list[int]) -> None:
        if not pages:
            return
        stack = ExitStack()
        stack.enter_context(host.machine.map(domid, np.array(pages, dtype=np.uint32)))
        there = self._mapped.setdefault(domid, set())
        there.update(pages)
        stack.callback(there.difference_update, pages)
        self.kept.append((time_s, stack))

    def _unmap_older_than(self, time_s: float) -> None:
        old = [stack for mapped_s, stack in self.kept if mapped_s < time_s]
        self.kept = [each for each in self.kept if each[0] >= time_s]
        for stack in old:
            stack.close()

    def close(self) -> None:
        for _, stack in self.kept:
            stack.close()
        self.kept.clear()


def run(values: simulating.Values, way: str | None, seed: int) -> Result:
    model = DeviceModel(way, seed) if way else None
    with simulating.prepared(values) as scenario:
        result = simulate(scenario, where=Where.VIRTUAL, observer=model)
    result.check()
    return {
        **simulating.summary(result),
        "io_pages": model.asked if model else 0,
        "mapped_anew": model.mapped_anew if model else 0,
    }


def plan(setting: Setting) -> list[Step]:
    images = simulating.stand_ins(setting.guests)["homogeneous"][:2]
    duration_s = DURATION_S[setting.quick]
    steps = []
    for name, way in WAYS.items():
        domains = [
            simulating.guest(image, number, "working-set", operations_per_s=200.0)
            for number, image in enumerate(images, 1)
        ]
        arguments: dict[str, Any] = {
            "values": simulating.scenario(setting.seed, duration_s, domains),
            "way": way,
            "seed": setting.seed,
        }
        step_name = name.replace(" ", "-").replace(",", "")
        seconds = simulating.expected_seconds(simulating.bytes_of(images), duration_s)
        steps.append(Step(step_name, run, arguments, seconds))
    return steps


def _named(results: Results) -> dict[str, Result]:
    return {name: results[key] for name in WAYS if (key := name.replace(" ", "-").replace(",", "")) in results}


def conclude(results: Results) -> Outcome:
    named = _named(results)
    return Outcome(
        tables=[_table(named)],
        pictures=[
            Picture("ioemu", "Memory saved over time, by how the device model maps its guest.", partial(_draw, named))
        ],
        verdict=_verdict(named),
    )


def _table(named: dict[str, Result]) -> Table:
    rows = [
        [
            name,
            result["saving"]["mean"] * 100,
            result["saving"]["end"] * 100,
            result["mapped_anew"] / result["io_pages"] * 100 if result["io_pages"] else None,
            result["refaults"],
        ]
        for name, result in named.items()
    ]
    columns = [
        Column("device model"),
        Column("saved, mean, %", ".1f"),
        Column("end, %", ".1f"),
        Column("I/O that has to map first, %", ".0f"),
        Column("pages that came back", ",d"),
    ]
    return Table("Savings by how the device model maps", columns, rows)


def _verdict(named: dict[str, Result]) -> list[str]:
    ends = "; ".join(f"{name}: {result['saving']['end']:.0%}" for name, result in named.items())
    mapping = "; ".join(
        f"{name}: {result['mapped_anew'] / result['io_pages']:.0%}"
        for name, result in named.items()
        if result["io_pages"]
    )
    return [
        f"Saved at the end: {ends}.",
        *([f"I/O that has to map its page first: {mapping}."] if mapping else []),
        "A page that dom0 maps is neither shared nor evicted. The paper found a fixed small window too slow, and "
        "unmapped what was not used for ten seconds. Here a page is unmapped ten seconds after it was mapped, used "
        "again or not, and the window starts empty each second.",
        "Not in this run: the shim in front of a real QEMU, and that writes through a mapping are never lost; "
        "that is what the shim's own tests and the rig are for.",
    ]


def _draw(named: dict[str, Result]) -> Figure:
    figure, (axis,) = drawing.figure(height=3.4)
    colours = (drawing.GREY, drawing.RED, drawing.ORANGE, drawing.BLUE)
    for (name, result), colour in zip(named.items(), colours, strict=False):
        axis.plot(result["series"]["time_s"], np.array(result["series"]["saving"]) * 100, color=colour, label=name)
    axis.set_ylim(top=100)
    drawing.titles(axis, "Saved with a device model at work", "time (s)", "memory saved (%)")
    drawing.legend(axis, loc="center right")
    return figure


EXPERIMENT = Experiment(
    name="ioemu",
    title="ioemu: mappings of the device model",
    question="What do the device model's mappings cost in savings, and what do a 16-page window and 10-second "
    "ageing give?",
    method="Two guests that are alike, with little work of their own, and a device model in dom0 that reads and "
    "writes 64 pages a second of each, popular ones more often: mapping everything at the start, 16 pages at a time "
    "in a window that starts empty each second, or on demand, unmapping a page 10 s after it was mapped, used again "
    "or not. Mappings are the embedded machine's, which refuses what Xen refuses.",
    basis=Basis.VIRTUAL,
    plan=plan,
    conclude=conclude,
)
