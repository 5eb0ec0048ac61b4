# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine top`: the host at a glance, its domains, and what keeps one of them from saving more."""

import asyncio
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.events import Resize
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, Static

from diffengine.errors import one_line
from diffengine.screen.connection import Connection
from diffengine.screen.draw import Column, Glyphs, columns, domain_cells, header, heading, size
from diffengine.screen.figures import DomainFigures, Figures, Past, SortKey, ordered
from diffengine.service.client import DaemonError

STYLE = """
Screen { background: $background; }
#header { height: 6; padding: 0 1; }
DataTable { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
DataTable > .datatable--header { text-style: bold reverse; }
#title { height: 2; padding: 0 1; }
Help { align: center middle; }
Help > Container { width: 66; height: auto; max-height: 100%; padding: 1 2; border: round $accent; background: $panel; }
"""

LAST_HEARD = "the daemon does not answer; this is what it said last"

HELP = """\
[b]The bar[/b] is what the host would need without saving: what is used, what \
sharing, patching, compression and swapping make unnecessary, and what is \
free. Below it, what is left of that after costs, in a line over time.

[b]Refaults[/b] are pages that were out and came back because their guest \
touched them: each cost it a fault, whose latencies stand beside them.

  [b]up, down[/b]   choose a domain
  [b]Enter[/b]      what keeps it from saving more, and what to do
  [b]s, r[/b]       sort by the next column; the other way round
  [b]p[/b]          pause or resume the domain (root)
  [b]P[/b]          pause or resume the whole engine (root)
  [b]q[/b]          quit

Pages that are out stay out while paused.
"""


class Domains(DataTable[Text]):
    """The list; its keys are those of the screen that it is most of."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Why", key_display="Enter"),
        Binding("s", "app.sort", "Sort"),
        Binding("r", "app.reverse", "Reverse"),
        Binding("p", "app.pause_domain", "Pause/resume"),
        Binding("P", "app.pause_all", "Pause all", key_display="P"),
    ]


class Help(ModalScreen[None]):
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,h,question_mark,q,enter", "dismiss", "Back")]

    def compose(self) -> ComposeResult:
        yield Container(Static(HELP))

    async def action_dismiss(self, result: None = None) -> None:
        self.dismiss(result)


class Why(Screen[None]):
    """What keeps one domain from saving more, as `diffengine why` says it, and as it changes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,left", "app.pop_screen", "Back", key_display="Esc"),
        Binding("p", "app.pause_domain", "Pause/resume"),
    ]

    def __init__(self, domid: int) -> None:
        super().__init__()
        self.domid = domid
        self._shown: list[tuple[Any, ...]] | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="header")
        yield Static(id="title")
        table: DataTable[Text] = DataTable(cursor_type="row", cell_padding=0)
        yield table
        yield Footer()

    def show(self, figures: Figures, header_lines: list[Text], found: dict[str, Any]) -> None:
        self.query_one("#header", Static).update(Text("\n").join(header_lines))
        domain = next((each for each in figures.domains if each.domid == self.domid), None)
        self.query_one("#title", Static).update(_title(self.domid, domain))
        rows = [(each["pages"], each["bytes"], each["text"], each["change"]) for each in found.get("reasons", ())]
        wide = (rows, self.size.width)
        if [wide] == self._shown:
            return
        self._shown = [wide]
        table = self.query_one(DataTable)
        at = table.cursor_row
        table.clear(columns=True)
        room = max(20, self.size.width - 24)
        for label, width in (("   PAGES ", 9), ("    SIZE  ", 10), ("WHAT KEEPS THEM, AND WHAT TO DO", room)):
            table.add_column(label, width=width)
        for pages, count, text, change in rows:
            words = Text(one_line(text))
            if change:
                words.append(f"\n-> {one_line(change)}", style="bold")
            lines = words.wrap(self.app.console, room)
            folded = Text("\n").join(lines)
            table.add_row(Text(f"{pages:,} ".rjust(9)), Text(f"{size(count)}  ".rjust(10)), folded, height=len(lines))
        table.move_cursor(row=at)


def _title(domid: int, domain: DomainFigures | None) -> Text:
    if domain is None:
        return Text(f"Domain {domid} is gone", "bold red")
    saved = f"{size(domain.saved_bytes)} of {size(domain.memory_bytes)} saved"
    group = one_line(domain.trust_group) or "its own"
    techniques = ", ".join(f"{name} {size(count)}" for name, count in domain.saved_by.items() if count)
    return Text.assemble(
        (f"Domain {domid} {one_line(domain.name)}", "bold"),
        f"  {saved}{': ' + techniques if techniques else ''}  trust group {group}",
    )


class Top(App[None]):
    """Follows the daemon at the other end of `connection`, also when it is gone for a while."""

    CSS = STYLE
    TITLE = "diffengine top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("h,question_mark", "help", "Help", key_display="h"),
    ]

    def __init__(self, path: Path, interval_s: float, drawn: Glyphs, key: SortKey = SortKey.DOMAIN) -> None:
        super().__init__()
        self._connection = Connection(path)
        self._interval_s = interval_s
        self._drawn = drawn
        self._past = Past()
        self._figures: Figures | None = None
        self._trouble = ""
        self._key = key
        self._reverse = False
        self._columns: list[Column] = []
        self._labels: list[str] = []
        self._rows: list[int] = []

    def compose(self) -> ComposeResult:
        yield Static(id="header")
        yield Domains(cursor_type="row", cell_padding=0)
        yield Footer()

    def on_mount(self) -> None:
        self.follow()

    @work
    async def follow(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Reads once, and shows it."""
        found: dict[str, Any] = {}
        try:
            self._figures = self._past.add(await self._connection.read())
            self._trouble = ""
            if isinstance(self.screen, Why):
                found = await self._connection.call("reasons", domain=self.screen.domid)
        except DaemonError as error:
            # What was last heard stays, dimmed.
            self._trouble = LAST_HEARD if self._figures else str(error)
        self._show(found)

    def _show(self, found: dict[str, Any] | None = None) -> None:
        lines = self._header(self.size.width - 2)
        if isinstance(self.screen, Why) and self._figures and found is not None:
            self.screen.show(self._figures, lines, found)
        main = self.screen_stack[0]
        header_of_main = main.query("#header")
        if header_of_main:
            header_of_main.first(Static).update(Text("\n").join(lines))
            self._show_domains(main.query_one(Domains))

    def _header(self, width: int) -> list[Text]:
        if self._figures is None:
            return [Text(self._trouble or "asking the daemon ...", "bold red" if self._trouble else "")]
        lines = header(self._figures, width, self._drawn, self._trouble)
        if self._trouble:
            # What was last heard.
            for line in lines[:-1]:
                line.stylize("dim")
        return lines

    def _show_domains(self, table: Domains) -> None:
        if self._figures is None:
            return
        shown = columns(self.size.width - 3)
        domains = ordered(self._figures.domains, self._key, self._reverse)
        rows = [domain.domid for domain in domains]
        labels = [heading(each, self._key, self._reverse, self._drawn) for each in shown]
        chosen = self.chosen
        if (shown, labels) != (self._columns, self._labels):
            table.clear(columns=True)
            for column, label in zip(shown, labels, strict=True):
                text = Text(label.rjust(column.width) if column.right else label)
                table.add_column(text, width=column.width + 1, key=column.label)
            self._columns, self._labels, self._rows = shown, labels, []
        cells = [domain_cells(domain, shown, self._drawn) for domain in domains]
        if rows == self._rows:
            for domid, row in zip(rows, cells, strict=True):
                for column, cell in zip(shown, row, strict=True):
                    table.update_cell(str(domid), column.label, cell)
            return
        table.clear()
        for domid, row in zip(rows, cells, strict=True):
            table.add_row(*row, key=str(domid))
        self._rows = rows
        if chosen in rows:
            table.move_cursor(row=rows.index(chosen))

    @property
    def chosen(self) -> int | None:
        """The domain under the cursor."""
        if isinstance(self.screen, Why):
            return self.screen.domid
        tables = self.screen_stack[0].query(Domains)
        at = tables.first().cursor_row if tables else 0
        return self._rows[at] if 0 <= at < len(self._rows) else None

    def on_resize(self, event: Resize) -> None:
        self._show()

    # What keys do.

    def on_data_table_row_selected(self) -> None:
        if isinstance(self.screen, Why):
            self.pop_screen()
        elif self.chosen is not None:
            self.push_screen(Why(self.chosen))
            self.call_after_refresh(self.look)

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_sort(self) -> None:
        self._key, self._reverse = self._key.next, False
        self._show()

    def action_reverse(self) -> None:
        self._reverse = not self._reverse
        self._show()

    async def action_pause_domain(self) -> None:
        chosen = self.chosen
        domains = self._figures.domains if self._figures else ()
        for domain in domains:
            if domain.domid == chosen:
                method = "resume" if domain.standing == "paused" else "pause"
                await self._tell(method, domain=domain.domid)

    async def action_pause_all(self) -> None:
        if self._figures:
            await self._tell("resume" if self._figures.reading.status["paused"] else "pause")

    async def _tell(self, method: str, **parameters: Any) -> None:
        try:
            await self._connection.call(method, **parameters)
        except DaemonError as error:
            self.notify(one_line(str(error)), severity="error", markup=False)
        else:
            await self.look()

    async def on_unmount(self) -> None:
        self._connection.close()
