# SPDX-License-Identifier: GPL-2.0-or-later
"""The device model: what its mappings cost, and what mapping on demand gives back."""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffengine.evaluation import drawing, simulating
from diffengine.evaluation.experiment import Basis, Column, Experiment, Outcome, Picture, Result, Results, Step, Table
from diffengine.evaluation.setting import Setting
from diffengine.evaluation.texts import percent
from diffengine.hypervisor.protocol import PageState
from diffengine.simulation import Observed, Where, simulate

DURATION_S = {True: 120.0, False: 240.0}
# Pages that emulated devices read or write in a second, of a guest's hot tenth.
IO_PAGES_PER_S = 64
HOT = 0.1
# A page is unmapped when it was not used for so long.
AGE_S = 10.0
WINDOW_PAGES = 16
# The shim maps a touched page's neighbours with it, unless they are out or shared.
CLUSTER_PAGES = 16
WAYS = {
    "no device model": None,
    "everything mapped": "all",
    "16-page window": "window",
    "on demand, 10 s": "ageing",
    "clusters on demand, as the shim": "clusters",
}


@dataclass
class _Mapped:
    """A page, or a cluster of them, that is mapped."""

    used_s: float
    mapping: ExitStack


class _MappingsOfDomain:
    """Its mappings, the one that was used last at the end."""

    def __init__(self, domid: int, host: Observed) -> None:
        self._domid = domid
        self._host = host
        self._mapped: OrderedDict[int, _Mapped] = OrderedDict()

    def use(self, time_s: float, place: int, pages: Callable[[], list[int]]) -> bool:
        """A device reads or writes at a place, whose pages are these, the one that it needs first; whether they had to
        be mapped for that. A page that is out is asked for, and there when it is used again."""
        if place in self._mapped:
            self._mapped[place].used_s = time_s
            self._mapped.move_to_end(place)
            return False
        with ExitStack() as stack:
            mapping = stack.enter_context(self._host.machine.map(self._domid, np.array(pages(), dtype=np.uint32)))
            if mapping.addresses[0]:
                self._mapped[place] = _Mapped(time_s, stack.pop_all())
        return True

    def keep(self, count: int) -> None:
        """Those that were used last."""
        while len(self._mapped) > count:
            self._unmap_oldest()

    def unmap_unused_since(self, time_s: float) -> None:
        while self._mapped and next(iter(self._mapped.values())).used_s <= time_s:
            self._unmap_oldest()

    def _unmap_oldest(self) -> None:
        self._mapped.popitem(last=False)[1].mapping.close()


@dataclass
class DeviceModel:
    """Maps pages of each domain as its devices need them, those of a second at its end. asked: pages that devices
    used. mapped_anew: those of them that had to be mapped for that."""

    way: str
    seed: int
    asked: int = 0
    mapped_anew: int = 0
    _domains: dict[int, _MappingsOfDomain] = field(default_factory=dict)

    def observe(self, time_s: float, host: Observed) -> None:
        random = np.random.default_rng([self.seed, int(time_s)])
        first = not self._domains
        for domid, gfns in host.domains.items():
            mappings = self._domains.setdefault(domid, _MappingsOfDomain(domid, host))
            # Popular pages are asked for again and again.
            hot = max(1, int(gfns * HOT))
            pages = (hot * random.random(IO_PAGES_PER_S) ** 3).astype(np.uint32) * np.uint32(gfns // hot)
            if self.way != "all":
                self._serve(time_s, host, domid, mappings, pages.tolist())
            elif first:
                mappings.use(time_s, 0, partial(list, range(gfns)))

    def _serve(self, time_s: float, host: Observed, domid: int, mappings: _MappingsOfDomain, pages: list[int]) -> None:
        for page in pages:
            self.asked += 1
            if self.way == "clusters":
                neighbours = partial(_with_neighbours, host, domid, page)
                self.mapped_anew += mappings.use(time_s, page // CLUSTER_PAGES, neighbours)
            else:
                self.mapped_anew += mappings.use(time_s, page, partial(list, [page]))
            if self.way == "window":
                mappings.keep(WINDOW_PAGES)
        mappings.unmap_unused_since(time_s - AGE_S)

    def close(self) -> None:
        for mappings in self._domains.values():
            mappings.keep(0)


def _with_neighbours(host: Observed, domid: int, page: int) -> list[int]:
    first = page // CLUSTER_PAGES * CLUSTER_PAGES
    count = min(CLUSTER_PAGES, host.domains[domid] - first)
    there = np.flatnonzero(host.pager.states(domid, first, count).states == PageState.RESIDENT)
    return [page, *(number for number in (first + there).tolist() if number != page)]


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
    ends = "; ".join(f"{name}: {percent(result['saving']['end'])}" for name, result in named.items())
    mapping = "; ".join(
        f"{name}: {percent(result['mapped_anew'] / result['io_pages'])}"
        for name, result in named.items()
        if result["io_pages"]
    )
    return [
        f"Saved at the end: {ends}.",
        *([f"I/O that has to map its page first: {mapping}."] if mapping else []),
        "A page that dom0 maps is neither shared nor evicted: a device model that maps its whole guest leaves nothing "
        "to save.",
        *_compared(named),
        "Not in this run: the shim in front of a real QEMU, and that writes through a mapping are never lost; "
        "that is what the shim's own tests and the rig are for.",
    ]


def _compared(named: dict[str, Result]) -> list[str]:
    window, ageing = (named.get(name) for name in ("16-page window", "on demand, 10 s"))
    if not window or not ageing:
        return []
    mapped = [each["mapped_anew"] / each["io_pages"] for each in (window, ageing)]
    points = (window["saving"]["end"] - ageing["saving"]["end"]) * 100
    return [
        f"The paper found a small window too slow, and kept what was used in the last ten seconds. Here that spares "
        f"{percent(1 - mapped[1] / mapped[0])} of the window's mappings, and costs {points:.0f} points of the "
        "saving at the end."
    ]


def _draw(named: dict[str, Result]) -> Figure:
    figure, (axis,) = drawing.figure(height=3.4)
    colours = (drawing.GREY, drawing.RED, drawing.ORANGE, drawing.BLUE, drawing.GREEN)
    for (name, result), colour in zip(named.items(), colours, strict=False):
        axis.plot(result["series"]["time_s"], np.array(result["series"]["saving"]) * 100, color=colour, label=name)
    axis.set_ylim(top=100)
    drawing.titles(axis, "Saved with a device model at work", "time (s)", "memory saved (%)")
    drawing.legend(axis, loc="center right", bbox_to_anchor=(1.0, 0.3))
    return figure


EXPERIMENT = Experiment(
    name="ioemu",
    title="ioemu: mappings of the device model",
    question="What do the device model's mappings cost in savings, and what do a 16-page window and 10-second "
    "ageing give?",
    method="Two guests that are alike, with little work of their own, and a device model in dom0 that reads and "
    "writes 64 pages a second of each, popular ones more often: mapping everything at the start; the 16 pages that "
    "were used last; on demand, unmapping a page that was not used for 10 s; or so by clusters of 16 pages, as the "
    "shim does. Mappings are the embedded machine's, which refuses what Xen refuses.",
    basis=Basis.VIRTUAL,
    plan=plan,
    conclude=conclude,
)
