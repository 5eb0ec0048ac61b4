# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine simulate --virtual`: a seed is a run, and what it saves is what real time saves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from command import diffengine, output_of
from page_fixtures import PAGE, random_page, text_page, word_page, write_image
from scenario_runs import FAST, check_accounting, run


def scenario(samples: Mapping[str, Path], seed: int = 1, duration_s: float = 5, engine: str = FAST) -> str:
    """Two guests that share, patch, compress and swap."""
    domains = "".join(
        f'[[domain]]\nimage = "{samples[name]}"\nprogram = "working-set"\nexcursion_fraction = 0.005\n'
        'trust_group = "all"\n'
        for name in ("d12a-work", "d12b-work")
    )
    machine = "[machine]\nswap_mib = 32\n"
    return f"seed = {seed}\nduration_s = {duration_s}\n{machine}[engine]\n{engine}{domains}"


def test_a_seed_gives_the_same_report_to_the_byte(samples: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    engine = FAST + "high_watermark = 0.05\nlow_watermark = 0.04\n"
    path.write_text(scenario(samples, engine=engine))
    # Nothing may depend on how Python orders sets of texts.
    one, two = (output_of("simulate", path, "--virtual", "--json", PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert one == two


def test_other_seeds_give_other_runs_and_every_byte_back(samples: dict[str, Path], tmp_path: Path) -> None:
    engine = FAST + "high_watermark = 0.05\nlow_watermark = 0.04\n"
    traces = set()
    for seed in range(3):
        report = run(tmp_path, scenario(samples, seed, 3, engine), "--virtual")
        check_accounting(report)
        assert report["guest"]["wrong_bytes"] == 0
        assert report["refaults"] > 0 and report["guest"]["copies_on_write"] > 0
        assert report["used_bytes"]["swap"] > 0
        traces.add(report["virtual"]["trace"])
    assert len(traces) == 3


def keys(report: Any) -> Any:
    if isinstance(report, dict):
        return {key: keys(value) for key, value in report.items() if key not in ("virtual", "reasons")}
    return keys(report[0]) if isinstance(report, list) and report else None


def test_it_reports_what_real_time_does_and_its_own_time(samples: dict[str, Path], tmp_path: Path) -> None:
    virtual = run(tmp_path, scenario(samples, duration_s=8), "--virtual")
    real = run(tmp_path, scenario(samples, duration_s=1))
    assert keys(virtual) == keys(real)
    assert virtual["virtual"]["times"] == "modelled, not measured"
    assert "virtual" not in real
    assert virtual["guest"]["reads"] + virtual["guest"]["writes"] == pytest.approx(2 * 8000, rel=0.02)
    assert virtual["duration_s"] == pytest.approx(8.25, abs=0.01)


def test_the_cpu_budget_counts_what_the_model_says(samples: dict[str, Path], tmp_path: Path) -> None:
    little, much = (
        run(tmp_path, scenario(samples, duration_s=5, engine=f"{FAST}cpu_share = {share}\n"), "--virtual")
        for share in (0.002, 1.0)
    )
    assert little["sweeps"] < much["sweeps"] / 2
    assert little["cpu_s"]["scan"] / little["duration_s"] < 0.02 < much["cpu_s"]["scan"] / much["duration_s"]


def test_an_hour_of_virtual_time(tmp_path: Path) -> None:
    report = run(tmp_path, "duration_s = 3600\n[[domain]]\nmemory_mib = 1\n", "--virtual")
    assert report["duration_s"] == pytest.approx(3600.25, abs=0.01)
    # Its guest does nothing: sweeps get four times as long.
    assert 200 < report["sweeps"] < 800


def test_tables_say_that_times_are_modelled(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text("duration_s = 1\n[[domain]]\nmemory_mib = 1\n")
    assert "modelled: virtual time" in output_of("simulate", path, "--virtual")
    assert "modelled" not in output_of("simulate", path)


def test_processes_have_no_virtual_time(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text("duration_s = 1\n[[domain]]\nmemory_mib = 1\n")
    done = diffengine("simulate", path, "--virtual", "--processes")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--processes: not allowed with argument --virtual" in done.stderr


def test_a_machine_that_is_too_small_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text("[machine]\nmemory_mib = 1\n[[domain]]\nmemory_mib = 2\n")
    done = diffengine("simulate", path, "--virtual")
    assert (done.returncode, done.stdout) == (2, "")
    assert "memory_mib = 1" in done.stderr and "Traceback" not in done.stderr


def test_every_domain_that_a_pager_can_have(tmp_path: Path) -> None:
    domains = '[[domain]]\nmemory_mib = 1\nprogram = "phases"\noperations_per_s = 100\n'
    path_text = "duration_s = 0.5\n[machine]\nswap_mib = 1\n" + domains * 256
    report = run(tmp_path, path_text, "--virtual")
    assert report["guest"]["wrong_bytes"] == 0
    assert len(report["domains"]) == 256


ODD = {
    "zero": [bytes(PAGE)] * 300,
    "one-zero-page": [bytes(PAGE)],
    "one-page": [text_page(1)],
    "words": [word_page(bytes([n]) * 8) for n in range(1, 65)],
    "noise": [random_page(n) for n in range(64)],
    # More copies of one content than a frame may have sharers.
    "copies": [text_page(1)] * 700,
    "similar": [random_page(1)[:n] + b"#" + random_page(1)[n + 1 :] for n in range(0, 4000, 50)],
}


@pytest.mark.parametrize("group", ["all", None])
def test_odd_guests_together(tmp_path: Path, group: str | None) -> None:
    paths = [write_image(tmp_path / f"{name}.raw", pages) for name, pages in ODD.items()]
    terms = 'program = "working-set"\n' + (f'trust_group = "{group}"\n' if group else "")
    domains = "".join(f'[[domain]]\nimage = "{path}"\n{terms}' for path in paths)
    report = run(tmp_path, f"duration_s = 6\n[engine]\n{FAST}{domains}", "--virtual")
    check_accounting(report)
    assert report["guest"]["wrong_bytes"] == 0
    assert report["guest"]["reads"] > 100
    assert report["saving"]["end"] > 0.7
