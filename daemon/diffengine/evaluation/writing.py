# SPDX-License-Identifier: GPL-2.0-or-later
"""An evaluation on disk: for each experiment its results as JSON, its tables as CSV, its figures as SVG and PNG."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from diffengine.evaluation.evaluate import Evaluated, results_json
from diffengine.evaluation.experiment import Picture, Table

PNG_DPI = 130


@dataclass(frozen=True)
class DrawnPicture:
    """A picture's text, and its SVG."""

    name: str
    text: str
    svg: str


def write_experiment(evaluated: Evaluated, folder: Path) -> list[DrawnPicture]:
    """Files in folder/NAME.*; the pictures, for the report."""
    name = evaluated.experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(results_json(evaluated))
    if evaluated.outcome is None:
        return []
    for number, table in enumerate(evaluated.outcome.tables, 1):
        (folder / f"{name}-{number}.csv").write_text(as_csv(table))
    return [_draw(picture, folder) for picture in evaluated.outcome.pictures]


def as_csv(table: Table) -> str:
    """Numbers as they are; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.heading for column in table.columns])
    writer.writerows(table.rows)
    return text.getvalue()


def _draw(picture: Picture, folder: Path) -> DrawnPicture:
    figure = picture.draw()
    svg = io.StringIO()
    # Text stays text, to be read and searched; equal pictures are equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": picture.name}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(folder / f"{picture.name}.png", dpi=PNG_DPI)
    (folder / f"{picture.name}.svg").write_text(svg.getvalue())
    return DrawnPicture(picture.name, picture.text, svg.getvalue())
