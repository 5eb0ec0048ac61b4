# SPDX-License-Identifier: GPL-2.0-or-later
"""Parsing the command line, and what every subcommand has in common: errors, exit codes, Ctrl-C."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from diffengine.cli import analyze, check, completion, config, daemon, evaluate, release, simulate, status, top
from diffengine.errors import DiffengineError, one_line

EXIT_CODES = """exit codes:
  0    done
  1    could not be done; the message says why
  2    bad arguments or a bad image; nothing was done
  130  interrupted (Ctrl-C)"""


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that says where to look on."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {one_line(message)}; see `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    whole: argparse.ArgumentParser = OneLineParser(
        prog="diffengine",
        description="Share, patch and compress the memory that virtual machines hold redundantly.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=OneLineParser)
    analyze.add_parser(commands)
    check.add_parser(commands)
    completion.add_parser(commands, parser)
    config.add_parser(commands)
    daemon.add_parser(commands)
    evaluate.add_parser(commands)
    release.add_parser(commands)
    simulate.add_parser(commands)
    status.add_parsers(commands)
    top.add_parser(commands)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. The exit code."""
    try:
        options = parser().parse_args(arguments)
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except DiffengineError as error:
        print(f"diffengine: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("diffengine: interrupted; nothing was changed", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        discard_stdout()
        return 0
    except OSError as error:
        # A disk that is full, a terminal that is gone.
        where = error.filename or "stdout"
        print(f"diffengine: {one_line(f'{where}: {error.strerror}')}; make room or write elsewhere", file=sys.stderr)
        discard_stdout()
        return 1


def discard_stdout() -> None:
    """What is still buffered goes nowhere: Python would fail once more when it closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
