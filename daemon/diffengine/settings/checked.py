# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading TOML files of ours: every key and value checked, every mistake remembered, none raised at once."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from diffengine.errors import DiffengineError

MIB = 1 << 20
MOST_MIB = 1 << 20
MOST_ERRORS = 8
# Nobody writes more by hand, and a file is read whole.
MOST_BYTES = 1 << 20
Checked = TypeVar("Checked")


@dataclass
class CheckedTable:
    """One table. Each method takes a key out; a wrong value becomes an error and the default is given instead."""

    where: str
    values: dict[str, Any]
    errors: list[str]
    _known: set[str] = field(default_factory=set)

    def _take(self, key: str) -> Any:
        self._known.add(key)
        return self.values.get(key)

    def name(self, key: str) -> str:
        return f"{self.where} {key}".strip()

    def refuse(self, key: str, allowed: str) -> None:
        """Notes that the key's value is not what is allowed."""
        self.errors.append(f"{self.name(key)} = {shown(self.values.get(key))}: must be {allowed}")

    def has(self, key: str) -> bool:
        return key in self.values

    def number(self, key: str, default: float, least: float, most: float, unit: str = "") -> float:
        value = self._take(key)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            self.refuse(key, f"a number from {least:g} to {most:g}{unit}")
            return default
        return float(value)

    def whole(self, key: str, default: int, least: int, most: int, unit: str = "") -> int:
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.refuse(key, f"a whole number from {least} to {most}{unit}")
            return default
        return value

    def optional_whole(self, key: str, least: int, most: int, unit: str = "") -> int | None:
        return self.whole(key, least, least, most, unit) if key in self.values else self._take(key)

    def optional_number(self, key: str, least: float, most: float, unit: str = "") -> float | None:
        return self.number(key, least, least, most, unit) if key in self.values else self._take(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
            return default
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, str) or not value or "\0" in value:
            self.refuse(key, "a text that is not empty")
            return default
        return value

    def choice(self, key: str, default: str, allowed: Sequence[str]) -> str:
        value = self._take(key)
        if value is None:
            return default
        if value not in allowed:
            self.refuse(key, "one of " + ", ".join(allowed))
            return default
        return str(value)

    def choices(self, key: str, allowed: Sequence[str]) -> tuple[str, ...]:
        value = self._take(key)
        if value is None:
            return ()
        if not isinstance(value, list) or any(each not in allowed for each in value) or len(set(value)) < len(value):
            self.refuse(key, "a list, without repetition, of " + ", ".join(allowed))
            return ()
        return tuple(value)

    def table(self, key: str) -> "CheckedTable":
        value = self._take(key)
        where = f"[{key}]" if not self.where else f"{self.where}.{key}"
        if value is not None and not isinstance(value, dict):
            self.refuse(key, "a table")
            value = None
        return CheckedTable(where, value or {}, self.errors)

    def tables(self, key: str) -> list["CheckedTable"]:
        value = self._take(key)
        if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
            self.errors.append(f"[[{key}]]: there must be one or more of these tables")
            return []
        return [CheckedTable(f"[[{key}]] number {n}", each, self.errors) for n, each in enumerate(value, 1)]

    def finish(self) -> None:
        """Notes the keys that nobody asked for."""
        for key in self.values.keys() - self._known:
            known = ", ".join(sorted(self._known))
            self.errors.append(f"{self.name(key)} = {shown(self.values[key])}: no such key; known here: {known}")


def shown(value: Any) -> str:
    """A value as it may stand in a message of one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_toml(path: Path, refused: type[DiffengineError], described_in: str) -> dict[str, Any]:
    """The file's values, not checked yet. Raises `refused`; FileNotFoundError is left to the caller."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise refused(f"{path}: longer than {MOST_BYTES >> 20} MiB; see {described_in}")
        return tomllib.loads(text.decode())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refused(f"{path}: {error.strerror}; name a file that can be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refused(f"{path}: not TOML: {error}; see {described_in}") from error


def check_whole(
    where: str, values: dict[str, Any], read: Callable[[CheckedTable], Checked], refused: type[DiffengineError]
) -> Checked:
    """What `read` makes of the values. Raises `refused` with everything that is wrong, up to MOST_ERRORS."""
    errors: list[str] = []
    result = read(CheckedTable("", values, errors))
    if errors:
        more = f"; and {len(errors) - MOST_ERRORS} more" if len(errors) > MOST_ERRORS else ""
        raise refused(f"{where}: " + "; ".join(errors[:MOST_ERRORS]) + more)
    return result
