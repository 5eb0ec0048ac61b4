# SPDX-License-Identifier: GPL-2.0-or-later
"""PYTHONPATH=tests python -m xen.rig.pinned_frames SAMPLES PNG: what QEMU had mapped of its guest over time, with
the shim and without (suite/test_ioemu.py)."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from diffengine.evaluation import drawing

SAMPLES = "pinned-frames.json"
PICTURE = "pinned-frames.png"
TITLES = {
    "without": "QEMU as it is",
    "with": "with the shim, beside evictions",
}


def draw_if_there(share: Path) -> None:
    """If the suite ran that test."""
    if (share / SAMPLES).is_file():
        draw(share / SAMPLES, share / PICTURE)
        print(f"what QEMU had mapped: {share / PICTURE}")


def draw(samples: Path, picture: Path) -> None:
    found = json.loads(samples.read_text())
    shown = [name for name in TITLES if name in found]
    figure, axes = drawing.figure(columns=len(shown), same_y=True)
    for axis, name in zip(axes, shown, strict=True):
        _draw_one(axis, found[name], found["guest_pages"])
        drawing.titles(axis, TITLES[name], x="seconds", y="% of the guest's pages")
        axis.set_ylim(bottom=0)
        drawing.legend(axis, loc="upper left")
    figure.savefig(picture, dpi=150)


def _draw_one(axis: Axes, run: dict[str, Any], guest_pages: int) -> None:
    seconds, pinned, unused = zip(*run["samples"], strict=True)
    for number, (begin, end) in enumerate(run["io_s"]):
        axis.axvspan(begin, end, color=drawing.GREY, alpha=0.15, linewidth=0, label=None if number else "disk I/O")
    # Rings, and what else is no RAM, are not touched by the guest's disk I/O either.
    axis.plot(seconds, [pages / guest_pages * 100 for pages in pinned], color=drawing.BLUE, label="mapped")
    axis.plot(
        seconds,
        [pages / guest_pages * 100 for pages in unused],
        color=drawing.RED,
        linewidth=1,
        label="mapped, without disk I/O for 12 s",
    )


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
