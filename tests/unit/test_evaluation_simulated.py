# SPDX-License-Identifier: GPL-2.0-or-later
"""Experiments that run in virtual time: their scenarios are valid, and their steps give what they conclude from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffengine.evaluation import simulating
from diffengine.evaluation.experiment import Experiment, Step
from diffengine.evaluation.experiments import EXPERIMENTS, ioemu, scale, swapping
from diffengine.evaluation.setting import Setting
from diffengine.simulation.scenario import TRACE, read_scenario
from evaluation_runs import small_images, small_setting
from image_fixtures import Block, qemu_core

DURATION_S = 6.0


@pytest.fixture(scope="module")
def setting(samples: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return small_setting(small_images(samples, tmp_path_factory.mktemp("small")))


def simulated(setting: Setting) -> list[tuple[Experiment, Step]]:
    return [
        (experiment, step)
        for experiment in EXPERIMENTS
        if experiment.name not in ("table3", "peers")
        for step in experiment.plan(setting)
        if "values" in step.arguments
    ]


def test_every_scenario_is_valid_and_every_step_has_a_name_of_its_own(setting: Setting) -> None:
    steps = simulated(setting)
    assert {experiment.name for experiment, _ in steps} >= {"fig4", "fig5_7", "fig8", "fig9_11", "fig12", "swapping"}
    for _, step in steps:
        read_scenario(step.name, step.arguments["values"], step.name, [Path()])
    names = [(experiment.name, step.name) for experiment, step in steps]
    assert len(set(names)) == len(names)


def test_a_smaller_guest_writes_as_large_a_part_of_its_memory(tmp_path: Path) -> None:
    recorded = np.unpackbits(np.fromfile(TRACE, dtype=np.uint8))
    fitting = simulating.fitting_trace(tmp_path / "bits", 4100)
    assert fitting["trace_bits"] == 4096
    written = np.unpackbits(np.fromfile(tmp_path / "bits", dtype=np.uint8))
    assert len(written) * 32 == len(recorded)
    assert written.mean() == pytest.approx(recorded.mean(), rel=0.1)
    assert simulating.fitting_trace(tmp_path / "none", 131072) == {}


def shortened(step: Step, **more: Any) -> dict[str, Any]:
    values = {**step.arguments["values"], "duration_s": DURATION_S}
    values["engine"] = {**values["engine"], "visit_interval_s": 0.2, "fault_limit": 100_000.0}
    return {**step.arguments, "values": values, **more}


def first_step(setting: Setting, name: str) -> Step:
    return next(step for experiment, step in simulated(setting) if experiment.name == name)


def test_equal_seeds_make_equal_runs_and_lifetimes(setting: Setting) -> None:
    arguments = shortened(first_step(setting, "fig4"))
    first, second = (simulating.run_with_lifetimes(**arguments) for _ in range(2))
    assert first == second
    assert first["evictions"] > 0
    assert first["untouched"][0] is not None
    assert sum(first["saving"]["by_technique"].values()) == pytest.approx(first["saving"]["end"])


def test_guests_of_nonzero_pages_have_no_others(setting: Setting) -> None:
    live = [step for experiment, step in simulated(setting) if experiment.name == "fig9_11" and "live" in step.name]
    found = simulating.run(**shortened(live[0]))
    pages = sum(
        any(content[at : at + 4096])
        for image in (setting.guests.alike or setting.guests).images[:2]
        for content in [image.path.read_bytes()]
        for at in range(0, len(content), 4096)
    )
    assert found["allocated_bytes"] == pages * 4096


def test_a_core_has_the_pages_of_a_raw_image(setting: Setting, tmp_path: Path) -> None:
    raw = setting.guests.images[0].path
    memory = raw.read_bytes()
    core = tmp_path / "guest.core"
    core.write_bytes(qemu_core([Block(0, memory)]))
    kept = [simulating.without_zero_pages(image, tmp_path, number) for number, image in enumerate((raw, core))]
    assert kept[0].read_bytes() == kept[1].read_bytes() != b""
    assert simulating.nonzero_pages(raw) == simulating.nonzero_pages(core) == kept[0].stat().st_size // 4096


def test_divided_guests_have_the_same_memory_and_work(setting: Setting) -> None:
    steps = [step for experiment, step in simulated(setting) if experiment.name == "scale"]
    few, many = (next(step for step in steps if step.name == f"domains-{count}") for count in (2, 8))
    first, second = (simulating.run_resized(**shortened(step)) for step in (few, many))
    assert (len(first["domains"]), len(second["domains"])) == (2, 8)
    assert first["allocated_bytes"] == second["allocated_bytes"]
    operations = [run["guest"]["reads"] + run["guest"]["writes"] for run in (first, second)]
    assert operations[0] == pytest.approx(operations[1], rel=0.1)


def test_a_thinned_guest_has_a_part_of_the_memory(setting: Setting) -> None:
    arguments = shortened(next(step for step in scale.plan(setting) if step.name == "domains-2"))
    whole, quarter = (simulating.run_resized(**arguments | {"every": every}) for every in (1, 4))
    assert len(quarter["domains"]) == len(whole["domains"])
    assert 0 < quarter["allocated_bytes"] < whole["allocated_bytes"] / 2


def test_thinning_keeps_copies_together() -> None:
    words = np.repeat(np.arange(200, dtype=np.uint64), 3)[:, np.newaxis] * np.ones(512, dtype=np.uint64)
    found, counts = np.unique(simulating.thinned(words, 4)[:, 0], return_counts=True)
    assert 20 < len(found) < 100
    assert counts[0] == 1
    assert set(counts[1:]) == {3}
    assert len(simulating.thinned(words, 1)) == len(words)


def test_memory_that_does_not_fit_is_not_asked_for(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes() -> list[str]:
        return [step.name for step in scale.plan(setting) if step.name.startswith("memory-")]

    assert sizes()[0] == "memory-64"
    monkeypatch.setattr(scale, "total_memory_bytes", lambda: 128 * 5 << 20)
    assert sizes() == ["memory-64", "memory-128"]


def test_what_the_device_model_maps_is_not_saved(setting: Setting) -> None:
    steps = {step.name: step for step in ioemu.plan(setting)}
    everything = ioemu.run(**shortened(steps["everything-mapped"]))
    ageing = ioemu.run(**shortened(steps["on-demand-10-s"]))
    assert everything["evictions"] == 0
    assert everything["saving"]["end"] <= 0 < ageing["evictions"]
    assert 0 < ageing["mapped_anew"] < ageing["io_pages"]


def test_a_slower_disk_makes_guests_wait_longer(setting: Setting) -> None:
    (step, *_) = swapping.plan(setting)
    arguments = shortened(step)
    arguments["values"]["domain"] = [{**domain, "excursion_fraction": 0.3} for domain in arguments["values"]["domain"]]
    disks = ((10.0, 1.0, 64), (20_000.0, 1.0, 64), (20_000.0, 1.0, 1))
    fast, slow, queue = (swapping.swap_alone(arguments["values"], 0.5, 16, disk) for disk in disks)
    assert fast["series"]["swap_bytes"][-1] > 0
    # Two guests on a disk with heads wait for each other's pages, too.
    assert swapping.stalled_share(queue) > swapping.stalled_share(slow) > swapping.stalled_share(fast)
