# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors that a user can act on. Anything else that is raised is a defect of ours."""

import os


class DiffengineError(Exception):
    """What went wrong and what to do about it, in one line, and the exit code that tells scripts."""

    exit_code: int = 1


class ImageError(DiffengineError):
    """A memory image that can't be used: which file, what is wrong with it, what to do."""

    exit_code = 2

    def __init__(self, path: str | os.PathLike[str], what: str, remedy: str) -> None:
        super().__init__(path, what, remedy)
        self.path = os.fspath(path)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.what}; {self.remedy}")


def one_line(text: str) -> str:
    """Escapes what would break a line or confuse a terminal: file names may hold any byte."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
