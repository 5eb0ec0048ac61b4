# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of steps on disk, so that an interrupted evaluation goes on where it was."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from diffengine.evaluation.experiment import MISSING, Result, Step


class Fate(StrEnum):
    """How a step ended."""

    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class Checkpoint:
    """result: of a step that is done. reason: of one that is not. seconds, cpu_s: what it took."""

    fate: Fate
    result: Result
    reason: str
    seconds: float
    cpu_s: float

    @property
    def whole(self) -> bool:
        return self.fate is Fate.DONE and not self.missing

    @property
    def missing(self) -> list[str]:
        """What a step that is done left out."""
        return list(self.result.get(MISSING, ()))


def fingerprint(step: Step, identity: Sequence[str]) -> str:
    """What a step's result depends on."""
    what = [step.run.__module__, step.run.__qualname__, dict(step.arguments), list(identity)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def save(path: Path, print_of_step: str, checkpoint: Checkpoint) -> None:
    """Whole or not at all."""
    content: dict[str, Any] = {
        "fingerprint": print_of_step,
        "fate": checkpoint.fate.value,
        "reason": checkpoint.reason,
        "seconds": checkpoint.seconds,
        "cpu_s": checkpoint.cpu_s,
        "result": checkpoint.result,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def load(path: Path, print_of_step: str) -> Checkpoint | None:
    """None if there is none, or one of another step, or of this one with other arguments."""
    try:
        content = json.loads(path.read_text())
        if content["fingerprint"] != print_of_step:
            return None
        fate = Fate(content["fate"])
        return Checkpoint(fate, content["result"], content["reason"], content["seconds"], content["cpu_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
