# SPDX-License-Identifier: GPL-2.0-or-later
"""An analysis as a picture: bytes left by technique, and what each pair of images shares."""

import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffengine.analysis.analyze import ALL, GROUPED, ISOLATED, Analysis
from diffengine.analysis.pipelines import PipelineResult
from diffengine.errors import one_line
from diffengine.images import PAGE_BYTES

MIB = 1 << 20
# Okabe and Ito's colours, which people with any colour vision can tell apart.
PARTS = {
    "unpatched pages": "#0072B2",
    "patches": "#E69F00",
    "headers, store losses": "#999999",
    "page table, digests, indexes": "#CC79A7",
}
LABELS = {
    "sharing": "sharing\nonly",
    "lz4": "LZ4\nonly",
    "sharing+lz4": "sharing\n+ LZ4",
    "paper": "the paper's",
    "best": "best",
}


def save_plot(analysis: Analysis, path: str) -> None:
    """Writes a .png or .svg. Raises OSError if the file can't be written."""
    scopes = [GROUPED] if analysis.groups else [ALL, ISOLATED][: 1 + (len(analysis.images) > 1)]
    several = len(analysis.images) > 1
    columns = len(scopes) + several
    figure = Figure(figsize=(5.2 * columns, 4.8), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    highest = max(r.bytes_left for scope in scopes for r in analysis.results[scope].values()) / MIB
    for axis, scope in zip(axes[0], scopes, strict=False):
        _draw_bars(axis, analysis, scope, highest)
    if several:
        _draw_heat_map(axes[0][-1], analysis)
    with warnings.catch_warnings():
        # An image's name may be in a script that the font lacks: its letters show as boxes then.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(Path(path), dpi=130)


def _parts(result: PipelineResult) -> list[float]:
    patches = result.patched_pages * result.mean_patch_bytes
    headers_and_loss = result.store_bytes - result.payload_bytes
    return [
        (result.payload_bytes - patches) / MIB,
        patches / MIB,
        headers_and_loss / MIB,
        result.metadata_bytes / MIB,
    ]


def _draw_bars(axis: Axes, analysis: Analysis, scope: str, highest: float) -> None:
    results = analysis.results[scope]
    parts = np.array([_parts(result) for result in results.values()])
    bottoms = np.zeros(len(results))
    places = np.arange(len(results))
    for (label, colour), heights in zip(PARTS.items(), parts.T, strict=True):
        axis.bar(places, heights, 0.62, bottom=bottoms, label=label, color=colour)
        bottoms += heights
    for place, (height, result) in enumerate(zip(bottoms, results.values(), strict=True)):
        text = f"{height:,.0f} MiB\nsaves {result.saving:.1%}"
        axis.annotate(text, (place, height), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axis.set_xticks(places, [LABELS[name] for name in results], fontsize=8)
    axis.set_ylim(0, highest * 1.18)
    axis.set_ylabel("memory needed (MiB)")
    axis.set_title(f"{scope}\nof {analysis.total_bytes / MIB:,.0f} MiB", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="upper right", bbox_to_anchor=(1, 0.88))


def _draw_heat_map(axis: Axes, analysis: Analysis) -> None:
    mib = analysis.shared_between * PAGE_BYTES / MIB
    names = [one_line(Path(path).name) for path, _ in analysis.images]
    picture = axis.imshow(mib, cmap="viridis", vmin=0)
    axis.figure.colorbar(picture, ax=axis, shrink=0.75, label="MiB")
    few = len(names) <= 12
    if few:
        for (row, column), value in np.ndenumerate(mib):
            light = value < mib.max(initial=0) * 0.6
            axis.text(
                column,
                row,
                f"{value:,.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color="w" if light else "k",
            )
    size = 8 if few else 5
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=size, parse_math=False)
    axis.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    axis.set_title(
        "non-zero memory of the row's image\nthat the column's image holds too\n(diagonal: copies within it)",
        fontsize=9,
    )
