# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios run in virtual time, and what experiments need of their reports."""

import ctypes
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffengine.evaluation.experiment import Result
from diffengine.evaluation.setting import Corpus, GuestImage
from diffengine.hypervisor.protocol import PageState
from diffengine.images import PAGE_BYTES, open_images
from diffengine.simulation import Observed, SimulationResult, Where, as_json, simulate
from diffengine.simulation.scenario import TRACE, TRACE_BITS, Scenario, read_scenario

Values = dict[str, Any]
# What ESX and KSM do: identical pages, whatever the Clock says, as long as they are not being written.
SHARING_ONLY = {"sharing-only": {state: ["share"] for state in ("C2", "C3", "C4")}}
GROUP = "evaluated"
# For the methods of experiments that may have more guests than there are images.
FEW_IMAGES = (
    "Where there are fewer images than guests, an image is used more than once; such guests begin with the same pages, "
    "which flatters sharing."
)
POINTS = 120


def scenario(seed: int, duration_s: float, domains: Sequence[Values], **engine: Any) -> Values:
    """A scenario file's values."""
    policies = SHARING_ONLY if engine.get("policy") == "sharing-only" else {}
    return {
        "seed": seed,
        "duration_s": duration_s,
        "engine": engine,
        "policies": policies,
        "domain": list(domains),
    }


def guest(image: GuestImage, number: int, program: str = "trace", **keys: Any) -> Values:
    """A domain with an image's memory; all guests are in one trust group."""
    return {
        "name": f"{image.release}-{number}",
        "image": str(image.path.resolve()),
        "program": program,
        "trust_group": GROUP,
        **keys,
    }


def stand_ins(corpus: Corpus) -> dict[str, list[GuestImage]]:
    """The paper's three mixes, from what images there are: guests alike, and two mixes of unlike ones. Where there are
    fewer images than guests, some are there more than once."""
    images = list(corpus.images)
    first = (corpus.alike.images if corpus.alike else corpus.images)[0]
    alike = [image for image in images if (image.release, image.workload) == (first.release, first.workload)]
    mixes = {"homogeneous": [alike[number % len(alike)] for number in range(4)]}
    releases = {image.release: image for image in reversed(images)}
    unlike = [releases[name] for name in sorted(releases)]
    if len(unlike) > 1:
        mixes["MIXED-1"] = (unlike * 3)[:3] if len(unlike) > 2 else [*unlike, alike[-1]]
        mixes["MIXED-2"] = [*unlike[::-1][:2], *(alike[-1:] if len(unlike) > 2 else [])]
    return mixes


def run(values: Values, nonzero_only: bool = False, every: int = 1) -> Result:
    """A scenario in virtual time. nonzero_only: of each image only its non-zero pages, so that what is saved is saved
    of those. every: of those one content in so many."""
    with prepared(values, nonzero_only, every) as scenario:
        result = simulate(scenario, where=Where.VIRTUAL)
    result.check()
    return summary(result)


@contextmanager
def prepared(values: Values, nonzero_only: bool = False, every: int = 1) -> Iterator[Scenario]:
    """The scenario, with what has to be made for it as long as it runs."""
    with tempfile.TemporaryDirectory(prefix="diffengine-") as scratch:
        folder, domains = Path(scratch), []
        for number, each in enumerate(values["domain"]):
            domain = dict(each)
            if nonzero_only:
                domain["image"] = str(without_zero_pages(Path(each["image"]), folder, number, every))
            if domain["program"] == "trace" and "trace" not in domain:
                with open_images([domain["image"]]) as images:
                    domain |= fitting_trace(folder / f"{number}.bits", images.pages)
            domains.append(domain)
        yield read_scenario("evaluate", {**values, "domain": domains}, "evaluate", [folder])


def fitting_trace(path: Path, pages: int) -> Values:
    """The recorded trace for a guest of so many pages: a smaller one gets every so many-th page's bits, so that as
    large a part of its memory is written as of the recorded guest's."""
    if pages >= TRACE_BITS:
        return {}
    bits = pages // 8 * 8
    recorded = np.unpackbits(np.fromfile(TRACE, dtype=np.uint8).reshape(-1, TRACE_BITS // 8), axis=1, bitorder="little")
    chosen = recorded[:, np.arange(bits) * TRACE_BITS // bits]
    path.write_bytes(np.packbits(chosen, axis=1, bitorder="little").tobytes())
    return {"trace": str(path), "trace_bits": bits}


def run_resized(values: Values, every: int, parts: int) -> Result:
    """As `run`, with one content of each image in so many, and each guest divided into so many, which do its work
    together."""
    with tempfile.TemporaryDirectory(prefix="diffengine-") as folder:
        domains = []
        for domain in values["domain"]:
            for number, pages in enumerate(np.array_split(thinned(_words(Path(domain["image"])), every), parts)):
                name = f"{domain['name']}-{number}"
                path = Path(folder) / f"{name}.raw"
                pages.tofile(path)
                work = domain["operations_per_s"] / parts
                domains.append({**domain, "name": name, "image": str(path), "operations_per_s": work})
        return run({**values, "domain": domains})


def _words(image: Path) -> NDArray[np.uint64]:
    """Of each page."""
    with open_images([image]) as images:
        addresses = images.addresses(np.arange(images.pages, dtype=np.uint32))
        begins = np.flatnonzero(np.diff(addresses, prepend=np.uint64(0)) != PAGE_BYTES)
        lengths = np.diff(begins, append=len(addresses)) * PAGE_BYTES
        runs = zip(addresses[begins].tolist(), lengths.tolist(), strict=True)
        content = b"".join(ctypes.string_at(address, length) for address, length in runs)
    return np.frombuffer(content, dtype=np.uint64).reshape(-1, PAGE_BYTES // 8)


def thinned(words: NDArray[np.uint64], every: int) -> NDArray[np.uint64]:
    """Pages of one content in so many, with all of its copies; and one zero page in so many."""
    weights = np.random.default_rng(0).integers(1 << 63, size=words.shape[1], dtype=np.uint64)
    kept = (words @ weights >> np.uint64(32)) % np.uint64(every) == 0
    zero = np.flatnonzero(~words.any(axis=1))
    kept[zero] = False
    kept[zero[::every]] = True
    chosen: NDArray[np.uint64] = words[kept]
    return chosen


def nonzero_pages(image: Path, every: int = 1) -> int:
    return int(np.count_nonzero(thinned(_words(image), every).any(axis=1)))


def without_zero_pages(image: Path, folder: Path, number: int, every: int = 1) -> Path:
    """A raw image of an image's non-zero pages, of one content in so many."""
    words = thinned(_words(image), every)
    path = folder / f"{number}.raw"
    words[words.any(axis=1)].tofile(path)
    return path


def summary(result: SimulationResult) -> Result:
    report = as_json(result)
    step = max(1, len(result.samples) // POINTS)
    operations = [sum(p.reads + p.writes for p in sample.programs) for sample in result.samples]
    chosen = sorted({*range(0, len(result.samples), step), len(result.samples) - 1})
    series = [report["series"][n] for n in chosen]
    kept = ("saving", "used_bytes", "allocated_bytes", "guest", "refaults", "touches", "evictions", "latency_us")
    more = ("cpu_s", "table_bytes", "sweeps", "cycles", "passes", "pages", "domains", "duration_s")
    return {
        **{key: report[key] for key in kept + more},
        "series": {
            "time_s": [point["time_s"] for point in series],
            "saving": [point["saving"] for point in series],
            **{name: [point["by_technique"][name] for point in series] for name in report["saving"]["by_technique"]},
            "refaults": [point["refaults"] for point in series],
            "scan_cpu_s": [point["scan_cpu_s"] for point in series],
            "swap_bytes": [point["used_bytes"]["swap"] for point in series],
            "operations": [operations[n] for n in chosen],
        },
        "mean_by_technique": mean_by_technique(result, report),
        "virtual": report["virtual"],
    }


def mean_by_technique(result: SimulationResult, report: dict[str, Any]) -> dict[str, float]:
    """Mean over time of what each technique saves."""
    times = np.array([sample.time_s for sample in result.samples])
    lengths = np.diff(times)
    means = {}
    for name in report["saving"]["by_technique"]:
        values = np.array([point["by_technique"][name] for point in report["series"]])
        means[name] = float(np.dot(values[:-1], lengths) / lengths.sum()) if lengths.sum() else float(values[-1])
    return means


def expected_seconds(corpus_bytes: float, duration_s: float) -> float:
    """About what a run takes, for the progress display."""
    return 2 + corpus_bytes / (64 << 20) * duration_s / 300 * 3


def bytes_of(images: Sequence[GuestImage]) -> int:
    return sum(image.path.stat().st_size for image in images)


class Lifetimes:
    """How long pages stay out, seen once per sample of a simulation."""

    def __init__(self) -> None:
        self._since: list[NDArray[np.float64]] = []
        self._came_back: list[NDArray[np.float64]] = []
        self._last_s = 0.0

    def observe(self, time_s: float, host: Observed) -> None:
        self.note(time_s, [host.pager.states(domid, 0, gfns).states for domid, gfns in host.domains.items()])

    def close(self) -> None:
        """It holds nothing."""

    def note(self, time_s: float, states: Sequence[NDArray[np.uint8]]) -> None:
        if not self._since:
            self._since = [np.full(len(each), np.nan) for each in states]
        self._last_s = time_s
        for since, of_domain in zip(self._since, states, strict=True):
            out = of_domain == PageState.EVICTED
            back = ~out & ~np.isnan(since)
            self._came_back.append(time_s - since[back])
            since[back] = np.nan
            since[out & np.isnan(since)] = time_s

    def untouched_after(self, ages_s: Sequence[float]) -> list[float | None]:
        """Share of evicted pages still untouched at each age: Kaplan and Meier's estimate, since pages that are out at
        the end of the run have lived at least so long. None: the run was too short to tell."""
        ended = np.concatenate(self._came_back) if self._came_back else np.empty(0)
        alive = [self._last_s - since[~np.isnan(since)] for since in self._since]
        return kaplan_meier(ended, np.concatenate(alive) if alive else np.empty(0), ages_s)


def kaplan_meier(ended: NDArray[np.float64], alive: NDArray[np.float64], ages: Sequence[float]) -> list[float | None]:
    """Survival at each age, of lives that ended and of lives that go on, by their lengths."""
    lengths = np.concatenate([ended, alive])
    if not len(lengths):
        return [None] * len(ages)
    times, deaths = np.unique(ended, return_counts=True)
    at_risk = len(lengths) - np.searchsorted(np.sort(lengths), times)
    survival = np.concatenate([[1.0], np.cumprod(1 - deaths / at_risk)])
    longest = float(lengths.max())
    return [float(survival[np.searchsorted(times, age, side="right")]) if age <= longest else None for age in ages]


AGES_S = [float(age) for age in (1, 2, 5, 10, 20, 30, 50, 100, 150, 200, 300, 450, 600, 900)]


def run_with_lifetimes(values: Values) -> Result:
    """As `run`, and how long pages stayed out."""
    lifetimes = Lifetimes()
    with prepared(values) as scenario:
        result = simulate(scenario, where=Where.VIRTUAL, observer=lifetimes)
    result.check()
    return {**summary(result), "ages_s": AGES_S, "untouched": lifetimes.untouched_after(AGES_S)}


def shifting_trace(path: Path, seed: int, window: float, stays: int, intervals: int, bits: int = 8192) -> None:
    """Bitmaps for the program `trace` of a guest that works on one part of its memory, then on another: each window of
    pages is written in so many intervals in a row."""
    random = np.random.default_rng(seed)
    maps = np.zeros((intervals, bits), dtype=np.uint8)
    for start in range(0, intervals, stays):
        chosen = random.permutation(bits)[: int(bits * window)]
        maps[start : start + stays, chosen] = 1
    path.write_bytes(np.packbits(maps, axis=1, bitorder="little").tobytes())


def run_shifting(values: Values, window: float, stays: int, interval_s: float, seed: int) -> Result:
    """As `run_with_lifetimes`, each guest writing a working set that moves."""
    with tempfile.TemporaryDirectory(prefix="diffengine-") as folder:
        domains = []
        for number, each in enumerate(values["domain"]):
            path = Path(folder) / f"{number}.bits"
            intervals = -(-int(values["duration_s"]) // int(interval_s)) + stays
            shifting_trace(path, seed + number, window, stays, intervals)
            domains.append({**each, "trace": str(path), "trace_bits": 8192, "interval_s": interval_s})
        return run_with_lifetimes({**values, "domain": domains})
