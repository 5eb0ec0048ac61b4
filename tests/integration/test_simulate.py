# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine simulate` from a scenario file to its report."""

from pathlib import Path
from typing import Any

import pytest

from command import diffengine, output_of, refusal_of
from diffengine.simulation import Where
from diffengine.simulation.run import Sample
from scenario_runs import FAST, check_accounting, run, run_until

WHERE = [[], ["--processes"], ["--virtual"]]
REAL = [Where.THREADS, Where.PROCESSES]


def working_sets(samples: dict[str, Path]) -> str:
    domains = "".join(
        f'[[domain]]\nname = "{name}"\nimage = "{path}"\nprogram = "working-set"\ntrust_group = "all"\n'
        for name, path in samples.items()
    )
    return f"seed = 3\n[engine]\n{FAST}{domains}"


def saves_by(technique: dict[str, float], *names: str) -> bool:
    return all(technique[name] > 0 for name in names)


def test_a_run_saves_memory_and_gives_every_byte_back(samples: dict[str, Path], tmp_path: Path) -> None:
    report = run(tmp_path, f"duration_s = 8\n{working_sets(samples)}", "--plot", tmp_path / "plot.svg", "--virtual")
    check_accounting(report)
    assert report["allocated_bytes"] == sum(path.stat().st_size for path in samples.values())
    assert report["saving"]["end"] > 0.6
    assert saves_by(report["saving"]["by_technique"], "sharing", "patching", "compression")
    assert report["guest"]["wrong_bytes"] == 0
    assert report["guest"]["reads"] > 1000 and report["guest"]["writes"] > 100
    assert report["evictions"] > 1000
    assert report["cpu_s"]["scan"] > 0
    assert set(report["latency_us"]) >= {"rebuild", "fault"}
    assert len(report["series"]) >= 8
    assert report["reasons"]
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("where", REAL)
def test_in_real_time_it_comes_to_the_same(samples: dict[str, Path], tmp_path: Path, where: Where) -> None:
    def reached(sample: Sample, technique: dict[str, float]) -> bool:
        read = sum(program.reads for program in sample.programs)
        return sum(technique.values()) > 0.6 and read > 1000 and saves_by(technique, "patching", "compression")

    report = run_until(tmp_path, working_sets(samples), where, reached)
    check_accounting(report)
    assert report["guest"]["wrong_bytes"] == 0
    assert report["cpu_s"]["scan"] > 0


@pytest.mark.parametrize("where", WHERE)
def test_the_command_runs_for_as_long_as_it_is_told(samples: dict[str, Path], tmp_path: Path, where: list[str]) -> None:
    report = run(tmp_path, f"duration_s = 1\n{working_sets(samples)}", *where)
    check_accounting(report)
    assert report["duration_s"] >= 1
    assert report["guest"]["wrong_bytes"] == 0


def phases(pages: str, free: str) -> str:
    domain = f'[[domain]]\nmemory_mib = 4\nprogram = "phases"\npages = "{pages}"\nfree = "{free}"\nphase_s = 0.5\n'
    return f"[engine]\n{FAST}{domain}"


def check_phases(report: dict[str, Any], free: str) -> None:
    check_accounting(report)
    assert report["guest"]["wrong_bytes"] == 0
    assert report["guest"]["reads"] == 1024
    assert report["series"][-1]["phases"] == [4]
    if free == "release":
        assert report["used_bytes"]["guests"] == 0


@pytest.mark.parametrize("pages", ["zero", "identical", "random", "similar"])
@pytest.mark.parametrize("free", ["keep", "zero", "release"])
def test_generated_pages_are_right_through_all_phases(tmp_path: Path, pages: str, free: str) -> None:
    check_phases(run(tmp_path, f"duration_s = 2.4\n{phases(pages, free)}", "--virtual"), free)


@pytest.mark.parametrize("free", ["keep", "zero", "release"])
def test_generated_pages_are_right_in_real_time(tmp_path: Path, free: str) -> None:
    def reached(sample: Sample, technique: dict[str, float]) -> bool:
        return sample.programs[0].phase == 4

    check_phases(run_until(tmp_path, phases("similar", free), Where.THREADS, reached), free)


def test_a_recorded_trace_writes_what_its_guest_wrote(samples: dict[str, Path], tmp_path: Path) -> None:
    text = f"""
        duration_s = 3
        [engine]
        {FAST}
        [[domain]]
        image = "{samples["d12a-work"]}"
        program = "trace"
        interval_s = 1.0
        operations_per_s = 500
        """
    report = run(tmp_path, text, "--virtual")
    check_accounting(report)
    assert report["guest"]["wrong_bytes"] == 0
    assert report["guest"]["writes"] > 3000


SWAPPING = f"""
    [machine]
    swap_mib = 32
    swap_path = "swapfile"
    [engine]
    {FAST}
    high_watermark = 0.05
    low_watermark = 0.04
    [[domain]]
    program = "working-set"
    excursion_fraction = 0.05
    """


def test_above_the_high_watermark_pages_go_to_swap_and_come_back(samples: dict[str, Path], tmp_path: Path) -> None:
    text = f'duration_s = 6\n{SWAPPING}image = "{samples["d12a-work"]}"\n'
    report = run(tmp_path, text, "--virtual")
    check_accounting(report)
    assert report["guest"]["wrong_bytes"] == 0
    assert report["used_bytes"]["swap"] > 0
    assert report["pages"]["swapped"] > 100
    assert report["saving"]["by_technique"]["swapping"] > 0
    assert report["refaults"] > 0
    assert not (tmp_path / "swapfile").exists()


@pytest.mark.parametrize("where", REAL)
def test_swapped_pages_come_back_in_real_time(samples: dict[str, Path], tmp_path: Path, where: Where) -> None:
    def reached(sample: Sample, technique: dict[str, float]) -> bool:
        return sample.engine.pages["swapped"] > 100 and sample.pager.swap_bytes > 0 and sample.refaults > 0

    report = run_until(tmp_path, f'{SWAPPING}image = "{samples["d12a-work"]}"\n', where, reached)
    check_accounting(report)
    assert report["guest"]["wrong_bytes"] == 0
    assert not (tmp_path / "swapfile").exists()


@pytest.mark.parametrize("where", WHERE)
def test_a_swap_file_that_cannot_be_made_is_refused(tmp_path: Path, where: list[str]) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text("[machine]\nswap_mib = 1\nswap_path = 'none/swap'\n[[domain]]\nmemory_mib = 1\n")
    line = refusal_of("simulate", path, *where)
    assert "swap_path = " in line and "none/swap" in line and "No such file" in line
    (tmp_path / "taken").write_text("something of value")
    path.write_text("[machine]\nswap_mib = 1\nswap_path = 'taken'\n[[domain]]\nmemory_mib = 1\n")
    assert "does not exist yet" in refusal_of("simulate", path)
    assert (tmp_path / "taken").read_text() == "something of value"


def test_an_idle_guest_reads_nothing(tmp_path: Path) -> None:
    report = run(tmp_path, f"duration_s = 1\n[engine]\n{FAST}[[domain]]\nmemory_mib = 1\n", "--virtual")
    assert (report["guest"]["reads"], report["guest"]["writes"]) == (0, 0)
    assert report["used_bytes"]["guests"] == 4096


def test_the_largest_seed(tmp_path: Path) -> None:
    domains = '[[domain]]\nmemory_mib = 1\nprogram = "phases"\nphase_s = 0.05\n' * 2
    report = run(tmp_path, f"seed = {2**63 - 1}\nduration_s = 0.3\n{domains}", "--virtual")
    assert report["guest"]["wrong_bytes"] == 0 and report["guest"]["reads"] == 512


def test_tables_for_people(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text("duration_s = 0.5\n[[domain]]\nmemory_mib = 1\n")
    text = output_of("simulate", path)
    assert "saved at the end" in text and "wrong bytes" in text


def test_a_machine_that_is_too_small_is_refused_with_the_sum(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text('[machine]\nmemory_mib = 10\n[[domain]]\nname = "a"\nmemory_mib = 8\n[[domain]]\nmemory_mib = 4\n')
    line = refusal_of("simulate", path)
    assert "memory_mib = 10" in line and "a 8 + guest2 4 = 12 MiB" in line


def test_memory_smaller_than_the_image_is_refused(samples: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(f'[[domain]]\nname = "a"\nimage = "{samples["d12a-work"]}"\nmemory_mib = 2\n')
    line = refusal_of("simulate", path)
    assert "memory_mib = 2" in line and "at least its image's" in line


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text("seed = 'x'\n[[domain]]\nmemory_mib = 1\n")
    assert "seed = 'x'" in refusal_of("simulate", path)
    assert "no such file" in refusal_of("simulate", tmp_path / "none.toml")
    path.write_text("duration_s = 0.1\n[[domain]]\nmemory_mib = 1\n")
    assert ".png and .svg" in refusal_of("simulate", path, "--plot", tmp_path / "plot.pdf")


def test_shipped_scenarios_are_listed() -> None:
    assert "steady" in diffengine("simulate", "--help").stdout
