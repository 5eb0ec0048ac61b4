# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole evaluation: plan, run what is not done yet, conclude, write."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from diffengine.errors import DiffengineError
from diffengine.evaluation.checkpoints import Checkpoint, Fate, fingerprint
from diffengine.evaluation.experiment import Experiment, Outcome, Results, UnavailableError
from diffengine.evaluation.experiments import BY_IMPORTANCE, EXPERIMENTS
from diffengine.evaluation.runner import Progress, Task, run_tasks
from diffengine.evaluation.setting import Setting, SettingError

ALL = "all"
# Another version of what steps compute makes older results useless.
RESULTS_VERSION = 4
VERSION = version("diffengine")


@dataclass(frozen=True)
class Missing:
    """A part that was skipped, or failed, and why."""

    step: str
    fate: Fate
    reason: str


@dataclass(frozen=True)
class Evaluated:
    """outcome: None if no step of the experiment was done. seconds, cpu_s: what its steps took."""

    experiment: Experiment
    results: Results
    outcome: Outcome | None
    missing: Sequence[Missing]
    seconds: float
    cpu_s: float


def choose(names: Sequence[str]) -> list[Experiment]:
    """The experiments of these names, in their own order. Raises SettingError for a name that is none."""
    known = {experiment.name: experiment for experiment in EXPERIMENTS}
    unknown = [name for name in names if name not in known and name != ALL]
    if unknown:
        raise SettingError(f"{', '.join(unknown)}: no such experiment; known: {', '.join(known)}, {ALL}")
    if not names or ALL in names:
        return list(EXPERIMENTS)
    return [experiment for name, experiment in known.items() if name in names]


@dataclass(frozen=True)
class _Planned:
    experiment: Experiment
    tasks: list[Task]
    refused: str


def _plan(experiment: Experiment, setting: Setting, folder: Path) -> _Planned:
    try:
        steps = experiment.plan(setting)
    except UnavailableError as missing:
        return _Planned(experiment, [], str(missing))
    identity = [str(RESULTS_VERSION), VERSION, *setting.images.identity, *setting.guests.identity]
    return _Planned(
        experiment,
        [
            Task(experiment.name, step, folder / experiment.name / f"{step.name}.json", fingerprint(step, identity))
            for step in steps
        ],
        "",
    )


def evaluate(
    experiments: Sequence[Experiment],
    setting: Setting,
    folder: Path,
    fresh: bool,
    watch: Callable[[Progress], None],
) -> list[Evaluated]:
    """Runs what `folder` does not hold yet, what matters most first.

    `fresh`: what is there already is removed first.
    """
    steps_folder = folder / "steps"
    if fresh and steps_folder.exists():
        shutil.rmtree(steps_folder)
    plans = [_plan(experiment, setting, steps_folder) for experiment in experiments]
    in_order = sorted(plans, key=lambda plan: BY_IMPORTANCE.index(plan.experiment.name))
    ended = run_tasks([task for plan in in_order for task in plan.tasks], setting.jobs, watch)
    return [_conclude(plan, ended) for plan in plans]


def _conclude(plan: _Planned, ended: dict[Path, Checkpoint]) -> Evaluated:
    checkpoints = {task.step.name: ended[task.path] for task in plan.tasks}
    done = {name: each.result for name, each in checkpoints.items() if each.fate is Fate.DONE}
    missing = [Missing(name, c.fate, c.reason) for name, c in checkpoints.items() if c.fate is not Fate.DONE]
    missing += [Missing(name, Fate.SKIPPED, text) for name, c in checkpoints.items() for text in c.missing]
    if plan.refused:
        missing.append(Missing("all of it", Fate.SKIPPED, plan.refused))
    outcome = None
    if done:
        try:
            outcome = plan.experiment.conclude(done)
        except KeyError as absent:
            # A part that the conclusion can't do without: it is among the missing ones already.
            if not missing:
                raise DiffengineError(
                    f"{plan.experiment.name}: its result {absent} is not there; report this"
                ) from None
    took = list(checkpoints.values())
    seconds, cpu_s = sum(each.seconds for each in took), sum(each.cpu_s for each in took)
    return Evaluated(plan.experiment, done, outcome, missing, seconds, cpu_s)


def results_json(evaluated: Evaluated) -> str:
    """What an experiment found, for other programs. Times are under `timings`, all else follows from the seed."""
    outcome = evaluated.outcome or Outcome()
    content = {
        "experiment": evaluated.experiment.name,
        "version": {"diffengine": VERSION, "results": RESULTS_VERSION},
        "question": evaluated.experiment.question,
        "basis": evaluated.experiment.basis.value,
        "results": evaluated.results,
        "targets": [{"claim": t.claim, "measured": t.measured, "met": t.met} for t in outcome.targets],
        "verdict": list(outcome.verdict),
        "missing": [{"step": m.step, "fate": m.fate.value, "reason": m.reason} for m in evaluated.missing],
    }
    return json.dumps(content, indent=2)
