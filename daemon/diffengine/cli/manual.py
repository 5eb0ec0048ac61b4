# SPDX-License-Identifier: GPL-2.0-or-later
"""The man pages, from what there is already: the parser's help, the pager's, and docs/service.md.

python -m diffengine.cli.manual --docs docs --default systemd/diffengine.toml OUT
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from diffengine.cli.main import parser as whole_parser
from diffengine.service.snapshot import VERSION
from diffengine.simulation.hosts import PAGER_PROGRAM

SEE_ALSO = ("diffengine(1)", "diffengine.toml(5)", "diffengine(8)", "diffengine-pager(8)")


def escaped(text: str) -> str:
    """As roff shows it, whatever it begins with."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in text.split("\n"))


def page(name: str, section: int, what: str, body: Iterator[str]) -> str:
    others = [each for each in SEE_ALSO if each != f"{name}({section})"]
    lines = [
        f'.TH "{name.upper()}" "{section}" "" "diffengine {VERSION}" "diffengine"',
        ".SH NAME",
        f"{escaped(name)} \\- {escaped(what)}",
        *body,
        ".SH SEE ALSO",
        escaped(", ".join(others)),
    ]
    return "\n".join(lines) + "\n"


def literal(text: str) -> Iterator[str]:
    yield from (".nf", escaped(text.strip("\n")), ".fi")


def paragraphs(text: str) -> Iterator[str]:
    """Lines that are indented stay as they are; others flow."""
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if any(line.startswith("  ") for line in block.split("\n")):
            yield from literal(block)
        else:
            yield escaped(block)
        yield ".PP"


def arguments_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = parser.formatter_class(prog=parser.prog)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            continue
        yield ".TP"
        yield f"\\fB{escaped(formatter._format_action_invocation(action))}\\fR"
        yield escaped(formatter._expand_help(action)) if action.help else "\\&"


def subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Those that do something, with their words: `config check`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, each in action.choices.items():
                below = list(subcommands(each))
                yield from ((f"{name} {rest}", deeper) for rest, deeper in below)
                if not below:
                    yield name, each


def usage(parser: argparse.ArgumentParser) -> str:
    return re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage: ")).strip()


def command_page() -> str:
    def body() -> Iterator[str]:
        whole = whole_parser()
        yield from (".SH SYNOPSIS", escaped("diffengine COMMAND [OPTION ...]"), ".SH DESCRIPTION")
        yield from paragraphs(whole.description or "")
        yield ".SH COMMANDS"
        for name, parser in subcommands(whole):
            yield from (f'.SS "diffengine {name}"', f"\\fI{escaped(usage(parser))}\\fR", ".PP")
            yield from paragraphs(parser.description or "")
            yield from arguments_of(parser)
            if parser.epilog:
                yield ".PP"
                yield from literal(parser.epilog)
        yield ".SH EXIT CODES"
        yield from literal((whole.epilog or "").removeprefix("exit codes:"))

    return page("diffengine", 1, "share, patch and compress the memory that VMs hold redundantly", body())


def daemon_page(service: str) -> str:
    def body() -> Iterator[str]:
        parser = dict(subcommands(whole_parser()))["daemon"]
        yield from (".SH SYNOPSIS", escaped(usage(parser)), ".SH DESCRIPTION")
        yield from paragraphs(parser.description or "")
        yield ".SH OPTIONS"
        yield from arguments_of(parser)
        yield ".PP"
        yield from literal(parser.epilog or "")
        yield ".SH UNITS"
        yield from markdown(section(service, "systemd"))
        yield ".SH METRICS"
        yield from markdown(section(service, "Metrics"))

    return page("diffengine", 8, "the daemon that saves memory of Xen domains", body())


def pager_page() -> str:
    said = subprocess.run([PAGER_PROGRAM, "--help"], capture_output=True, text=True, check=True).stdout
    synopsis, _, rest = said.removeprefix("Usage: ").partition("\n")

    def body() -> Iterator[str]:
        yield from (".SH SYNOPSIS", escaped(synopsis), ".SH DESCRIPTION")
        yield from paragraphs(rest)

    return page("diffengine-pager", 8, "brings evicted memory of guests back", body())


def configuration_page(service: str, default: str) -> str:
    def body() -> Iterator[str]:
        yield from (".SH SYNOPSIS", escaped("/etc/diffengine/diffengine.toml"), ".SH DESCRIPTION")
        yield from markdown(section(service, "Configuration"))
        yield ".SH THE DEFAULT FILE"
        yield from literal(default)

    return page("diffengine.toml", 5, "how the diffengine daemon is set", body())


def section(text: str, title: str) -> str:
    """What stands below a heading of a Markdown text, without it."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise SystemExit(f"docs/service.md has no section {title}")
    return found[1]


def markdown(text: str) -> Iterator[str]:
    """Paragraphs, tables, and lines that are indented: what docs/service.md has."""
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        if lines[0].startswith("|"):
            # Without the two lines of its head.
            for line in lines[2:]:
                cells = [plain(cell) for cell in line.strip().strip("|").split("|")]
                yield from (".TP", f"\\fB{escaped(cells[0])}\\fR")
                yield escaped("; ".join(cell for cell in cells[1:] if cell)) or "\\&"
        elif lines[0].startswith("    "):
            yield from literal(block)
        else:
            yield escaped(plain(block))
        yield ".PP"


def plain(text: str) -> str:
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`|\*\*", "", text).strip()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--docs", type=Path, required=True)
    arguments.add_argument("--default", type=Path, required=True)
    arguments.add_argument("out", type=Path)
    options = arguments.parse_args()
    service = (options.docs / "service.md").read_text()
    options.out.mkdir(parents=True, exist_ok=True)
    pages = {
        "diffengine.1": command_page(),
        "diffengine.toml.5": configuration_page(service, options.default.read_text()),
        "diffengine.8": daemon_page(service),
        "diffengine-pager.8": pager_page(),
    }
    for name, text in pages.items():
        (options.out / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
