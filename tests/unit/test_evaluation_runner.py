# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps in processes of their own: results are kept, failures stay where they are, the rest goes on."""

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diffengine.errors import DiffengineError
from diffengine.evaluation.checkpoints import Checkpoint, Fate, fingerprint, load
from diffengine.evaluation.evaluate import evaluate
from diffengine.evaluation.experiment import Outcome, Result, Step, UnavailableError
from diffengine.evaluation.experiments import BY_IMPORTANCE, EXPERIMENTS, peers
from diffengine.evaluation.runner import Progress, Task, run_tasks
from evaluation_runs import small_setting


def count(log: str, number: int) -> Result:
    """Notes that it ran."""
    with Path(log).open("a") as file:
        file.write(f"{number}\n")
    return {"square": number**2}


def lack(log: str, number: int) -> Result:
    raise UnavailableError("no such peer\non this machine")


def refuse(log: str, number: int) -> Result:
    raise DiffengineError("the disk is full; make room")


def break_down(log: str, number: int) -> Result:
    raise ValueError("not thought of")


def find_no_number(log: str, number: int) -> Result:
    return {"mean": float("nan")}


def die(log: str, number: int) -> Result:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def leave_out(log: str, number: int) -> Result:
    return {**count(log, number), "missing": ["no such peer"]}


def task(folder: Path, step: Step) -> Task:
    return Task("trial", step, folder / f"{step.name}.json", fingerprint(step, ["images"]))


def run(folder: Path, steps: list[Step], jobs: int = 2) -> tuple[dict[str, Checkpoint], list[Progress]]:
    heard: list[Progress] = []
    tasks = [task(folder, step) for step in steps]
    ended = run_tasks(tasks, jobs, heard.append)
    return {each.step.name: ended[each.path] for each in tasks}, heard


def steps_of(log: Path, *functions: object, alone: bool = False) -> list[Step]:
    return [
        Step(f"{function.__name__}-{number}", function, {"log": str(log), "number": number}, alone=alone)  # type: ignore
        for number, function in enumerate(functions)
    ]


def test_every_fate_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    ended, heard = run(tmp_path, steps_of(log, lack, refuse, break_down, die, count, find_no_number))
    assert ended["count-4"].result == {"square": 16}
    assert (ended["lack-0"].fate, ended["lack-0"].reason) == (Fate.SKIPPED, r"no such peer\non this machine")
    assert (ended["refuse-1"].fate, ended["refuse-1"].reason) == (Fate.FAILED, "the disk is full; make room")
    assert ended["break_down-2"].fate is Fate.FAILED
    assert "ValueError: not thought of" in ended["break_down-2"].reason
    assert ended["die-3"].fate is Fate.FAILED
    assert "code -9" in ended["die-3"].reason
    assert ended["find_no_number-5"].fate is Fate.FAILED
    assert [each.done for each in heard] == [0, 1, 2, 3, 4, 5, 6]
    assert heard[0].seconds_left > heard[-1].seconds_left == 0


def test_what_is_done_is_not_done_again_and_what_is_not_is_tried_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    steps = steps_of(log, count, lack, count)
    run(tmp_path, steps)
    assert sorted(log.read_text().split()) == ["0", "2"]
    (tmp_path / "count-2.json").write_text("{ cut off")
    again, heard = run(tmp_path, steps)
    assert sorted(log.read_text().split()) == ["0", "2", "2"]
    assert again["count-0"].result == {"square": 0}
    assert again["lack-1"].fate is Fate.SKIPPED
    assert [each.done for each in heard] == [1, 2, 3]


def test_a_part_that_was_left_out_is_told_and_tried_again(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "d12a-idle.raw").write_bytes(bytes(4096))
    steps = steps_of(tmp_path / "log", leave_out)
    experiment = replace(peers.EXPERIMENT, plan=lambda _: steps, conclude=lambda _: Outcome())
    for _ in range(2):
        (found,) = evaluate([experiment], small_setting(images), tmp_path / "out", False, lambda _: None)
        assert found.outcome is not None
        assert [(part.step, part.fate, part.reason) for part in found.missing] == [
            ("leave_out-0", Fate.SKIPPED, "no such peer")
        ]
    assert (tmp_path / "log").read_text().split() == ["0", "0"]


def test_other_arguments_or_images_make_another_result(tmp_path: Path) -> None:
    (step,) = steps_of(tmp_path / "log", count)
    run(tmp_path, [step])
    path = tmp_path / "count-0.json"
    assert load(path, fingerprint(step, ["images"])) is not None
    assert load(path, fingerprint(step, ["other images"])) is None
    other = Step(step.name, step.run, {**step.arguments, "number": 5})
    assert run(tmp_path, [other])[0]["count-0"].result == {"square": 25}


def busy(log: str, number: int) -> Result:
    """Notes who else is at work between its beginning and its end."""
    path = Path(log)
    mark = path.with_name(f"at-work-{number}")
    mark.touch()
    # Long enough for the others to be seen, if there are any.
    time.sleep(0.3)
    others = [each.name for each in path.parent.glob("at-work-*") if each != mark]
    time.sleep(0.3)
    mark.unlink()
    return {"others": others}


def test_a_step_alone_has_the_machine_for_itself(tmp_path: Path) -> None:
    ended, _ = run(tmp_path, steps_of(tmp_path / "log", *[busy] * 3, alone=True), jobs=4)
    assert all(checkpoint.result == {"others": []} for checkpoint in ended.values())


def compute(log: str, number: int) -> Result:
    while time.process_time() < 0.2:
        pass
    return {}


def take_scratch(log: str, number: int) -> Result:
    """Notes its process and its folder, and would go on for ever."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(log).with_suffix(".new")
        note.write_text(f"{os.getpid()} {folder}")
        note.replace(log)
        while True:
            time.sleep(0.01)


def evaluate_for_ever(folder: str) -> None:
    run(Path(folder), steps_of(Path(folder) / "log", take_scratch))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_steps_end_with_the_evaluation_and_leave_nothing(tmp_path: Path, number: signal.Signals) -> None:
    evaluation = multiprocessing.get_context("spawn").Process(target=evaluate_for_ever, args=(str(tmp_path),))
    evaluation.start()
    wait_until((tmp_path / "log").exists)
    process, scratch = (tmp_path / "log").read_text().split(maxsplit=1)
    assert evaluation.pid
    os.kill(evaluation.pid, number)
    evaluation.join()
    wait_until(lambda: not Path("/proc", process).exists())
    assert not Path(scratch).exists()


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 240
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_the_cpu_time_of_a_step_is_kept(tmp_path: Path) -> None:
    (step,) = steps_of(tmp_path / "log", compute)
    run(tmp_path, [step])
    kept = load(tmp_path / "compute-0.json", fingerprint(step, ["images"]))
    assert kept is not None
    assert 0.2 <= kept.cpu_s < 60


def test_every_experiment_has_its_turn() -> None:
    assert sorted(BY_IMPORTANCE) == sorted(experiment.name for experiment in EXPERIMENTS)
