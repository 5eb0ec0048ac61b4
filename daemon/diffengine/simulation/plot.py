# SPDX-License-Identifier: GPL-2.0-or-later
"""A simulation as a picture: memory over time, and what the guests felt of it."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffengine.simulation.report import saving, saving_by_technique, series
from diffengine.simulation.run import SimulationResult

MIB = 1 << 20
# Okabe and Ito's colours, which people with any colour vision can tell apart.
USED = {"guests": "#0072B2", "store": "#E69F00", "tables": "#CC79A7"}
TECHNIQUES = {"sharing": "#56B4E9", "patching": "#D55E00", "compression": "#009E73", "swapping": "#999999"}


def save_simulation_plot(result: SimulationResult, path: str) -> None:
    """Writes a .png or .svg. Raises OSError if the file can't be written."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    memory, techniques, stall, faults = figure.subplots(2, 2, height_ratios=(3, 2)).flat
    _draw_memory(memory, result)
    _draw_techniques(techniques, result)
    _draw_stall(stall, result)
    _draw_faults(faults, result)
    figure.savefig(Path(path), dpi=130)


def _times(result: SimulationResult) -> list[float]:
    return [sample.time_s for sample in result.samples]


def _draw_memory(axis: Axes, result: SimulationResult) -> None:
    parts = np.array([[s.guest_bytes, s.pager.store_bytes, s.table_bytes] for s in result.samples]).T / MIB
    axis.stackplot(_times(result), *parts, labels=list(USED), colors=list(USED.values()))
    allocated = result.allocated_bytes / MIB
    axis.axhline(allocated, color="k", linewidth=1, linestyle="--", label="allocated to the guests")
    resident = [sample.resident_bytes / MIB for sample in result.samples]
    axis.plot(_times(result), resident, color="k", linewidth=1, label="guests' frames by the kernel's count")
    axis.set_ylim(0, allocated * 1.15)
    axis.set_ylabel("memory (MiB)")
    axis.set_title(f"{result.scenario.name}: {saving(result.end, result.allocated_bytes):.1%} saved", fontsize=10)
    _finish(axis)


def _draw_techniques(axis: Axes, result: SimulationResult) -> None:
    parts = [saving_by_technique(sample, result.allocated_bytes) for sample in result.samples]
    for name, colour in TECHNIQUES.items():
        values = np.array([part[name] for part in parts]) * 100
        if values.any():
            axis.plot(_times(result), values, color=colour, label=name)
    axis.set_ylabel("saved (% of the guests' memory)")
    axis.set_title("By technique", fontsize=10)
    _finish(axis)


def _draw_stall(axis: Axes, result: SimulationResult) -> None:
    stalls = [point["stall_us_per_s"] for point in series(result)]
    axis.plot(_times(result), stalls, color="#0072B2", linewidth=1)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("time (s)")
    axis.set_ylabel("stall (µs per second)")
    axis.set_title("How long the worst vCPU stood still", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_faults(axis: Axes, result: SimulationResult) -> None:
    rates = {"touches of watched pages": "#999999", "refaults": "#D55E00", "evictions": "#009E73"}
    points = series(result)
    for (label, colour), key in zip(rates.items(), ("touches", "refaults", "evictions"), strict=True):
        axis.plot(_times(result), [point[key] for point in points], color=colour, label=label)
    axis.set_xlabel("time (s)")
    axis.set_ylabel("pages so far")
    axis.set_title("Pages that went and came", fontsize=10)
    _finish(axis)


def _finish(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
