# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures as lines of text, as wide as they may be. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from diffengine.engine.report import TECHNIQUES
from diffengine.errors import one_line
from diffengine.native import PAGE_BYTES
from diffengine.screen.figures import DomainFigures, Figures, SortKey, ordered

MIB = 1 << 20
GIB = 1 << 30
STYLES = {
    "used": "bright_white",
    "sharing": "green",
    "patching": "yellow",
    "compression": "cyan",
    "swapping": "magenta",
    "free": "bright_black",
}
LABELS = {
    "used": "used",
    "sharing": "shared",
    "patching": "patched",
    "compression": "compressed",
    "swapping": "swapped",
    "free": "free",
}
SHORT_LABELS = {**LABELS, "sharing": "shr", "patching": "pat", "compression": "cmp", "swapping": "swp"}
STANDINGS = {
    "worked_on": "at work",
    "not_enabled": "off",
    "paused": "paused",
    "releasing": "release",
    "refused": "refused",
}


@dataclass(frozen=True)
class Glyphs:
    """One cell of a bar for each use; steps: of a spark line, lowest first."""

    bars: Mapping[str, str]
    steps: str
    up: str
    down: str
    warning: str


COLOUR = Glyphs({**dict.fromkeys(STYLES, "█"), "free": "·"}, "▁▂▃▄▅▆▇█", "▲", "▼", "▌")
# Told apart by their form.
PLAIN = Glyphs(dict(zip(STYLES, "█▓▒░▚·", strict=True)), "▁▂▃▄▅▆▇█", "▲", "▼", "▌")
ASCII = Glyphs(dict(zip(STYLES, "#spcw.", strict=True)), "_.-=+*#@", "^", "v", "!")


def glyphs(encoding: str | None, coloured: bool) -> Glyphs:
    """What a terminal of this encoding can show."""
    if not (encoding or "").lower().replace("-", "").startswith("utf"):
        return ASCII
    return COLOUR if coloured else PLAIN


def size(count: float) -> str:
    """At most six characters up to 10 TiB."""
    if abs(count) >= 1024 * GIB:
        return f"{count / GIB / 1024:.2f}T"
    if abs(count) >= GIB:
        return f"{count / GIB:.1f}G"
    return f"{count / MIB:.0f}M" if abs(count) >= 100 * MIB else f"{count / MIB:.1f}M"


def duration(us: float) -> str:
    return f"{us / 1000:,.0f}ms" if us >= 10_000 else f"{us:,.0f}us"


def rate(per_s: float | None) -> str:
    if per_s is None:
        return "-"
    return f"{per_s:,.0f}" if per_s >= 10 or per_s == 0 else f"{per_s:.1f}"


def cells(parts: Sequence[float], width: int) -> list[int]:
    """How many of `width` cells each part gets: all of them, by the largest remainder."""
    total = sum(parts)
    if total <= 0 or width <= 0:
        return [0] * len(parts)
    exact = [part * width / total for part in parts]
    given = [int(each) for each in exact]
    by_remainder = sorted(range(len(parts)), key=lambda at: (given[at] - exact[at], at))
    for at in by_remainder[: width - sum(given)]:
        given[at] += 1
    return given


def bar(parts: Mapping[str, float], width: int, drawn: Glyphs) -> Text:
    """parts: by use, as in STYLES. Negative ones count as nothing."""
    text = Text(no_wrap=True)
    amounts = [max(0.0, part) for part in parts.values()]
    for use, count in zip(parts, cells(amounts, width), strict=True):
        text.append(drawn.bars[use] * count, style=STYLES[use])
    return text


def spark(values: Sequence[float], width: int, drawn: Glyphs, most: float | None = None) -> str:
    """The latest `width` values as a line of steps, from 0 to `most`, or to the largest of them."""
    shown = values[-width:]
    top = most if most else max(shown, default=0.0)
    if top <= 0:
        return drawn.steps[0] * len(shown)
    last = len(drawn.steps) - 1
    return "".join(drawn.steps[min(last, max(0, round(value / top * last)))] for value in shown)


def host_uses(figures: Figures) -> dict[str, float]:
    """What the host would need without saving, by what became of it; and what is free."""
    memory = figures.reading.status["memory"]
    saved_by = figures.reading.status["saved_by"]
    saved = {name: float(saved_by.get(name, 0)) for name in TECHNIQUES}
    return {"used": float(memory["used"]), **saved, "free": float(memory["free"])}


def domain_uses(domain: DomainFigures) -> dict[str, float]:
    used = max(0, domain.memory_bytes - domain.saved_bytes)
    return {"used": float(used), **{name: float(domain.saved_by[name]) for name in TECHNIQUES}}


def header(figures: Figures, width: int, drawn: Glyphs, trouble: str = "") -> list[Text]:
    """Six lines: who and how; the host's bar, its legend; what is saved; faults; an empty one, or what is wrong."""
    lines = [
        _title(figures),
        bar(host_uses(figures), width, drawn),
        _legend(host_uses(figures), width, drawn),
        _saved(figures, width, drawn),
        _faults(figures, width, drawn),
        Text(f"{drawn.warning} {one_line(trouble)}", style="bold red") if trouble else Text(),
    ]
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis" if drawn is not ASCII else "crop")
    return lines


def _title(figures: Figures) -> Text:
    status = figures.reading.status
    doing, style = "at work", "bold green"
    if back := status["coming_back"]:
        doing, style = f"{back['doing']} {100 * back['done'] // max(1, back['pages'])} %", "bold yellow"
    elif status["paused"]:
        doing, style = "paused", "bold yellow"
    elif status["freeing"]:
        doing, style = "freeing memory", "bold yellow"
    text = Text.assemble(
        ("diffengine", "bold"),
        f" {status['version']} on {status['host']}  ",
        (doing, style),
        f"  {status['domains_worked_on']} of {status['domains']} domains",
    )
    if status["corrupt"]:
        text.append(f"  {status['corrupt']} corrupt pages: see the pager's log", style="bold red")
    return text


def _legend(uses: Mapping[str, float], width: int, drawn: Glyphs) -> Text:
    """With words as long as there is room for; then without what is nothing."""
    some = {use: count for use, count in uses.items() if count > 0}
    for gap, labels, shown in (("   ", LABELS, uses), ("  ", LABELS, uses), ("  ", LABELS, some)):
        line = _legend_line(shown, gap, labels, drawn)
        if len(line) <= width:
            return line
    return _legend_line(some, " ", SHORT_LABELS, drawn)


def _legend_line(uses: Mapping[str, float], gap: str, labels: Mapping[str, str], drawn: Glyphs) -> Text:
    parts = [
        Text.assemble((drawn.bars[use], STYLES[use]), f" {labels[use]} ", (size(count), "bold"))
        for use, count in uses.items()
    ]
    return Text(gap).join(parts)


def _saved(figures: Figures, width: int, drawn: Glyphs) -> Text:
    memory = figures.reading.status["memory"]
    text = Text.assemble(
        "saved ",
        (f"{100 * figures.saved_share:.1f} %", "bold green"),
        f"  {size(memory['saved'])} after costs (store {size(memory['store'])}, tables {size(memory['tables'])})",
    )
    if memory["swap_limit"]:
        text.append(f"  swap {size(memory['swap'])} of {size(memory['swap_limit'])}")
    return _with_spark(text, spark(figures.saved_history, 60, drawn, most=1.0), width, "green")


def _faults(figures: Figures, width: int, drawn: Glyphs) -> Text:
    status = figures.reading.status
    latencies = " ".join(f"{name} {duration(value)}" for name, value in status["fault_us"].items() if value > 0)
    text = Text.assemble(
        "refaults ",
        (f"{rate(figures.per_s.get('refaults'))}/s", "bold"),
        f"  evictions {rate(figures.per_s.get('evictions'))}/s  out {status['evicted_pages']:,} pages"
        f"  fault {latencies or '-'}",
    )
    return _with_spark(text, spark(figures.refault_history, 60, drawn), width, "red")


def _with_spark(text: Text, line: str, width: int, style: str) -> Text:
    room = width - len(text) - 2
    if room >= 8 and line:
        shown = line[-room:]
        text.append(" " * (width - len(text) - len(shown)))
        text.append(shown, style=style)
    return text


@dataclass(frozen=True)
class Column:
    """right: numbers. sort: what it is sorted by, if it can be."""

    label: str
    width: int
    right: bool = False
    sort: SortKey | None = None


MOST_BAR = 60


def columns(width: int) -> list[Column]:
    """As many as fit, each with a space after it; the bar gets what is left."""
    shown = [
        Column("DOM", 4, True, SortKey.DOMAIN),
        Column("NAME", 12 if width < 100 else 20, False, SortKey.NAME),
        Column("STATE", 8),
        Column("MEMORY", 7, True, SortKey.MEMORY),
        Column("SAVED", 7, True, SortKey.SAVED),
        Column("BAR", 0),
        Column("REFAULT/S", 10, True, SortKey.REFAULTS),
    ]
    if width >= 110:
        shown.append(Column("GROUP", 10))
    if width >= 130:
        shown.append(Column("WHAT KEEPS MOST PAGES", 28))
    rest = width - sum(column.width + 1 for column in shown)
    return [Column(each.label, max(8, min(MOST_BAR, rest))) if each.label == "BAR" else each for each in shown]


def heading(column: Column, key: SortKey, reverse: bool, drawn: Glyphs) -> str:
    if column.label == "BAR":
        return "MEMORY BY TECHNIQUE"[: column.width]
    if column.sort is not key:
        return column.label
    return column.label + (drawn.down if key.largest_first != reverse else drawn.up)


def headings(shown: Iterable[Column], key: SortKey, reverse: bool, drawn: Glyphs) -> Text:
    texts = []
    for column in shown:
        label = heading(column, key, reverse, drawn)
        texts.append(label.rjust(column.width) if column.right else label.ljust(column.width))
    return Text(" ".join(texts), "bold")


def domain_cells(domain: DomainFigures, shown: Iterable[Column], drawn: Glyphs) -> list[Text]:
    at_work = domain.standing == "worked_on"
    state = Text(STANDINGS.get(domain.standing, domain.standing), "green" if at_work else "yellow")
    saved = f"{100 * domain.saved_share:.1f} %" if at_work or domain.saved_bytes else "-"
    texts = {
        "DOM": Text(str(domain.domid)),
        "NAME": Text(one_line(domain.name) or "-", "bold"),
        "STATE": state,
        "MEMORY": Text(size(domain.memory_bytes)),
        "SAVED": Text(saved),
        "REFAULT/S": Text(rate(domain.per_s.get("refaults"))),
        "GROUP": Text(one_line(domain.trust_group) or "its own"),
        "WHAT KEEPS MOST PAGES": Text(_top_reason(domain)),
    }
    found = []
    for column in shown:
        text = _bar_of(domain, column.width, drawn) if column.label == "BAR" else texts[column.label]
        text.truncate(column.width)
        if column.right:
            text.align("right", column.width)
        text.no_wrap = True
        found.append(text)
    return found


def _bar_of(domain: DomainFigures, width: int, drawn: Glyphs) -> Text:
    """Of one that is left alone it is not known what it saves: why, then."""
    if domain.standing != "worked_on":
        return Text(one_line(domain.why), "bright_black")
    return bar(domain_uses(domain), width, drawn)


def _top_reason(domain: DomainFigures) -> str:
    if domain.standing != "worked_on":
        return one_line(domain.why)
    if domain.top_reason is None:
        return "-"
    reason, pages = domain.top_reason
    return f"{reason} {size(pages * PAGE_BYTES)}"


def frame(figures: Figures, width: int, drawn: Glyphs, key: SortKey = SortKey.DOMAIN) -> list[Text]:
    """A whole screen as lines, for where there is no terminal."""
    shown = columns(width)
    lines = header(figures, width, drawn)
    lines.append(headings(shown, key, False, drawn))
    for domain in ordered(figures.domains, key, False):
        row = domain_cells(domain, shown, drawn)
        for text, column in zip(row, shown, strict=True):
            text.pad_right(max(0, column.width - text.cell_len))
        lines.append(Text(" ").join(row))
    return lines
