# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenario files: what runs on the machine, for how long, and how the engine is set. docs/simulate.md has the keys."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffengine.engine import EngineOptions
from diffengine.errors import DiffengineError
from diffengine.settings import CheckedTable, check_whole, engine_options, read_policies, read_toml, shown
from diffengine.settings.checked import MIB, MOST_MIB

PAGE_BYTES = 4096
PAGES_PER_MIB = MIB // PAGE_BYTES
# Frames beyond the domains' memory: for copies on write while everything is shared.
SPARE_SHARE = 1 / 8
SPARE_MIB = 4
SCENARIOS = Path(__file__).parent.parent / "scenarios"
TRACE = SCENARIOS / "d12a-dirty-15s.bits"
TRACE_BITS = 131_072
MOST_AT_ONCE = 64
PROGRAMS = ("idle", "working-set", "phases", "trace")
GENERATED = ("zero", "identical", "random", "similar")
FREE_AS = ("keep", "zero", "release")


class ScenarioError(DiffengineError):
    """A scenario that can't be run; the message names keys, values and what is allowed."""

    exit_code = 2


@dataclass(frozen=True)
class ProgramScenario:
    """A domain's program; a key that its kind does not have keeps its default."""

    kind: str
    operations_per_s: float = 0.0
    working_set: float = 0.1
    zipf: float = 1.0
    excursion_fraction: float = 0.0
    write_fraction: float = 0.0
    pages: str = "random"
    similar_percent: int = 95
    free: str = "keep"
    phase_s: float = 20.0
    trace: Path = TRACE
    trace_bits: int = TRACE_BITS
    interval_s: float = 15.0


@dataclass(frozen=True)
class DomainScenario:
    """memory_mib: None: as large as the image."""

    name: str
    memory_mib: int | None
    image: Path | None
    program: ProgramScenario
    trust_group: str
    min_resident_mib: float
    log_dirty: bool


@dataclass(frozen=True)
class MachineScenario:
    """memory_mib: None: what the domains have, and an eighth. swap_read_us, swap_write_us: for a page, of the disk that
    the model has in virtual time. swap_at_once: requests that it serves at once."""

    memory_mib: int | None
    swap_mib: int
    swap_path: Path | None
    swap_read_us: float = 70.0
    swap_write_us: float = 4.0
    swap_at_once: int = MOST_AT_ONCE


@dataclass(frozen=True)
class Scenario:
    name: str
    seed: int
    duration_s: float
    machine: MachineScenario
    engine: EngineOptions
    domains: tuple[DomainScenario, ...]

    @property
    def images(self) -> list[Path]:
        """Each image once, in order."""
        return list(dict.fromkeys(domain.image for domain in self.domains if domain.image))


def find_scenario(name: str) -> Path:
    """A file, or one of the scenarios that are shipped, by name."""
    path = Path(name)
    shipped = SCENARIOS / f"{name}.toml"
    if path.exists() or "/" in name or not shipped.exists():
        return path
    return shipped


def shipped_scenarios() -> list[str]:
    return sorted(path.stem for path in SCENARIOS.glob("*.toml"))


def load_scenario(path: Path, image_folders: Sequence[Path] = ()) -> Scenario:
    """Reads and checks a whole file. Images are looked for beside the file, then in the folders given.

    Raises ScenarioError that names everything that is wrong, up to MOST_ERRORS.
    """
    try:
        values = read_toml(path, ScenarioError, "docs/simulate.md")
    except FileNotFoundError as error:
        shipped = ", ".join(shipped_scenarios())
        raise ScenarioError(f"{path}: no such file; name a scenario file, or one that is shipped: {shipped}") from error
    return read_scenario(str(path), values, path.stem, [path.parent, *image_folders])


def read_scenario(where: str, values: dict[str, Any], name: str, folders: Sequence[Path]) -> Scenario:
    """What a scenario file with these values says. `where`: what errors begin with. Raises ScenarioError."""
    return check_whole(where, values, lambda top: _scenario(top, name, folders), ScenarioError)


def _scenario(top: CheckedTable, name: str, folders: Sequence[Path]) -> Scenario:
    seed = top.whole("seed", 0, 0, (1 << 63) - 1)
    duration_s = top.number("duration_s", 60.0, 0.1, 1e7, " seconds")
    policies = read_policies(top.table("policies"))
    scenario = Scenario(
        name=name,
        seed=seed,
        duration_s=duration_s,
        machine=_machine(top.table("machine"), folders[0]),
        engine=engine_options(top.table("engine"), policies, seed),
        domains=tuple(_domain(table, number, folders) for number, table in enumerate(top.tables("domain"), 1)),
    )
    top.finish()
    names = [domain.name for domain in scenario.domains]
    for repeated in sorted({each for each in names if names.count(each) > 1}):
        top.errors.append(f"[[domain]] name = {shown(repeated)}: must be different for each domain")
    return scenario


def _machine(table: CheckedTable, folder: Path) -> MachineScenario:
    memory_mib = table.optional_whole("memory_mib", 1, MOST_MIB, " MiB")
    swap_mib = table.whole("swap_mib", 0, 0, MOST_MIB, " MiB")
    swap_path = table.text("swap_path")
    read_us = table.number("swap_read_us", MachineScenario.swap_read_us, 0.001, 1e6, " microseconds")
    write_us = table.number("swap_write_us", MachineScenario.swap_write_us, 0.001, 1e6, " microseconds")
    at_once = table.whole("swap_at_once", MachineScenario.swap_at_once, 1, MOST_AT_ONCE, " requests")
    table.finish()
    if swap_path and not swap_mib:
        table.errors.append("[machine] swap_path: without swap_mib; set both, or none")
    path = folder / swap_path if swap_path else None
    return MachineScenario(memory_mib, swap_mib, path, read_us, write_us, at_once)


def _domain(table: CheckedTable, number: int, folders: Sequence[Path]) -> DomainScenario:
    name = table.text("name", f"guest{number}") or f"guest{number}"
    memory_mib = table.optional_whole("memory_mib", 1, MOST_MIB, " MiB")
    image = _file(table, "image", folders)
    program = _program(table, folders)
    trust_group = table.text("trust_group", name) or name
    min_resident_mib = table.number("min_resident_mib", 0, 0, MOST_MIB, " MiB")
    log_dirty = table.flag("log_dirty", False)
    table.finish()
    if memory_mib is None and not table.has("image"):
        table.errors.append(f"{table.name('memory_mib')}: must be set for a domain without an image")
    if memory_mib is not None and min_resident_mib > memory_mib:
        table.refuse("min_resident_mib", f"at most the domain's memory, {memory_mib} MiB")
    if program.kind in ("working-set", "trace") and not table.has("image"):
        table.errors.append(f"{table.name('image')}: must be set for the program {program.kind}")
    return DomainScenario(name, memory_mib, image, program, trust_group, min_resident_mib, log_dirty)


def _program(table: CheckedTable, folders: Sequence[Path]) -> ProgramScenario:
    """The program, and those keys that it has; others are refused with the rest of the unknown keys."""
    program = ProgramScenario(table.choice("program", "idle", PROGRAMS))
    if program.kind == "idle":
        return program
    per_s = table.number("operations_per_s", 0.0 if program.kind == "phases" else 1000.0, 0, 1e9, " (0: no limit)")
    program = replace(program, operations_per_s=per_s)
    if program.kind == "phases":
        return replace(
            program,
            pages=table.choice("pages", "random", GENERATED),
            similar_percent=table.whole("similar_percent", 95, 0, 100),
            free=table.choice("free", "keep", FREE_AS),
            phase_s=table.number("phase_s", 20, 0.01, 1e6, " seconds"),
        )
    program = replace(
        program,
        working_set=table.number("working_set", 0.1, 0.0001, 1, " of the image's non-zero pages"),
        zipf=table.number("zipf", 1.0, 0, 4),
        excursion_fraction=table.number("excursion_fraction", 0.0005, 0, 1),
        write_fraction=table.number("write_fraction", 0.1, 0, 1),
    )
    if program.kind == "trace":
        program = replace(
            program,
            trace=_file(table, "trace", folders) or TRACE,
            trace_bits=table.whole("trace_bits", TRACE_BITS, 8, 1 << 31, " (a multiple of 8)"),
            interval_s=table.number("interval_s", 15.0, 0.001, 1e6, " seconds"),
        )
        _check_trace(table, program)
    return program


def _check_trace(table: CheckedTable, program: ProgramScenario) -> None:
    if program.trace_bits % 8:
        table.refuse("trace_bits", "a multiple of 8")
        return
    size, map_bytes = program.trace.stat().st_size, program.trace_bits // 8
    if not size or size % map_bytes:
        table.errors.append(
            f"{table.name('trace')} = {shown(str(program.trace))}: must be bitmaps of {program.trace_bits} bits "
            f"(trace_bits), {map_bytes} bytes each; the file has {size} bytes"
        )


def _file(table: CheckedTable, key: str, folders: Sequence[Path]) -> Path | None:
    """The file that a key names: absolute, or in one of the folders."""
    text = table.text(key)
    if text is None:
        return None
    for folder in folders:
        path = folder / text
        if path.is_file() and os.access(path, os.R_OK):
            return path
    looked = ", ".join(str(folder) for folder in folders)
    table.refuse(key, f"a file that can be read; looked in {looked}")
    return None
