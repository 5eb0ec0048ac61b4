# SPDX-License-Identifier: GPL-2.0-or-later
"""An analysis as JSON, whose keys others build on (docs/analyze.md), and as tables in the paper's terms."""

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from diffengine.analysis.analyze import ALL, GROUPED, ISOLATED, Analysis
from diffengine.analysis.pipelines import PipelineResult
from diffengine.images import PAGE_BYTES

MIB = 1 << 20

WHAT = {
    "sharing": "sharing only (ESX, KSM)",
    "lz4": "compress only, LZ4 (zswap)",
    "sharing+lz4": "sharing + LZ4",
    "paper": "the paper's: sharing, patching, LZ4",
    "best": "best",
}


def as_json(analysis: Analysis) -> dict[str, Any]:
    """The JSON report. Keys may be added, never renamed."""
    report: dict[str, Any] = {
        "images": [{"path": path, "pages": pages} for path, pages in analysis.images],
        "pages": asdict(analysis.pages),
        "pipelines": _pipelines(analysis, ALL),
        "pipelines_isolated": _pipelines(analysis, ISOLATED),
        "metadata_bytes_per_page": analysis.metadata_bytes_per_page,
        "cpu_seconds": analysis.cpu_seconds,
        "passes": analysis.passes,
        "seed": analysis.seed,
        "pages_shared_between": analysis.shared_between.tolist(),
    }
    if analysis.groups:
        report["groups"] = {name: list(paths) for name, paths in analysis.groups.items()}
        report["pipelines_grouped"] = _pipelines(analysis, GROUPED)
    return report


def _pipelines(analysis: Analysis, scope: str) -> dict[str, dict[str, float]]:
    return {name: asdict(result) for name, result in analysis.results[scope].items()}


def as_tables(analysis: Analysis) -> RenderableType:
    """What a person reads: the pages, the paper's Table 1, and every pipeline for every division into groups."""
    scopes = [GROUPED] if analysis.groups else [ALL, ISOLATED]
    if len(analysis.images) == 1:
        scopes = [ALL]
    parts: list[RenderableType] = [_page_table(analysis), Text()]
    for scope in scopes:
        parts += [_pipeline_table(analysis, scope), Text()]
    return Group(*parts, _footnote(analysis))


def _page_table(analysis: Analysis) -> Table:
    pages = analysis.pages
    table = Table(title=f"Pages of {_images(len(analysis.images))}", title_justify="left", show_header=False, box=None)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    rows = [
        ("total", pages.total),
        ("zero", pages.zero),
        ("same-filled", pages.same_filled),
        ("distinct contents, not zero", pages.distinct),
        ("sharable: copies of those", pages.sharable),
    ]
    for name, count in rows:
        table.add_row(name, f"{count:,}", f"{count / pages.total:6.1%}")
    return table


def _pipeline_table(analysis: Analysis, scope: str) -> Table:
    title = f"Memory needed if all pages were cold, {scope}"
    table = Table(title=title, title_justify="left")
    table.add_column("technique")
    for column in (
        "after sharing",
        "+ patching",
        "+ compression",
        "all memory",
        "saving",
        "patched",
        "references",
    ):
        table.add_column(column, justify="right")
    distinct = _sharing_bytes(analysis.results[scope]["sharing"])
    for name, result in analysis.results[scope].items():
        shares = name != "lz4"
        patches = result.patched_pages > 0
        table.add_row(
            WHAT[name],
            _mib(distinct) if shares else "",
            _mib(result.bytes_after_patching) if patches else "",
            _mib(result.encoded_bytes) if name != "sharing" else "",
            _mib(result.bytes_left),
            f"{result.saving:.1%}",
            f"{result.patched_pages:,}" if patches else "",
            f"{result.reference_pages:,}" if patches else "",
            style="bold" if name == "best" else None,
        )
    return table


def _sharing_bytes(sharing: PipelineResult) -> int:
    return (sharing.raw_pages + sharing.fill_pages) * PAGE_BYTES


def _footnote(analysis: Analysis) -> Text:
    total = sum(result.verified_pages for scope in analysis.results.values() for result in scope.values())
    cpu = analysis.cpu_seconds
    return Text(
        f"MiB; {_mib(analysis.total_bytes)} MiB of guest memory. All memory: what the store really took, one zero "
        f"frame, page table, digests, tables and indexes.\n"
        f"Every page was stored, rebuilt and compared in every row: {total:,} comparisons, none differed. "
        f"CPU {cpu['total']:.1f} s, of it encoding {cpu['encode']:.1f} s, digests {cpu['digest']:.2f} s.",
        style="dim",
    )


def _mib(count: int) -> str:
    return f"{count / MIB:,.1f}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
