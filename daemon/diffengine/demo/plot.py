# SPDX-License-Identifier: GPL-2.0-or-later
"""A demo run as a picture: memory after each technique, and how long faults took."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffengine.demo.run import DemoResult

MIB = 1 << 20


def save_demo_plot(result: DemoResult, path: str) -> None:
    """Writes a .png or .svg. Raises OSError if the file can't be written."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    memory, faults = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_memory(memory, result)
    _draw_faults(faults, result)
    figure.savefig(Path(path), dpi=130)


def _draw_memory(axis: Axes, result: DemoResult) -> None:
    moments = [("all pages\nresident", result.start)]
    moments += [(step.name.replace(" ", "\n"), step.memory) for step in result.steps]
    moments.append(("after the\nguests ran", result.end))
    places = np.arange(len(moments))
    frames = np.array([memory.frames for _, memory in moments]) / MIB
    store = np.array([memory.store for _, memory in moments]) / MIB
    axis.bar(places, frames, 0.62, color="#0072B2", label="guests' frames")
    axis.bar(places, store, 0.62, bottom=frames, color="#E69F00", label="store")
    rss = [memory.rss / MIB for _, memory in moments]
    axis.plot(places, rss, "k.--", linewidth=1, label="both, by the kernel's count of this process")
    for place, height in zip(places, frames + store, strict=True):
        axis.annotate(f"{height:,.1f}", (place, height), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axis.set_xticks(places, [name for name, _ in moments], fontsize=8)
    axis.set_ylabel("memory (MiB)")
    axis.set_ylim(0, max(rss) * 1.3)
    axis.set_title("Memory of the guests, technique by technique", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="upper right")


def _draw_faults(axis: Axes, result: DemoResult) -> None:
    waits = np.sort(result.fault_us)
    if len(waits):
        axis.plot(waits, np.linspace(0, 1, len(waits)), color="#0072B2")
        for quantile in (0.5, 0.99):
            wait = float(np.quantile(waits, quantile))
            axis.plot([wait], [quantile], "o", color="#D55E00")
            axis.annotate(
                f"p{quantile * 100:.0f}: {wait:,.0f} µs", (wait, quantile), (6, -12), textcoords="offset points"
            )
        axis.set_xscale("log")
    axis.set_xlabel("a guest's wait for an evicted page (µs)")
    axis.set_ylabel("share of faults")
    axis.set_ylim(0, 1.03)
    axis.set_title(f"{len(waits):,} faults, wake-ups included", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
